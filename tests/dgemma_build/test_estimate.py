from __future__ import annotations

from dataclasses import replace

import pytest

from dgemma.errors import ConfigurationError
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.roofline.published import floor_ms
from dgemma.roofline.sizes import Model, pass_bytes
from dgemma.targets import Gpu, load_targets
from dgemma_build.buffers import buffers, total
from dgemma_build.envelope import Envelope
from dgemma_build.estimate import (
    Estimate,
    Question,
    consumer_bar,
    estimate,
    estimates,
    this_host,
)
from dgemma_build.rendering import bar_line

PUBLISHED = named_geometry(DEFAULT)
TARGETS = load_targets()
GPUS = {gpu.name: (target, gpu) for target in TARGETS.values() for gpu in target.gpus}


def ask(gpu: str, precision: str, question: Question | None = None) -> Estimate:
    return estimate(*GPUS[gpu], precision, question or Question(PUBLISHED))


# Floors


@pytest.mark.parametrize(
    ("gpu", "bf16", "fp8", "nvfp4", "int4"),
    [
        ("H100 80 GB", "15.6", "8.2", "5.8", "4.8"),
        ("H200", "10.9", "5.8", "4.0", "3.3"),
        ("DGX Spark GB10", "191", "101", "71", "59"),
        ("DGX Station GB300", "7.3", "3.9", "2.7", "2.3"),
        ("GB300, server", "6.5", "3.5", "2.4", "2.0"),
        ("RTX 5090", "29.1", "15.4", "10.8", "8.9"),
    ],
)
def test_the_floors_of_one_canvas(gpu: str, bf16: str, fp8: str, nvfp4: str, int4: str) -> None:
    """As they were computed independently, for a context of up to a sliding window."""
    expected = {"bf16": bf16, "fp8": fp8, "nvfp4": nvfp4, "int4": int4}
    for precision, printed in expected.items():
        model = Model.of(PUBLISHED, precision, "all" if precision == "int4" else None)
        low, high = (floor_ms(pass_bytes(model, 1, n), GPUS[gpu][1]) for n in (0, 1024))
        assert low is not None and high is not None
        rounding = 0.5 * 10.0 ** -len(printed.partition(".")[2])
        assert low - rounding <= float(printed) <= high + rounding, (precision, low, high)


def test_context_is_read_too() -> None:
    empty, long = (ask("H100 80 GB", "fp8", Question(PUBLISHED, n)) for n in (1, 262144))
    assert empty.floor_ms is not None and long.floor_ms is not None
    assert (long.floor_ms - empty.floor_ms) * 3.35e9 == pytest.approx(5.57e9, rel=0.01)


def test_what_copying_contexts_costs() -> None:
    e = ask("H100 80 GB", "fp8", Question(PUBLISHED, 8192, rows=32))
    assert e.gather_ms == pytest.approx(1e3 * e.moved.gather / 3.35e12)
    assert e.moved.gather == 2 * e.moved.kv


def test_no_bandwidth_no_floor() -> None:
    e = estimate(TARGETS["cpu"], this_host(), "int4", Question(PUBLISHED))
    assert (e.floor_ms, e.gather_ms, e.tokens_per_s) == (None, None, {})


# Tokens per second


def test_a_canvas_costs_its_steps_for_its_commit_is_fused() -> None:
    e = ask("H100 80 GB", "fp8", Question(PUBLISHED, steps=(16, 48)))
    assert e.floor_ms is not None
    assert e.tokens_per_s[16] == pytest.approx(256 / (16 * e.floor_ms / 1e3))
    assert e.tokens_per_s[16] == pytest.approx(3 * e.tokens_per_s[48])


def test_slots_share_a_pass() -> None:
    one, many = (ask("H100 80 GB", "fp8", Question(PUBLISHED, 1, rows=n)) for n in (2, 32))
    assert many.tokens_per_s[16] == pytest.approx(16 * one.tokens_per_s[16], rel=0.01)


# Published figures


