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
    """Scores of two tiles of ids, and what is to be known of each.

    Two, because a product wants more ids at a time than the registers have room to look at.
    """
    row, line, valid = _lines(tl.program_id(0), LENGTH, BLOCK_M)
    place = tl.program_id(1) * 2  # within the chunk
    tile = first_tile + place
    lower = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    upper = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    of_tile = tl.arange(0, BLOCK_V)
    left = VOCAB - 1 - tile * BLOCK_V
    lower_at = tl.minimum(of_tile, left)[None, :] * WIDTH
    upper_at = tl.minimum(of_tile + BLOCK_V, left)[None, :] * WIDTH
    hidden += line[:, None] * WIDTH
    embedding += (tile * BLOCK_V).to(tl.int64) * WIDTH
    for start in range(0, WIDTH, BLOCK_K):
        column = start + tl.arange(0, BLOCK_K)
        if WIDTH % BLOCK_K == 0 and LENGTH % BLOCK_M == 0:
            x = tl.load(hidden + column[None, :])
        else:
            x = tl.load(hidden + column[None, :], valid[:, None] & (column < WIDTH)[None, :], 0.0)
        e = _columns(embedding + lower_at, column, WIDTH, BLOCK_K)
        lower = tl.dot(x, e, lower, input_precision="ieee")
        e = _columns(embedding + upper_at, column, WIDTH, BLOCK_K)
        upper = tl.dot(x, e, upper, input_precision="ieee")

    earlier = tl.load(before + line, valid, LOWEST)
    most = 2 * SOFTCAP * LOG2_E / tl.load(temperature + row)
    key = tl.load(high + row).to(tl.uint32, bitcast=True)
    words = tl.load(positions + line, valid, 0).to(tl.uint32, bitcast=True)
    lines = tl.num_programs(0) // _row_tiles(LENGTH, BLOCK_M) * LENGTH
    for half in tl.static_range(2):
        kept = valid & (tile + half < TILES)
        of_line = line.to(tl.int64) * TILES + tile + half
        token = (tile + half) * BLOCK_V + of_tile
        logits = lower if half == 0 else upper
        # cap * (tanh(x / cap) + 1) / temperature
        score = most / (1 + tl.exp2(logits * (-2 * LOG2_E / SOFTCAP)))
        if VOCAB % BLOCK_V != 0:
            score = tl.where((token < VOCAB)[None, :], score, NEVER)
        highest = tl.max(score, 1)
        found = tl.min(tl.where(score == highest[:, None], token[None, :], NO_ID), 1)
        tl.store(top + of_line, highest, kept)
        tl.store(argmax + of_line, found, kept)
        # Relative to the highest, the top token adds nothing to `weighted`: small entropies stay
        # exact.
        shift = score - highest[:, None]
        weight = tl.exp2(shift)
        tl.store(mass + of_line, tl.sum(weight, 1), kept)
        tl.store(weighted + of_line, tl.sum(weight * shift, 1) * LN_2, kept)

        own = tl.ceil(highest).to(tl.int32)
        reference = tl.where(own > earlier + SLACK, own, earlier)
        tl.store(tile_reference + (place + half) * lines + line, reference, kept)
        # A maximum is the same in any order.
        new = (reference > earlier) | (place + half == 0)
        tl.atomic_max(after + line, reference, kept & new)
        lift = tl.exp2(highest - reference.to(tl.float32))
        out = weights + line.to(tl.int64)[:, None] * CHUNK + (place + half) * BLOCK_V
        weight = (weight * lift[:, None]).to(weights.dtype.element_ty)
        tl.store(out + of_tile[None, :], weight, kept[:, None])

        # The exponential race: who arrives first, at noise / weight.
        tokens = _mix(token.to(tl.uint32) * _TOKEN + key)
        time = _noise(words[:, None] ^ tokens[None, :]) * tl.exp2(-shift)
        earliest = tl.min(time, 1)
        first = tl.min(tl.where(time == earliest[:, None], token[None, :], NO_ID), 1)
        tl.store(arrival + of_line, earliest, kept)
        tl.store(winner + of_line, first, kept)


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
    """Adds two blocks of columns of a split's embeddings, times their weights."""
    _, line, valid = _lines(tl.program_id(1), LENGTH, BLOCK_M)
    split = tl.program_id(2)
    column = tl.program_id(0) * (2 * BLOCK_D) + tl.arange(0, BLOCK_D)
    lines = tl.num_programs(1) // _row_tiles(LENGTH, BLOCK_M) * LENGTH
    left = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    right = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    steps: tl.constexpr = CHUNK // BLOCK_K
    begin = split * steps // SPLITS * BLOCK_K
    end = tl.minimum((split + 1) * steps // SPLITS * BLOCK_K, ids)
    token = tl.arange(0, BLOCK_K)
    weights_at = weights + line.to(tl.int64)[:, None] * CHUNK + token[None, :]
    embedding += first.to(tl.int64) * WIDTH + token[:, None] * WIDTH + column[None, :]
    for start in range(begin, end, BLOCK_K):
        if LENGTH % BLOCK_M == 0:
            w = tl.load(weights_at + start)
        else:
            w = tl.load(weights_at + start, valid[:, None], 0.0)
        if VOCAB % BLOCK_K == 0 and WIDTH % (2 * BLOCK_D) == 0:
            left_rows = tl.load(embedding + start * WIDTH)
            right_rows = tl.load(embedding + start * WIDTH + BLOCK_D)
        else:
            real = token < ids - start
            w = tl.where(real[None, :], w, 0.0)
            held = real[:, None] & (column < WIDTH)[None, :]
            left_rows = tl.load(embedding + start * WIDTH, held, 0.0)
            held = real[:, None] & (column < WIDTH - BLOCK_D)[None, :]
            right_rows = tl.load(embedding + start * WIDTH + BLOCK_D, held, 0.0)
        left = tl.dot(w, left_rows, left, input_precision="ieee")
        right = tl.dot(w, right_rows, right, input_precision="ieee")

    fall = tl.load(before + line, valid, 0) - tl.load(after + line, valid, 0)
    keep = tl.exp2(fall.to(tl.float32))[:, None]
    sums += (split * lines + line).to(tl.int64)[:, None] * WIDTH
    for half in tl.static_range(2):
        own = column + half * BLOCK_D
        kept = valid[:, None] & (own < WIDTH)[None, :]
        # What stands there before the first chunk is nothing, and may be NaN.
        total = tl.load(sums + own[None, :], kept & (first > 0), 0.0) * keep
        total += left if half == 0 else right
        tl.store(sums + own[None, :], total, kept)


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
def _columns(rows, column, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr):
    """`[BLOCK_K, ids]` of an embedding's rows; zero beyond its width."""
    if WIDTH % BLOCK_K == 0:
        tile = tl.load(rows + column[:, None])
    else:
        tile = tl.load(rows + column[:, None], (column < WIDTH)[:, None], 0.0)
    return tile


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
