"""A GPU and a precision by name, and how long passes take there.

Knows the roofline (the longer of bytes / bandwidth and operations / peak) and by how much to
exceed it; knows nothing of engines. Nothing here was measured on our software.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from dgemma.errors import ConfigurationError
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.geometry import Geometry
from dgemma.roofline.flops import Arithmetic
from dgemma.roofline.published import Comparison, compare
from dgemma.roofline.sizes import Model, bytes_of, kv_bytes
from dgemma.targets import Gpu, Target, load_targets

VARIABLE = "DGEMMA_SIMULATE"
# What a pass takes more than the roofline: `floor` nothing; `goal` what this software aims at;
# `published` what others' reached on that GPU, or on the one where it was least, with steps and
# precision stated; `h200` what they reached on H200 alone, read as bytes and operations that do not
# overlap, the latter at a share of their peak.
GOAL = 1.25
CALIBRATIONS = ("published", "goal", "floor", "h200")


@dataclass(frozen=True)
class Platform:
    """One GPU that serves one geometry in one precision."""

    target: Target
    gpu: Gpu
    precision: str
    calibration: str
    overhead: float  # a pass takes the roofline times this
    model: Model
    efficiency: float | None = None  # of the peak; a pass takes the sum of both times then

    @classmethod
    def named(cls, name: str, geometry: Geometry) -> Platform:
        """`PLATFORM-PRECISION`, or with `-CALIBRATION` behind it; `published` is the default.

        Raises ConfigurationError that says which exist.
        """
        rest, _, last = name.rpartition("-")
        wanted, calibration = (rest, last) if last in CALIBRATIONS else (name, CALIBRATIONS[0])
        place, _, precision = wanted.rpartition("-")
        found = _platforms()
        if place not in found:
            served = "; ".join(f"{p} in {', '.join(t.precisions)}" for p, (t, _) in found.items())
            raise ConfigurationError(
                f"{VARIABLE}: got {name!r}; expected: PLATFORM-PRECISION, as h100-fp8, or with one "
                f"of {', '.join('-' + c for c in CALIBRATIONS)} behind it; platforms: {served}"
            )
        target, gpu = found[place]
        if precision not in target.precisions:
            raise ConfigurationError(
                f"{VARIABLE}: got {name!r}; {place} serves {', '.join(target.precisions)}"
            )
        model = Model.of(geometry, precision, flavour=target.flavour)
        return cls(
            *(target, gpu, precision, calibration),
            _overhead(calibration, precision, gpu),
            model,
            _efficiency() if calibration == "h200" else None,
        )

    @property
    def name(self) -> str:
        return f"{self.gpu.platform}-{self.precision}-{self.calibration}"

    @cached_property
    def _arithmetic(self) -> Arithmetic:
        return Arithmetic(self.model)

    def memory_s(self, contexts: Sequence[int], denoising: int) -> float:
        """Bytes / bandwidth of a pass over rows with such contexts, some of them denoising."""
        assert self.gpu.bandwidth_bytes_per_s is not None, "a platform has one"
        return bytes_of(self.model, contexts, denoising).floor / self.gpu.bandwidth_bytes_per_s

    def arithmetic_s(self, contexts: Sequence[int], denoising: int) -> float:
        """Operations / peak of the same pass; where there is no unit for fp8, those of BF16 do."""
        gpu, flops = self.gpu, self._arithmetic.of(contexts, denoising)
        assert gpu.bf16_flops_per_s is not None, "a platform has it"
        return flops.bf16 / gpu.bf16_flops_per_s + flops.fp8 / (
            gpu.fp8_flops_per_s or gpu.bf16_flops_per_s
        )

    def pass_s(self, contexts: Sequence[int], denoising: int) -> float:
        """How long the pass takes."""
        memory, arithmetic = (
            self.memory_s(contexts, denoising),
            self.arithmetic_s(contexts, denoising),
        )
        if self.efficiency is not None:
            return memory + arithmetic / self.efficiency
        return self.overhead * max(memory, arithmetic)

    @property
    def rule(self) -> str:
        """How that is worked out, in words."""
        if self.efficiency is not None:
            return f"bytes / bandwidth + operations / ({self.efficiency:.2f} × peak)"
        return f"{self.overhead:.2f} × the roofline"

    def copy_s(self, nbytes: int) -> float:
        """Of bytes that are read and written within the device's memory."""
        assert self.gpu.bandwidth_bytes_per_s is not None, "a platform has one"
        return 2 * nbytes / self.gpu.bandwidth_bytes_per_s

    def needs(self, slots: int, context: int) -> dict[str, int]:
        """Bytes by what takes them: all that is modelled of the device's memory."""
        pools = slots * kv_bytes(self.model, context).total
        return {"weights": self.model.weight_bytes, f"K/V of {slots} slots × {context}": pools}


def _platforms() -> dict[str, tuple[Target, Gpu]]:
    pairs = ((t, gpu) for t in load_targets().values() for gpu in t.gpus)
    return {gpu.platform: (t, gpu) for t, gpu in pairs if gpu.platform is not None}


def _overhead(calibration: str, precision: str, gpu: Gpu) -> float:
    if calibration != "published":
        return GOAL if calibration == "goal" else 1.0
    own = [c for c in _exact(gpu) if c.published.precision == precision]
    every = [c for _, other in _platforms().values() for c in _exact(other)]
    return max(1 / c.fraction_of_floor for c in own or every)


@lru_cache(1)
def _efficiency() -> float:
    """The share of the peak that explains H200's published figure beside the time for its bytes."""
    floor = Platform.named("h200-fp8-floor", named_geometry(DEFAULT))
    (published,) = (c for c in _exact(floor.gpu) if c.published.precision == floor.precision)
    took = 1e-3 * published.ms_per_pass - floor.memory_s([0], 1)
    return floor.arithmetic_s([0], 1) / took


def _exact(gpu: Gpu) -> list[Comparison]:
    """Published figures of the published model whose steps and precision are known."""
    geometry = named_geometry(DEFAULT)
    figures = (compare(Model.of(geometry, p.precision), gpu, p) for p in gpu.published)
    return [figure for figure in figures if figure.exact]