@pytest.mark.parametrize(("gpu", "ms", "share"), [("H100 80 GB", 14.9, 0.55), ("H200", 11.7, 0.49)])
def test_a_figure_whose_steps_are_stated(gpu: str, ms: float, share: float) -> None:
    """Sixteen steps and the commit: seventeen passes of other software, at half the floor."""
    figure = ask(gpu, "fp8").comparisons[0]
    assert (figure.steps, figure.exact) == (16, True)
    assert figure.ms_per_pass == pytest.approx(ms, abs=0.05)
    assert figure.fraction_of_floor == pytest.approx(share, abs=0.005)


def test_a_figure_that_leaves_steps_open_is_marked() -> None:
    figures = ask("DGX Spark GB10", "nvfp4").comparisons
    assert [c.published.tokens_per_s for c in figures] == [150, 158, 257]
    assert not any(c.exact for c in figures)
    floor = floor_ms(pass_bytes(Model.of(PUBLISHED, "nvfp4"), 1, 0), GPUS["DGX Spark GB10"][1])
    assert floor is not None
    assert figures[0].fraction_of_floor == pytest.approx(150 * 17 * floor / 256e3)


def test_a_figure_of_several_requests_is_of_a_pass_they_share() -> None:
    together = ask("DGX Spark GB10", "nvfp4").comparisons[2]
    assert together.published.requests == 4
    assert together.ms_per_pass == pytest.approx(1e3 * 4 * 256 / 257 / 17)


def test_a_figure_stands_beside_its_own_precision() -> None:
    assert ask("RTX 5090", "nvfp4").comparisons
    assert not ask("RTX 5090", "fp8").comparisons


def test_no_figure_beats_its_floor() -> None:
    found = estimates(list(TARGETS.values()), Question(PUBLISHED))
    shares = [c.fraction_of_floor for e in found for c in e.comparisons]
    assert len(shares) == 9
    assert all(0 < share < 1 for share in shares)


def test_a_figure_without_a_bandwidth_is_refused() -> None:
    target, gpu = GPUS["H200"]
    blind = gpu.model_copy(update={"bandwidth_bytes_per_s": None})
    with pytest.raises(ConfigurationError, match="H200: a published speed needs bandwidth"):
        estimate(target, blind, "fp8", Question(PUBLISHED))


# What fits


@pytest.mark.parametrize(
    ("gpu", "precision", "fits"),
    [
        ("RTX 4090", "fp8", False),
        ("RTX 4090", "int4", True),
        ("RTX 5090", "fp8", True),
        ("RTX 5090", "bf16", False),
        ("H100 80 GB", "bf16", True),
        ("DGX Spark GB10", "bf16", True),
    ],
)
def test_whether_a_slot_fits(gpu: str, precision: str, fits: bool) -> None:
    e = ask(gpu, precision)
    assert e.fits is fits
    assert (e.slots > 0) is fits
    assert bool(e.supported) is fits
    assert e.used_bytes == total(e.buffers)


