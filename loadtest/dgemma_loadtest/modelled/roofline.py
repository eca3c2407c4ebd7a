"""How long a pass takes on a platform, after one published figure each for both kinds of model.

Knows two ways to read these figures, which agree where they were published and part where many
requests share a pass; the truth of a real engine is somewhere there or elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal

from dgemma_loadtest import platforms
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.modelled.network import Network, Work, network
from dgemma_loadtest.platforms import Kind, Platform, Precision

# sum: bytes / bandwidth + operations / (efficiency × peak), nothing overlaps;
# max: overhead × the longer of bytes / bandwidth and operations / peak, all overlaps.
Reading = Literal["sum", "max"]
READINGS: tuple[Reading, ...] = ("sum", "max")
CALIBRATED_ON = "h200"
CALIBRATED_IN: Precision = "fp8"


@dataclass(frozen=True)
class Calibration:
    """`fixed_s` is what a token takes the autoregressive model however little there is to do."""

    reading: Reading
    efficiency: float
    overhead: float
    fixed_s: float


@dataclass(frozen=True)
class Machine:
    """A platform that serves the network in one precision."""

    platform: Platform
    precision: Precision
    calibration: Calibration

    @classmethod
    def of(
        cls, platform: Platform, precision: Precision | None = None, reading: Reading = "sum"
    ) -> Machine:
        """Raises InputError where the platform does not serve that precision."""
        wanted = precision or platform.default_precision
        if wanted not in platform.precisions:
            served = ", ".join(platform.precisions)
            raise InputError(f"precision: got {wanted!r}; {platform.key} serves {served}")
        return cls(platform, wanted, calibrated(reading))

    @classmethod
    def named(cls, name: str, reading: Reading = "sum") -> Machine:
        """`PLATFORM` or `PLATFORM-PRECISION`. Raises InputError."""
        place, _, last = name.rpartition("-")
        if place in platforms.shipped():
            platform = platforms.load(place)
            if last in platform.precisions:
                return cls.of(platform, next(p for p in platform.precisions if p == last), reading)
            raise InputError(
                f"platform: got {name!r}; {place} serves {', '.join(platform.precisions)}"
            )
        return cls.of(platforms.load(name), None, reading)

    @property
    def name(self) -> str:
        return f"{self.platform.key}-{self.precision}"

    @cached_property
    def network(self) -> Network:
        return network()

    def diffusion_s(self, rows: float, denoising: float, context: float) -> float:
        """Of a pass over `rows` canvases with so much context each, some of them denoising."""
        work = self.network.diffusion(self.precision, rows, denoising, context)
        return self._takes(work, self.calibration.overhead)

    def autoregressive_s(self, sequences: float, prompt_tokens: float, context: float) -> float:
        """Of a pass with a token for each sequence, and so many tokens of prompts."""
        work = self.network.autoregressive(self.precision, sequences, prompt_tokens, context)
        return self.calibration.fixed_s + self._takes(work, 1.0)

    def room(self, context: int) -> int:
        """Sequences of so many tokens that fit into memory beside the weights."""
        left = self.platform.memory_bytes - self.platform.head_room_bytes
        left -= self.network.weights[self.precision].total
        return max(0, int(left // self.network.kv_bytes(context)))

    def memory_s(self, work: Work) -> float:
        return work.bytes / self.platform.bandwidth_bytes_per_s

    def arithmetic_s(self, work: Work) -> float:
        return work.bf16 / self.platform.bf16_flops_per_s + work.fp8 / self.platform.fp8_flops_per_s

    def _takes(self, work: Work, overhead: float) -> float:
        if self.calibration.reading == "sum":
            return self.memory_s(work) + self.arithmetic_s(work) / self.calibration.efficiency
        return overhead * max(self.memory_s(work), self.arithmetic_s(work))


@lru_cache(4)
def calibrated(reading: Reading) -> Calibration:
    """After what was published of H200 in FP8 with one request, of each kind of model."""
    platform = platforms.load(CALIBRATED_ON)
    floor = Machine(platform, CALIBRATED_IN, Calibration("sum", 1.0, 1.0, 0.0))
    work = floor.network.diffusion(CALIBRATED_IN, 1, 1, 0)
    memory, arithmetic = floor.memory_s(work), floor.arithmetic_s(work)
    took = _published_s(platform, "diffusion")
    found = Calibration(reading, arithmetic / (took - memory), took / max(memory, arithmetic), 0.0)
    token_s = Machine(platform, CALIBRATED_IN, found).autoregressive_s(1, 0, 0)
    return replace(found, fixed_s=_published_s(platform, "autoregressive") - token_s)


def _published_s(platform: Platform, kind: Kind) -> float:
    """Of a pass; other software pays a pass of its own for the commit of a canvas."""
    found = next(
        p
        for p in platform.published
        if p.model == kind and p.precision == CALIBRATED_IN and (p.steps or kind != "diffusion")
    )
    if kind == "autoregressive":
        return 1 / found.tokens_per_s
    return network().canvas_tokens / found.tokens_per_s / ((found.steps or 0) + 1)
