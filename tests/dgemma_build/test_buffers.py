from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from dgemma.engine.base import Capacity
from dgemma.engine.batch import PassShape, allocate
from dgemma.engine.contexts import Contexts
from dgemma.engine.kv_pool import KVPool
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.geometry import SLIDING, Geometry
from dgemma.roofline.sizes import Model
from dgemma_build.buffers import CUDA_CONTEXT, PASS, Buffer, buffers, scratch, total
from dgemma_build.envelope import Envelope

PUBLISHED = named_geometry(DEFAULT)
INT4, FP8 = Model.of(PUBLISHED, "int4"), Model.of(PUBLISHED, "fp8")


def size(found: Iterable[Buffer], *words: str) -> int:
    """Of all buffers whose names have one of these in them; at least one has."""
    sizes = [b.bytes for b in found if any(word in b.name for word in words)]
    assert sizes, words
    return sum(sizes)


def test_what_stays_counts_and_of_the_phases_the_largest() -> None:
    found = [Buffer("a", 1), Buffer("b", 10, "x"), Buffer("c", 20, "x"), Buffer("d", 25, "y")]
    assert total(found) == 31
    assert total([Buffer("a", 1)]) == 1
    assert total([*found, Buffer("e", 100, PASS)]) == 131
    assert scratch([*found, Buffer("e", 100, PASS)]) == 130


def test_names_are_unique() -> None:
    names = [b.name for b in buffers(INT4, Envelope.of_slots(4, 8192))]
    assert len(names) == len(set(names))


def test_a_slot_has_two_rows() -> None:
    assert Envelope.of_slots(3, 512) == Envelope(slots=3, rows=6, context=512)


@pytest.mark.parametrize("flavour", ["tensorrt", "torch"])
def test_weights_are_there_once(flavour: str) -> None:
    for model in (INT4, FP8):
        found = buffers(model, Envelope.of_slots(8, 8192), flavour)
        assert size(found, "weights: ") == model.weight_bytes
        assert len({b.name for b in found}) == len(found)


def test_kernels_keep_what_a_plan_keeps_and_copy_no_context() -> None:
    short, long = (buffers(INT4, Envelope.of_slots(8, n), "torch") for n in (8192, 32768))
    plan = buffers(INT4, Envelope.of_slots(8, 8192))
    for name in ("KV pools", "canvases", "fresh K and V", "tail: "):
        assert size(short, name) == size(plan, name)
    assert scratch(short) == scratch(long) < scratch(plan)
    assert not [b for b in short if "dequantised" in b.name or "contexts" in b.name]


# What tensorrt-rtx 1.7.1.116 said it would take ("Max Scratch Memory") for graphs of the published
# sizes, of few layers or all, compiled for sm121 (the last of int4 for sm120).


