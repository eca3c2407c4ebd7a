"""Floors, and published figures held against them.

A floor is bytes / bandwidth: what no software can beat, and no forecast. Arithmetic is not in it:
with more and more canvases in a pass that takes over.
"""

from __future__ import annotations

from dataclasses import dataclass

from dgemma.errors import ConfigurationError
from dgemma.roofline.sizes import Model, PassBytes, pass_bytes
from dgemma.targets import Gpu, Published

# The fewest steps of any published figure: assumed where a source is silent, so that the share of
# the floor that such a figure reached is at least what is said here.
UNSTATED_STEPS = 16


@dataclass(frozen=True)
class Comparison:
    """A published figure as a share of the speed that its GPU's bandwidth allows."""

    published: Published
    steps: int
    ms_per_pass: float
    fraction_of_floor: float
    exact: bool  # False: the source leaves the steps or the precision open


def floor_ms(moved: PassBytes, gpu: Gpu) -> float | None:
    """Bytes / bandwidth; None where the bandwidth is not known."""
    bandwidth = gpu.bandwidth_bytes_per_s
    return None if bandwidth is None else 1e3 * moved.floor / bandwidth


def compare(model: Model, gpu: Gpu, published: Published) -> Comparison:
    """At the floor of empty contexts; other software pays a pass of its own for the commit."""
    steps = published.steps or UNSTATED_STEPS
    tokens = published.requests * model.geometry.canvas_length
    ms = 1e3 * tokens / published.tokens_per_s / (steps + 1)
    floor = floor_ms(pass_bytes(model, published.requests, 0), gpu)
    if floor is None:
        raise ConfigurationError(f"{gpu.name}: a published speed needs bandwidth_bytes_per_s")
    exact = published.steps is not None and published.precision_stated
    return Comparison(published, steps, ms, floor / ms, exact)
