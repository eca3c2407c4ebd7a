"""Every buffer that serving takes on a device, by name.

Knows what the graph, the tail and the runtime hold, and when; knows neither GPUs nor what fits.
Where kernels run in place of a plan, what they take is counted beside it, in `kernel_buffers`.
What lives only in one part of a layer shares its memory with the other parts: of these the largest
counts. Where a compiler decides, this follows what tensorrt-rtx 1.7 reports of the graph that
`dgemma_build.gpu` prepares ("Max Scratch Memory"): attention is fused for heads up to 256, and for
wider ones where the scores would have 2^31 elements or more; below, it holds fp32 scores,
probabilities and a copy of K or V for every query head. A bank that is not fp8 is dequantised whole
in its layer's turn.
Shapes: R rows, L canvas length, T tokens of a pass, D hidden size, H query heads, G K/V heads,
d head size, S keys of a row, W window, N context, E experts, k experts per token, C capacity,
I expert width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from dgemma.geometry import LayerGeometry
from dgemma.roofline.sizes import Model, kv_bytes
from dgemma.tail.statistics import TILE
from dgemma_build.envelope import Envelope
from dgemma_build.kernel_buffers import kernel_buffers

# Allowances, not measured on a card: what a process holds before it computes anything (context,
# kernels, handles of torch and TensorRT), loaded code, and room for the kernels' own partial sums.
CUDA_CONTEXT = 600_000_000
PLAN = 100_000_000
WORKSPACE = 128 * 2**20
FUSED_HEAD_DIM = 256  # the widest heads that TensorRT's attention is always fused for
FUSED_SCORES = 2**31  # from so many elements on for all heads
FP32, INT32, INT64 = 4, 4, 8
PASS = "pass"  # the phase of what lives in all of one


@dataclass(frozen=True)
class Buffer:
    """One thing in memory; one with a phase lives only in that part of a layer or pass."""

    name: str
    bytes: int
    phase: str | None = None


def total(buffers: list[Buffer]) -> int:
    """All that stays, and what a pass takes."""
    return sum(b.bytes for b in buffers if b.phase is None) + scratch(buffers)


def scratch(buffers: list[Buffer]) -> int:
    """What a plan takes for a pass: what lives in all of it, and the largest phase."""
    phases: dict[str, int] = defaultdict(int)
    for buffer in buffers:
        if buffer.phase is not None:
            phases[buffer.phase] += buffer.bytes
    return phases.pop(PASS, 0) + max(phases.values(), default=0)


def buffers(model: Model, envelope: Envelope, flavour: str = "tensorrt") -> list[Buffer]:
    """All of an engine of `flavour`, in the order in which a table shows them."""
    if flavour == "torch":
        return _of_kernels(model, envelope)
    on_gpu = flavour != "onnxruntime"
    found = [Buffer(f"weights: {name}", n) for name, n in model.weight_parts.items()]
    found += _state(model, envelope)
    found += _interface(model, envelope, on_gpu)
    seen: set[LayerGeometry] = set()
    for layer in model.geometry.layers:
        if layer not in seen:
            found += _attention(model, envelope, layer, on_gpu)
        seen.add(layer)
    found += _feed_forward(model, envelope)
    found += _tail(model, envelope)
    if on_gpu:
        found += [Buffer("CUDA context, libraries (allowance)", CUDA_CONTEXT)]
        found += [Buffer("plan (allowance)", PLAN)]
        found += [Buffer("TensorRT workspace (allowance)", WORKSPACE, PASS)]
    return found


def _of_kernels(model: Model, e: Envelope) -> list[Buffer]:
    g, width = model.geometry, model.activation_bytes
    tokens = e.rows * g.canvas_length
    # Soft embeddings go in, the last hidden states come out: [R, L, D] each.
    interface = 2 * tokens * g.hidden_size * width + tokens * INT64
    fresh = tokens * sum(2 * x.num_key_value_heads * x.head_dim * width for x in g.layers)
    return [
        *(Buffer(f"weights: {name}", n) for name, n in model.weight_parts.items()),
        *_state(model, e),
        Buffer("inputs and outputs", interface),
        Buffer("fresh K and V", fresh),
        *(Buffer(*taken) for taken in kernel_buffers(model, e, PASS)),
        *_tail(model, e),
        Buffer("CUDA context, libraries (allowance)", CUDA_CONTEXT),
        Buffer("kernels (allowance)", PLAN),
    ]


def _state(model: Model, e: Envelope) -> Iterator[Buffer]:
    """What slots keep between passes."""
    g, width = model.geometry, model.activation_bytes
    kv = kv_bytes(model, e.context)
    yield Buffer("KV pools: sliding layers", e.slots * kv.sliding)
    yield Buffer("KV pools: full layers", e.slots * kv.full)
    # Ids, argmax, pinned tokens and acceptance are of 8 bytes at most, entropy of 4.
    canvas = g.canvas_length * (g.hidden_size * width + 4 * INT64 + FP32)
    yield Buffer("canvases", e.slots * canvas)


def _interface(model: Model, e: Envelope, on_gpu: bool) -> Iterator[Buffer]:
    """Inputs and outputs of the graph, and what all layers of a pass share."""
    g, width = model.geometry, model.activation_bytes
    tokens = e.rows * g.canvas_length
    # [R, L, D] each: soft, hidden, and between plans what left one and what leaves the next.
    vectors = (4 if on_gpu else 2) * tokens * g.hidden_size * width
    yield Buffer("inputs and outputs", vectors + tokens * INT64 + e.context * INT64)
    if on_gpu:
        # Every layer's are outputs, of all rows, whatever is kept of them.
        fresh = tokens * sum(2 * x.num_key_value_heads * x.head_dim * width for x in g.layers)
        yield Buffer("fresh K and V", fresh)
        # Of all layers, as in a plan of all of them; a plan of one period holds only its own.
        yield Buffer("K or V before they are put out", fresh // 2, PASS)
    else:
        attended = sum(_position(x, width) * _keys(model, e, x) for x in g.layers)
        yield Buffer("K and V that rows attend to", e.rows * attended)
    keys = sum({layer.is_full: _keys(model, e, layer) for layer in g.layers}.values())
    # fp32, rounded to the activations' type, and the comparison they come from: [R, L, S] each.
    yield Buffer("masks", tokens * keys * (FP32 + width + 1), PASS)


def _keys(model: Model, e: Envelope, layer: LayerGeometry) -> int:
    """Keys of a row, S: its own tokens and its context, its partner's included."""
    context = e.context if layer.is_full else model.geometry.sliding_window
    return context + model.geometry.canvas_length