def test_slots_and_supported_shapes_are_the_most_that_fit() -> None:
    e = ask("RTX 4090", "int4")
    model = Model.of(PUBLISHED, "int4")

    def fits(slots: int, context: int) -> bool:
        return total(buffers(model, Envelope.of_slots(slots, context))) <= e.gpu.usable_bytes

    assert 1 < e.slots < e.target.max_rows // 2
    assert fits(e.slots, 8192) and not fits(e.slots + 1, 8192)
    assert len(e.supported) > 1
    for rows, context in e.supported:
        assert fits(rows // 2, context)
        assert context == e.target.max_context or not fits(rows // 2, context + 128)
    assert [rows for rows, _ in e.supported] == sorted(rows for rows, _ in e.supported)
    assert len({context for _, context in e.supported}) == len(e.supported)


def test_an_engine_has_no_more_rows_and_context_than_its_target_says() -> None:
    e = ask("H200", "fp8")
    assert e.supported == [(e.target.max_rows, e.target.max_context)]
    assert e.slots == e.target.max_rows // 2


def test_the_hosts_share_of_unified_memory_is_not_the_engines() -> None:
    target, gpu = GPUS["DGX Spark GB10"]
    crowded = gpu.model_copy(update={"head_room_bytes": gpu.memory_bytes - 20_000_000_000})
    assert not estimate(target, crowded, "fp8", Question(PUBLISHED)).fits
    assert estimate(target, crowded, "int4", Question(PUBLISHED)).fits


def test_rows_decide_the_slots() -> None:
    for rows, slots in ((1, 1), (2, 1), (5, 2), (32, 16)):
        envelope = ask("H200", "fp8", Question(PUBLISHED, rows=rows)).envelope
        assert (envelope.rows, envelope.slots) == (rows, slots)


# The published footprint


@pytest.mark.parametrize("capacity", [None, 48, 400, 512])
def test_the_number_and_the_verdict_agree(capacity: int | None) -> None:
    bar = consumer_bar(PUBLISHED, capacity)
    found = buffers(Model.of(PUBLISHED, "int4", "all"), Envelope(1, 2, 8192, capacity))
    assert bar.used_bytes == total(found)
    assert bar.limit_bytes == 18 * 10**9
    assert bar.holds is (bar.used_bytes <= bar.limit_bytes)
    assert bar.margin_bytes == bar.limit_bytes - bar.used_bytes


def test_the_published_footprint_is_kept_with_room_for_all_tokens_on_one_expert() -> None:
    bar = consumer_bar(PUBLISHED)
    assert (bar.capacity, bar.tokens, bar.even) == (512, 512, 32)
    assert bar.holds and bar.margin_bytes == 18_000_000_000 - bar.used_bytes
    assert consumer_bar(PUBLISHED, 64).margin_bytes > bar.margin_bytes


def test_what_is_over_the_published_footprint_is_said_so() -> None:
    bar = replace(consumer_bar(PUBLISHED), limit_bytes=17_000_000_000)
    assert not bar.holds and bar.margin_bytes < 0
    assert f"over it by {-bar.margin_bytes / 1e9:.2f} GB" in bar_line(bar)


# What is asked


def test_every_gpu_with_every_precision_it_serves() -> None:
    found = estimates(list(TARGETS.values()), Question(PUBLISHED))
    pairs = [(e.gpu.name, e.precision) for e in found]
    assert set(pairs) == {
        (gpu.name, precision)
        for target in TARGETS.values()
        for gpu in (target.gpus if target.on_gpu else (this_host(),))
        for precision in target.precisions
    }
    assert len(pairs) == len(set(pairs))


def test_an_engine_for_any_gpu_is_estimated_on_all_of_them() -> None:
    known = list(TARGETS.values())
    found = estimates([TARGETS["gpu"]], Question(PUBLISHED), known=known)
    pairs = {(e.gpu.name, e.precision) for e in found}
    plans = estimates(known, Question(PUBLISHED))
    compilable = {(e.gpu.name, e.precision) for e in plans if e.target.has_plan}
    older = {(name, "nvfp4") for name in ("RTX 4090", "L40S", "H100 80 GB", "H200")}
    assert pairs == compilable | older
    assert {precision for name, precision in pairs if name == "A100 80 GB"} == {"bf16", "int4"}
    compiled = {(e.gpu.name, e.precision): e for e in plans}
    for e in found:
        if (e.gpu.name, e.precision) in older:  # kernels alone
            continue
        plan = compiled[e.gpu.name, e.precision]
        assert (e.gather_ms, e.floor_ms) == (0, plan.floor_ms) and plan.gather_ms
        # The same weights and pools, and nothing copied out of them.
        assert e.used_bytes < plan.used_bytes
        assert e.comparisons == plan.comparisons


def test_a_precision_that_no_target_serves_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'nvfp4' is not served: sm89 serves bf16, fp8, i"):
        estimates([TARGETS["sm89"]], Question(PUBLISHED), "nvfp4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 0}, "context: got 0; allowed: 1 to 262144"),
        ({"context": 262145}, "context: got 262145"),
        ({"rows": 0}, "rows: got 0"),
        ({"capacity": -1}, "capacity: got -1"),
        ({"steps": (16, 0)}, r"steps: got \[16, 0\]"),
        ({"steps": ()}, r"steps: got \[\]"),
    ],
)
def test_a_question_without_an_answer_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        replace(Question(PUBLISHED), **change)  # type: ignore[arg-type]


def test_this_host_keeps_an_eighth_for_the_rest() -> None:
    host = this_host()
    assert host.unified
    assert host.usable_bytes == pytest.approx(host.memory_bytes * 7 / 8, abs=1)
    assert isinstance(host, Gpu)
