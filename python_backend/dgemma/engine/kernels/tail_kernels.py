"""The tail's kernels: the vocabulary chunk by chunk, its logits never wider than a tile.

Knows tiles and how their statistics meet; knows neither settings nor what is launched when.
Scores are in units of log2 and, as in `Head.scores`, too large by a constant. The weights that mix
embeddings are relative to a power of two for each line, `reference`: it rises only where a score
exceeds it by more than `SLACK`, which BF16 holds as well, so that after the first chunk nearly
every tile has the reference of its chunk and mixing is a plain product.
A tile of lines stands within a row: temperature and the noise of tokens are the same for all.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-(2**30))  # a reference before there is one
SLACK = tl.constexpr(60)  # sums of 2^18 weights of 2^60 are far from fp32's end
NO_ID = tl.constexpr(2**31 - 1)
NEVER = tl.constexpr(-1.0e30)  # the score of what is no token
LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)
# `dgemma.tail.noise`, as unsigned words
_TOKEN = tl.constexpr(0x85EBCA77)
_MIX_1 = tl.constexpr(0x7FEB352D)
_MIX_2 = tl.constexpr(0x846CA68B)


@triton.jit
def head(
    hidden,  # [R * LENGTH, WIDTH]
    embedding,  # [VOCAB, WIDTH]
    temperature,  # fp32 [R]
    positions,  # int32 [R * LENGTH], mixed
    high,  # int32 [R]
    weights,  # [R * LENGTH, CHUNK]: out, relative to the tile's reference
    before,  # int32 [R * LENGTH]: references of the chunk before
    after,  # int32 [R * LENGTH], LOWEST: out, of this chunk
    tile_reference,  # int32 [CHUNK / BLOCK_V, R * LENGTH]: out
    top,  # fp32 [R * LENGTH, TILES], as the five below: out
    mass,
    weighted,
    arrival,  # of the race's winner, relative to `top`
    argmax,  # int32
    winner,  # int32
    first_tile,  # of the chunk
    VOCAB: tl.constexpr,
    LENGTH: tl.constexpr,
    WIDTH: tl.constexpr,
    SOFTCAP: tl.constexpr,
    CHUNK: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Scores of a tile of ids, and what is to be known of them."""
    row, line, valid = _lines(tl.program_id(0), LENGTH, BLOCK_M)
    place = tl.program_id(1)  # within the chunk
    tile = first_tile + place
    of_tile = tl.arange(0, BLOCK_V)
    token = tile * BLOCK_V + of_tile
    held = valid[:, None]
    logits = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    near = tl.minimum(of_tile, VOCAB - 1 - tile * BLOCK_V)
    rows_at = hidden + line[:, None] * WIDTH
    ids_at = embedding + (tile * BLOCK_V).to(tl.int64) * WIDTH + near[None, :] * WIDTH
    for start in range(0, WIDTH, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        if WIDTH % BLOCK_K == 0 and LENGTH % BLOCK_M == 0:
            x = tl.load(rows_at + column[None, :])
        else:
            x = tl.load(rows_at + column[None, :], held & (column < WIDTH)[None, :], 0.0)
        if WIDTH % BLOCK_K == 0:
            e = tl.load(ids_at + column[:, None])
        else:
            e = tl.load(ids_at + column[:, None], (column < WIDTH)[:, None], 0.0)
        logits = tl.dot(x, e, logits, input_precision="ieee")

    # cap * (tanh(x / cap) + 1) / temperature
    most = 2 * SOFTCAP * LOG2_E / tl.load(temperature + row)
    score = most / (1 + tl.exp2(logits * (-2 * LOG2_E / SOFTCAP)))
    if VOCAB % BLOCK_V != 0:
        score = tl.where((token < VOCAB)[None, :], score, NEVER)
    highest = tl.max(score, 1)
    found = tl.min(tl.where(score == highest[:, None], token[None, :], NO_ID), 1)
    # Relative to the highest, the top token adds nothing to `weighted`: small entropies stay exact.
    shift = score - highest[:, None]
    weight = tl.exp2(shift)

    at = line.to(tl.int64) * TILES + tile
    tl.store(top + at, highest, valid)
    tl.store(argmax + at, found, valid)
    tl.store(mass + at, tl.sum(weight, 1), valid)
    tl.store(weighted + at, tl.sum(weight * shift, 1) * LN_2, valid)

    earlier = tl.load(before + line, valid, LOWEST)
    own = tl.ceil(highest).to(tl.int32)
    reference = tl.where(own > earlier + SLACK, own, earlier)
    tl.store(tile_reference + place * (tl.num_programs(0) // _row_tiles(LENGTH, BLOCK_M)) * LENGTH
             + line, reference, valid)  # fmt: skip
    # A maximum is the same in any order.
    tl.atomic_max(after + line, reference, valid & ((reference > earlier) | (place == 0)))
    lift = tl.exp2(highest - reference.to(tl.float32))
    out = weights + line.to(tl.int64)[:, None] * CHUNK + (place * BLOCK_V + of_tile)[None, :]
    tl.store(out, (weight * lift[:, None]).to(weights.dtype.element_ty), held)

    # The exponential race: who arrives first, at noise / weight.
    words = _mix(token.to(tl.uint32) * _TOKEN + tl.load(high + row).to(tl.uint32, bitcast=True))
    mixed = tl.load(positions + line, valid, 0).to(tl.uint32, bitcast=True)
    time = _noise(mixed[:, None] ^ words[None, :]) * tl.exp2(-shift)
    earliest = tl.min(time, 1)
    first = tl.min(tl.where(time == earliest[:, None], token[None, :], NO_ID), 1)
    tl.store(arrival + at, earliest, valid)
    tl.store(winner + at, first, valid)


@triton.jit
def align(
    weights,  # [R * LENGTH, CHUNK]: made relative to the chunk's reference
    after,  # int32 [R * LENGTH]: that
    tile_reference,  # int32 [CHUNK / BLOCK_V, R * LENGTH]
    LENGTH: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Exact, by powers of two; nearly all programs find nothing to do but in the first chunk."""
    _, line, valid = _lines(tl.program_id(0), LENGTH, BLOCK_M)
    place = tl.program_id(1)
    rows = tl.num_programs(0) // _row_tiles(LENGTH, BLOCK_M)
    own = tl.load(tile_reference + place * rows * LENGTH + line, valid, 0)
    shift = own - tl.load(after + line, valid, 0)
    if tl.min(shift, 0) < 0:
        of_tile = place * BLOCK_V + tl.arange(0, BLOCK_V)
        at = weights + line.to(tl.int64)[:, None] * CHUNK + of_tile[None, :]
        weight = tl.load(at, valid[:, None], 0.0).to(tl.float32)
        weight = weight * tl.exp2(shift.to(tl.float32))[:, None]
        tl.store(at, weight.to(weights.dtype.element_ty), valid[:, None])


@triton.jit
def mix(
    weights,  # [R * LENGTH, CHUNK]
    embedding,  # [VOCAB, WIDTH]
    before,  # int32 [R * LENGTH]
    after,  # int32 [R * LENGTH]
    sums,  # fp32 [SPLITS, R * LENGTH, WIDTH]: in, but for the first chunk, and out
    first,  # id of the chunk
    ids,  # of the chunk
    VOCAB: tl.constexpr,
    LENGTH: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Adds the embeddings of one split of a chunk, times their weights."""
    _, line, valid = _lines(tl.program_id(1), LENGTH, BLOCK_M)
    split = tl.program_id(2)
    column = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    lines = tl.num_programs(1) // _row_tiles(LENGTH, BLOCK_M) * LENGTH
    at = sums + (split * lines + line).to(tl.int64)[:, None] * WIDTH + column[None, :]
    kept = valid[:, None]
    if WIDTH % BLOCK_D != 0:
        kept = kept & (column < WIDTH)[None, :]
    fall = (tl.load(before + line, valid, 0) - tl.load(after + line, valid, 0)).to(tl.float32)
    total = tl.load(at, kept & (first > 0), 0.0) * tl.exp2(fall)[:, None]

    near = tl.minimum(column, WIDTH - 1)
    steps: tl.constexpr = CHUNK // BLOCK_K
    begin = split * steps // SPLITS * BLOCK_K
    end = tl.minimum((split + 1) * steps // SPLITS * BLOCK_K, ids)
    token = tl.arange(0, BLOCK_K)
    weights_at = weights + line.to(tl.int64)[:, None] * CHUNK + token[None, :]
    ids_at = embedding + first.to(tl.int64) * WIDTH + token[:, None] * WIDTH + near[None, :]
    for start in range(begin, end, BLOCK_K):
        if LENGTH % BLOCK_M == 0:
            w = tl.load(weights_at + start)
        else:
            w = tl.load(weights_at + start, valid[:, None], 0.0)
        if VOCAB % BLOCK_K == 0:
            e = tl.load(ids_at + start * WIDTH)
        else:
            real = token < ids - start
            w = tl.where(real[None, :], w, 0.0)
            e = tl.load(ids_at + start * WIDTH, real[:, None], 0.0)
        total = tl.dot(w, e, total, input_precision="ieee")
    tl.store(at, total, kept)


@triton.jit
def finish(
    top,  # fp32 [M, TILES], as the five below
    mass,
    weighted,
    arrival,
    argmax,  # int32
    winner,  # int32
    reference,  # int32 [M]: what `sums` are relative to
    sums,  # fp32 [SPLITS, M, WIDTH]
    argmax_out,  # int64 [M]
    sampled_out,  # int64 [M]
    entropy_out,  # fp32 [M]
    soft_out,  # [M, WIDTH]
    ROOT: tl.constexpr,  # of WIDTH
    WIDTH: tl.constexpr,
    TILES: tl.constexpr,
    SPLITS: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,  # powers of two
    TILES_PADDED: tl.constexpr,
):
    """One line of all tiles and splits."""
    line = tl.program_id(0)
    tile = tl.arange(0, TILES_PADDED)
    real = tile < TILES
    at = line.to(tl.int64) * TILES + tile
    tops = tl.load(top + at, real, NEVER)
    highest = tl.max(tops, 0)
    found = tl.min(tl.where(tops == highest, tl.load(argmax + at, real, NO_ID), NO_ID), 0)
    shift = tops - highest
    scale = tl.exp2(shift)
    masses = tl.load(mass + at, real, 0.0)
    total = tl.sum(masses * scale, 0)
    moved = tl.load(weighted + at, real, 0.0) + masses * shift * LN_2
    # Rounding may not make an entropy negative: a threshold of 0 would stop a canvas.
    entropy = tl.maximum(tl.log(total) - tl.sum(moved * scale, 0) / total, 0.0)
    times = tl.load(arrival + at, real, float("inf")) * tl.exp2(-shift)
    earliest = tl.min(times, 0)
    first = tl.min(tl.where(times == earliest, tl.load(winner + at, real, NO_ID), NO_ID), 0)
    tl.store(argmax_out + line, found.to(tl.int64))
    tl.store(sampled_out + line, first.to(tl.int64))
    tl.store(entropy_out + line, entropy)

    column = tl.arange(0, WIDTH_PADDED)
    inside = column < WIDTH
    soft = tl.zeros([WIDTH_PADDED], tl.float32)
    for split in tl.static_range(SPLITS):
        part = (split * tl.num_programs(0) + line).to(tl.int64) * WIDTH
        soft += tl.load(sums + part + column, inside, 0.0)
    lift = tl.exp2(highest - tl.load(reference + line).to(tl.float32))
    soft = soft * (ROOT / (total * lift))
    out = soft_out + line.to(tl.int64) * WIDTH + column
    tl.store(out, soft.to(soft_out.dtype.element_ty), inside)


@triton.jit
def _row_tiles(LENGTH: tl.constexpr, BLOCK_M: tl.constexpr):
    return (LENGTH + BLOCK_M - 1) // BLOCK_M


@triton.jit
def _lines(tile, LENGTH: tl.constexpr, BLOCK_M: tl.constexpr):
    """Row, lines and which of them there are, of a tile of lines."""
    each: tl.constexpr = (LENGTH + BLOCK_M - 1) // BLOCK_M
    row = tile // each
    position = tile % each * BLOCK_M + tl.arange(0, BLOCK_M)
    return row, row * LENGTH + position, position < LENGTH


@triton.jit
def _mix(x):
    """`dgemma.tail.noise.mix`"""
    x = (x ^ (x >> 16)) * _MIX_1
    x = (x ^ (x >> 15)) * _MIX_2
    return x ^ (x >> 16)


@triton.jit
def _noise(x):
    """`dgemma.tail.noise.exponential` of words that are combined."""
    x = x * _MIX_1
    x = (x ^ (x >> 15)) * _MIX_2
    part = (x & 0xFFFFFE00).to(tl.int32, bitcast=True).to(tl.float32)
    return -_log(part * 2.3283064365386963e-10 + (0.5 + 5.960464477539063e-08))


@triton.jit
def _log(u):
    """Of normal numbers, to 1 ulp near 1 too, where races are decided.

    In half the operations of the compiler's own, which takes any number; without the special
    function units, whose logarithm is off there by up to 2^-22.
    """
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F2AAAAB) & -0x800000  # of 2 / 3 .. 4 / 3
    f = (bits - exponent).to(tl.float32, bitcast=True) - 1
    s = f * f
    odd = s * 0.140869141 + 0.139814854
    odd = odd * s + 0.200120345
    even = s * -0.130310059 - 0.121483512
    even = even * s - 0.166846126
    even = even * s - 0.249996200
    r = (odd * f + even) * f + 0.333331972
    r = (r * f - 0.5) * s + f
    return exponent.to(tl.float32) * (1.1920928955078125e-07 * LN_2) + r