def _position(layer: LayerGeometry, width: int) -> int:
    """K and V of one position of a layer."""
    return 2 * layer.num_key_value_heads * layer.head_dim * width


def _attention(model: Model, e: Envelope, layer: LayerGeometry, on_gpu: bool) -> Iterator[Buffer]:
    g, width, phase = model.geometry, model.activation_bytes, layer.layer_type
    tokens, keys = e.rows * g.canvas_length, _keys(model, e, layer)
    heads, groups = g.num_attention_heads, layer.num_key_value_heads
    projected = tokens * (heads + 2 * groups) * layer.head_dim
    # The residual stream, its norm in fp32 and rounded; q, k, v before and after norm and rotation.
    stream = tokens * g.hidden_size * (2 * width + FP32)
    yield Buffer(f"{phase}: activations", stream + 3 * projected * width, phase)
    scores = tokens * heads * keys  # [R, H, L, S]
    if on_gpu and (layer.head_dim <= FUSED_HEAD_DIM or scores >= FUSED_SCORES):
        # TensorRT lets go of copies before it repeats K and V for every query head.
        position = e.rows * _position(layer, width)
        context = keys - g.canvas_length
        yield Buffer(f"{phase}: contexts with partners' tokens", position * context, phase)
        yield Buffer(f"{phase}: keys and values joined", position * keys, phase)
        return
    yield Buffer(f"{phase}: scores in fp32", scores * FP32, phase)
    yield Buffer(f"{phase}: probabilities", scores * width, phase)
    repeated = e.rows * heads * keys * layer.head_dim * width if heads != groups else 0
    yield Buffer(f"{phase}: K or V for every query head", repeated, phase)


def _feed_forward(model: Model, e: Envelope) -> Iterator[Buffer]:
    g, width = model.geometry, model.activation_bytes
    tokens = e.rows * g.canvas_length
    stream = tokens * g.hidden_size * (2 * width + FP32)
    yield Buffer("dense MLP", stream + 3 * tokens * g.intermediate_size * width, "dense MLP")
    phase, picked = "experts", tokens * g.top_k_experts
    room = g.num_experts * (tokens if e.capacity is None else min(e.capacity, tokens))  # E * C
    # The stream and the dense MLP's result wait; every token's k results [T, k, D], twice.
    waiting = stream + tokens * g.hidden_size * width + 2 * picked * g.hidden_size * width
    yield Buffer("experts: activations", waiting, phase)
    # A comparison and two int32 counters, [T * k, E] each.
    yield Buffer("experts: routing", picked * g.num_experts * (1 + 2 * INT32), phase)
    inner = g.moe_intermediate_size
    # What is multiplied and the widest product; the others are let go or not there yet.
    yield Buffer(
        "experts: tokens in E x C places", room * (g.hidden_size + 2 * inner) * width, phase
    )
    if any(format == "fp8" for _, format in model.policy.rules):
        yield Buffer("experts: the same in fp8", room * (g.hidden_size + inner), phase)
    first, *others = model.dequantized_banks or (0,)
    yield Buffer("experts: the larger bank, dequantised", first, phase)
    yield Buffer("experts: a layer's banks, dequantised", first + sum(others), "experts' banks")
    yield Buffer("experts' banks: activations", waiting, "experts' banks")


def _tail(model: Model, e: Envelope) -> Iterator[Buffer]:
    """The tail runs in torch, whose memory the engine does not share; a slot has one canvas."""
    g, width = model.geometry, model.activation_bytes
    tokens = e.slots * g.canvas_length
    tile = tokens * min(TILE, g.vocab_size)
    # Products, fp32 scores, their exponentials, these rounded; noise and two steps of its hash.
    yield Buffer("tail: tiles of logits", tile * (width + FP32 + FP32 + width))
    yield Buffer("tail: tiles of noise", tile * (FP32 + 2 * INT32))
    # The chosen rows of hidden; the soft embedding's sum, the tile's, both rescaled, the result.
    yield Buffer("tail: soft embeddings", tokens * g.hidden_size * (4 * FP32 + 3 * width))
