from __future__ import annotations

import pytest

from dgemma_loadtest.report.svg.scale import Scale, linear, logarithmic


def test_places_run_from_end_to_end() -> None:
    assert [Scale(0, 10).at(v) for v in (0, 5, 10)] == [0, 0.5, 1]
    assert [Scale(1, 100, log=True).at(v) for v in (1, 10, 100)] == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0, 1), [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (Scale(0, 3200), [0, 1000, 2000, 3000]),
        (Scale(0.9, 12, log=True), [1, 2, 5, 10]),
        (Scale(1e-3, 1e3, log=True), [10.0**k for k in range(-3, 4)]),
    ],
)
def test_ticks_are_round_and_inside(scale: Scale, ticks: list[float]) -> None:
    assert scale.ticks(5) == pytest.approx(ticks)


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [2.0, 7.0]])
def test_a_scale_reaches_every_value_and_has_room(values: list[float]) -> None:
    for made in (linear(values), logarithmic(values)):
        assert made.low < made.high
        assert len(made.ticks()) >= 2
        for value in values:
            if value > 0 or not made.log:
                assert 0 <= made.at(value) <= 1