@pytest.mark.parametrize(
    ("precision", "letters", "rows", "context", "capacity", "reported"),
    [
        ("bf16", "SSFF", 2, 8192, 64, 761_832_448),
        ("bf16", "SSFF", 4, 8192, 64, 1_515_340_800),
        ("bf16", "SSFF", 8, 8192, 64, 3_015_296_000),
        ("bf16", "SSFF", 16, 8192, 64, 6_028_461_056),
        ("bf16", "SSFF", 16, 16384, 64, 11_734_811_648),
        ("bf16", "SSFF", 2, 32768, 64, 2_901_713_920),
        ("fp8", "SSFF", 2, 8192, None, 853_617_664),
        ("int4", "SSFF", 2, 8192, None, 1_699_488_768),
        ("int4", "SSFF", 2, 8192, 64, 1_501_848_576),
        ("nvfp4", "SSFF", 2, 8192, 64, 1_500_062_720),
        ("int4", "SSSSSF" * 2, 2, 8192, 64, 1_536_232_448),
        ("int4", "SSFF", 16, 32768, None, 6_395_266_048),
        ("int4", "SSSSSF" * 5, 16, 32768, None, 7_281_443_840),
        ("int4", "SSSSSF" * 5, 2, 8192, None, 1_810_304_000),
        ("fp8", "SSFF", 16, 32768, None, 4_983_964_672),
        ("fp8", "SSSSSF" * 2, 16, 32768, None, 5_268_177_920),
        ("bf16", "SSFF", 16, 32768, 64, 2_668_823_552),
    ],
)
def test_a_pass_takes_no_more_than_is_counted(
    precision: str, letters: str, rows: int, context: int, capacity: int | None, reported: int
) -> None:
    kinds = {"S": PUBLISHED.layers[0], "F": PUBLISHED.layers[-1]}
    geometry = replace(PUBLISHED, layers=tuple(kinds[letter] for letter in letters))
    envelope = Envelope(max(1, rows // 2), rows, context, capacity)
    counted = scratch(buffers(Model.of(geometry, precision), envelope))
    assert reported <= counted
    # Masks are counted as if all forms of them lived through a pass, and fp8 as if unfused.
    assert counted <= 1.25 * reported or (rows, context) == (16, 32768)


def test_attention_of_narrow_heads_is_fused() -> None:
    sliding = [b for b in buffers(INT4, Envelope(1, 2, 8192)) if b.phase == SLIDING]
    assert sliding
    assert not [b for b in sliding if "scores" in b.name or "query head" in b.name]


def test_scores_of_sixteen_rows() -> None:
    found = buffers(INT4, Envelope(8, 16, 8192 - 256))
    assert size(found, "scores in fp32") / 1e9 == pytest.approx(2.1, abs=0.05)


# What the engine on the host really allocates


def test_the_hosts_arrays_are_counted(demo_checkpoint: Path) -> None:
    geometry = Geometry.from_checkpoint(demo_checkpoint)
    envelope = Envelope(slots=3, rows=6, context=512)
    found = buffers(Model.of(geometry, "fp32"), envelope, "onnxruntime")
    pool = KVPool.bytes_for(geometry, envelope.slots, envelope.context)
    assert size(found, "KV pools") == pool
    shape = PassShape(envelope.rows, 3, envelope.context, geometry.sliding_window)
    arrays = allocate(shape, geometry)
    given = sum(array.nbytes for array in arrays.values())
    hidden = arrays["soft"].nbytes
    # But for a few numbers a row, which no table would show.
    assert size(found, "inputs and outputs") == pytest.approx(given + hidden, rel=0.02)
    capacity = Capacity(envelope.slots, envelope.context, envelope.rows)
    assert size(found, "attend to") == Contexts.bytes_for(geometry, capacity)


def test_only_a_gpu_has_a_context_of_cuda() -> None:
    envelope = Envelope.of_slots(1, 8192)
    gpu = buffers(INT4, envelope)
    assert size(gpu, "CUDA context") == CUDA_CONTEXT
    host = buffers(Model.of(PUBLISHED, "int4", flavour="onnxruntime"), envelope, "onnxruntime")
    assert not [b for b in host if "allowance" in b.name]
    # Nor fused kernels.
    assert [b for b in host if b.phase == SLIDING and "scores" in b.name]


# How it grows


@pytest.mark.parametrize("change", [{"slots": 2}, {"rows": 4}, {"context": 16384}])
def test_more_of_anything_takes_more(change: dict[str, int]) -> None:
    envelope = Envelope(1, 2, 8192)
    assert total(buffers(INT4, replace(envelope, **change))) > total(buffers(INT4, envelope))


def test_an_expert_gets_no_more_than_all_tokens_of_a_pass() -> None:
    def places(capacity: int | None) -> int:
        return size(buffers(INT4, Envelope(1, 2, 8192, capacity)), "E x C")

    assert places(None) == places(512) == places(10_000) == 8 * places(64)


def test_the_tail_holds_a_tile_and_never_all_logits() -> None:
    tail = size(buffers(INT4, Envelope.of_slots(1, 8192)), "tail: ")
    assert tail < 256 * 262144 * 4 / 3
