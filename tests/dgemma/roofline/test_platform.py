from __future__ import annotations

import pytest

from dgemma.errors import ConfigurationError
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.roofline.platform import GOAL, Platform
from dgemma.targets import load_targets

PUBLISHED = named_geometry(DEFAULT)


def named(name: str) -> Platform:
    return Platform.named(name, PUBLISHED)


@pytest.mark.parametrize(("name", "ms"), [("h100-fp8", 14.94), ("h200-fp8", 11.69)])
def test_a_pass_takes_what_was_published_of_it(name: str, ms: float) -> None:
    """16 steps and the commit, one canvas of other software, and no context to speak of."""
    assert 1e3 * named(name).pass_s([0], 1) == pytest.approx(ms, abs=0.01)


def test_where_nothing_exact_is_published_it_is_the_worst_that_is() -> None:
    worst = max(named(name).overhead for name in ("h100-fp8", "h200-fp8"))
    for name in ("dgx-spark-nvfp4", "dgx-station-fp8", "rtx-5090-int4", "h100-bf16"):
        assert named(name).overhead == worst
    assert worst == pytest.approx(2.04, abs=0.005)


def test_the_calibration_is_part_of_the_name() -> None:
    assert named("h100-fp8").name == named("h100-fp8-published").name == "h100-fp8-published"
    goal, floor = named("dgx-spark-nvfp4-goal"), named("dgx-spark-nvfp4-floor")
    assert (goal.gpu.platform, goal.precision, goal.calibration) == ("dgx-spark", "nvfp4", "goal")
    assert (goal.overhead, floor.overhead) == (GOAL, 1.0)
    assert goal.pass_s([512], 1) == pytest.approx(GOAL * floor.pass_s([512], 1))


def test_few_canvases_wait_for_memory_and_many_for_arithmetic() -> None:
    h100 = named("h100-fp8-floor")
    for rows, bound in ((1, h100.memory_s), (32, h100.arithmetic_s)):
        contexts = [2048] * rows
        assert h100.pass_s(contexts, rows) == bound(contexts, rows)
    assert 1e3 * h100.memory_s([0], 1) == pytest.approx(8.2, abs=0.05)
    assert 1e3 * h100.arithmetic_s([0], 1) == pytest.approx(1.6, abs=0.1)


def test_a_chunk_of_a_prompt_costs_less_than_a_canvas() -> None:
    spark = named("dgx-spark-fp8")
    assert spark.pass_s([0], 0) < spark.pass_s([0], 1)
    assert spark.pass_s([0] * 17, 16) < spark.pass_s([0] * 17, 17)


def test_a_copy_is_read_and_written() -> None:
    assert named("h100-fp8").copy_s(3_350_000_000) == pytest.approx(2e-3)


def test_what_is_kept_in_memory() -> None:
    h100 = named("h100-fp8")
    few, many = (h100.needs(n, 8192) for n in (1, 2))
    weights, one = few.values()
    assert weights == h100.model.weight_bytes
    assert one / 1e9 == pytest.approx(0.38, abs=0.005)
    assert list(many.values()) == [weights, 2 * one]


def test_every_precision_of_every_platform_has_a_pass() -> None:
    platforms = {g.platform: t for t in load_targets().values() for g in t.gpus if g.platform}
    wanted = {"h100", "h200", "dgx-spark", "dgx-station", "rtx-5090", "rtx-4090"}
    assert wanted == set(platforms)
    for platform, target in platforms.items():
        for precision in target.precisions:
            made = named(f"{platform}-{precision}")
            assert 0 < made.pass_s([0], 1) < made.pass_s([131072] * 8, 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100", r"got 'h100'; expected: PLATFORM-PRECISION, .* h100 in bf16, fp8, int4;"),
        ("a100-bf16", r"got 'a100-bf16'; expected"),
        ("h100-fp8-best", r"got 'h100-fp8-best'; expected: .*-published, -goal, -floor, -h200"),
        ("h100-nvfp4", r"got 'h100-nvfp4'; h100 serves bf16, fp8, int4"),
        ("", r"got ''; expected"),
    ],
)
def test_a_name_that_means_nothing_is_refused_with_those_that_do(name: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^DGEMMA_SIMULATE: {message}"):
        named(name)


# Set by H200 in FP8 alone


def rate(platform: Platform, steps: int) -> float:
    """Tokens per second of one request with other software, which pays a pass for the commit."""
    return 256 / (steps + 1) / platform.pass_s([0], 1)


def test_set_by_h200_alone_h100_is_predicted_within_15_percent() -> None:
    assert rate(named("h200-fp8-h200"), 16) == pytest.approx(1288)
    assert rate(named("h100-fp8-h200"), 16) == pytest.approx(1008, rel=0.15)
    assert named("h100-fp8-h200").rule == "bytes / bandwidth + operations / (0.27 × peak)"


@pytest.mark.parametrize(("calibration", "holds"), [("h200", True), ("published", False)])
def test_and_so_is_what_four_requests_gain_on_spark(calibration: str, holds: bool) -> None:
    """Published: 143 to 158 tokens/s with one request, 257 with four."""
    spark = named(f"dgx-spark-nvfp4-{calibration}")
    gain = 4 * spark.pass_s([512], 1) / spark.pass_s([512] * 4, 4)
    assert (0.85 * 1.63 <= gain <= 1.15 * 1.80) is holds
