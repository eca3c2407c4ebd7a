"""What a model that is set by H200 in FP8 alone says of figures that others published."""

from __future__ import annotations

import pytest

from dgemma_loadtest import platforms
from dgemma_loadtest.evaluate.publications import LIMIT, Prediction, predictions, spark_ratio
from dgemma_loadtest.modelled.roofline import Machine, calibrated


@pytest.fixture(scope="module")
def found() -> list[Prediction]:
    return [p for p in predictions(platforms.chosen("all")) if p.reading == "sum"]


def test_it_is_set_by_h200_alone() -> None:
    h200 = Machine.named("h200-fp8")
    assert 256 / 17 / h200.diffusion_s(1, 1, 0) == pytest.approx(1288)
    assert 1 / h200.autoregressive_s(1, 0, 0) == pytest.approx(213)
    assert calibrated("sum").efficiency == pytest.approx(0.271, abs=0.001)


def test_h100_in_fp8_is_predicted_within_15_percent(found: list[Prediction]) -> None:
    h100 = next(p for p in found if p.platform == "h100" and p.published == (1008, 1008))
    assert h100.agrees and not h100.calibrated
    assert h100.predicted[0] == pytest.approx(1008, rel=LIMIT)
    assert h100.off == pytest.approx(0.054, abs=0.002)


def test_four_requests_on_spark_are_predicted_within_15_percent() -> None:
    ratio = spark_ratio("sum")
    assert (1 - LIMIT) * 1.63 <= ratio.predicted[0] <= (1 + LIMIT) * 1.80
    assert ratio.agrees


def test_the_other_reading_does_not_explain_spark_and_says_so() -> None:
    assert spark_ratio("max").agrees is False
    assert spark_ratio("max").predicted[0] > 3


def test_autoregressive_decoding_on_h100_is_predicted(found: list[Prediction]) -> None:
    token = next(p for p in found if p.platform == "h100" and p.published == (197, 197))
    assert token.agrees and abs(token.off) < 0.02


def test_elsewhere_a_range_over_steps_and_no_agreement_is_claimed(found: list[Prediction]) -> None:
    judged = {(p.platform, p.what) for p in found if p.agrees is not None}
    assert judged == {
        ("h100", "one request, fp8, 16 steps"),
        ("h100", "one request, fp8, autoregressive"),
        ("h200", "one request, fp8, 16 steps"),
        ("h200", "one request, fp8, autoregressive"),
        ("dgx-spark", "four requests over one, NVFP4"),
    }
    for prediction in found:
        if prediction.agrees is None:
            low, high = prediction.predicted
            assert high / low == pytest.approx(49 / 9)
