"""Published figures as cells, and what the model says of each, without claiming what it cannot.

Knows which figures leave nothing open; of the others it shows a range over steps beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dgemma_loadtest.evaluate.results import Cell, Figures
from dgemma_loadtest.modelled.roofline import (
    CALIBRATED_IN,
    CALIBRATED_ON,
    READINGS,
    Machine,
    Reading,
)
from dgemma_loadtest.platforms import Platform, Published, load

LIMIT = 0.15
STEPS = (8, 16, 27, 48)  # over which a figure without steps is shown
SPARK_RATIO = (257 / 158, 257 / 143)  # four requests over one, of 143 to 158 tokens/s with one
PROMPT = 512  # tokens before a canvas, where four requests are compared with one


@dataclass(frozen=True)
class Prediction:
    """`agrees` is None where the source leaves open what would have to be known."""

    platform: str
    what: str
    source: str
    reading: Reading
    published: tuple[float, float]  # from, to
    predicted: tuple[float, float]
    unit: str
    agrees: bool | None
    calibrated: bool = False  # agrees because the model is set by it

    @property
    def off(self) -> float:
        """How far the prediction is outside what was published; 0 within."""
        low, high = self.published
        if self.predicted[0] > high:
            return self.predicted[0] / high - 1
        return min(0.0, self.predicted[1] / low - 1)


def cells(platforms: Sequence[Platform]) -> list[Cell]:
    return [_cell(platform, found) for platform in platforms for found in platform.published]


def predictions(platforms: Sequence[Platform]) -> list[Prediction]:
    """Of every published figure, by both readings."""
    return [
        prediction
        for reading in READINGS
        for platform in platforms
        for prediction in _of(platform, reading)
    ]


def spark_ratio(reading: Reading) -> Prediction:
    """Tokens per second of four requests over those of one, in which steps cancel."""
    machine = Machine.of(load("dgx-spark"), "nvfp4", reading)
    ratio = 4 * machine.diffusion_s(1, 1, PROMPT) / machine.diffusion_s(4, 4, PROMPT)
    found = Prediction(
        platform="dgx-spark",
        what="four requests over one, NVFP4",
        source="143 to 158 tokens/s with one request, 257 with four",
        reading=reading,
        published=SPARK_RATIO,
        predicted=(ratio, ratio),
        unit="×",
        agrees=None,
    )
    return _judged(found)


def _of(platform: Platform, reading: Reading) -> Iterator[Prediction]:
    for figure in platform.published:
        if figure.requests == 1:
            yield _single(platform, figure, reading)
    if platform.key == "dgx-spark":
        yield spark_ratio(reading)


def _single(platform: Platform, figure: Published, reading: Reading) -> Prediction:
    machine = Machine.of(platform, figure.precision or platform.default_precision, reading)
    exact = figure.precision is not None and (figure.steps or figure.model == "autoregressive")
    if figure.model == "autoregressive":
        rates = [1 / machine.autoregressive_s(1, 0, 0)]
    else:
        took, canvas = machine.diffusion_s(1, 1, 0), machine.network.canvas_tokens
        steps = (figure.steps,) if figure.steps else STEPS
        rates = [canvas / took / (count + 1) for count in steps]
    said = "" if figure.steps is None else f", {figure.steps} steps"
    if figure.model == "autoregressive":
        said = ", autoregressive"
    elif not figure.steps:
        said = f", {STEPS[0]} to {STEPS[-1]} steps"
    found = Prediction(
        platform=platform.key,
        what=f"one request, {machine.precision}{said}",
        source=f"{figure.system}: {figure.source}",
        reading=reading,
        published=(figure.tokens_per_s, figure.tokens_per_s),
        predicted=(min(rates), max(rates)),
        unit="tokens/s",
        agrees=None,
        calibrated=platform.key == CALIBRATED_ON and machine.precision == CALIBRATED_IN,
    )
    return _judged(found) if exact else found


def _judged(found: Prediction) -> Prediction:
    return Prediction(**{**vars(found), "agrees": abs(found.off) <= LIMIT})


def _cell(platform: Platform, figure: Published) -> Cell:
    return Cell(
        platform=platform.key,
        precision=figure.precision,
        model=figure.model,
        tenancy="single",
        users=figure.requests,
        basis="published",
        how=f"{figure.system}: {figure.source}",
        steps=None if figure.steps is None else f"{figure.steps} fixed",
        figures=Figures(
            tokens_per_s=figure.tokens_per_s,
            tokens_per_s_user=figure.tokens_per_s / figure.requests,
        ),
    )
