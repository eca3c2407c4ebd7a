"""What wrappers launch at the real geometry is what `variants` says that they do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from dgemma.engine.kernels import experts, linear, routing
from dgemma.engine.kernels.chip import Chip
from dgemma.engine.kernels.operands import FP8, Lines, Weight
from dgemma.engine.kernels.routed import Routed
from dgemma.engine.kernels.tiles import expert_tiles
from dgemma.engine.kernels.variant import Variant
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.precision import BLOCK_SCALE, FORMATS, ROW_SCALE, tensors

GEOMETRY = named_geometry(DEFAULT)
EXPERTS, TOP_K = GEOMETRY.num_experts, GEOMETRY.top_k_experts
HIDDEN, INNER = GEOMETRY.hidden_size, GEOMETRY.moe_intermediate_size
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.uint8: "*u8",
    FP8: "*fp8e4nv",
}


@dataclass(frozen=True)
class Recorder:
    """In a kernel's place: keeps the arguments of its launches by name."""

    kernel: Any
    launches: list[dict[str, Any]] = field(default_factory=list)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*given: Any, **named: Any) -> None:
            assert 0 < grid[0] < 2**31
            names = self.kernel.arg_names
            self.launches.append({**dict(zip(names, given, strict=False)), **named})

        return launch

    def is_described(self, variant: Variant, launch: dict[str, Any]) -> bool:
        described = {
            **variant.signature,
            **variant.constants,
            "num_warps": variant.num_warps,
            "num_stages": variant.num_stages,
        }
        given = {name: _described(value, described.get(name)) for name, value in launch.items()}
        return variant.kernel is self and {"num_stages": 3, **given} == described


def _described(value: Any, wanted: Any) -> Any:
    if isinstance(value, Tensor):
        return TYPES[value.dtype]
    return "i32" if wanted == "i32" and isinstance(value, int) else value


def _check(patch: pytest.MonkeyPatch, module: ModuleType, *kernels: str) -> Callable[[], int]:
    """Kernels of `module` are recorded; the result compares and says how many were launched."""
    recorders = [Recorder(getattr(module, name)) for name in kernels]
    for name, recorder in zip(kernels, recorders, strict=True):
        patch.setattr(module, name, recorder)
    variants = list(module.variants(GEOMETRY, Chip.of(90)))
    assert len({variant.name for variant in variants}) == len(variants)

    def compare() -> int:
        for recorder in recorders:
            for launch in recorder.launches:
                assert sum(recorder.is_described(v, launch) for v in variants) == 1, launch
        return sum(len(recorder.launches) for recorder in recorders)

    return compare


def _meta(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _weight(format: str, *shape: int) -> Weight:
    specs = tensors(FORMATS[format], "p", shape)
    parts = {
        name.removeprefix("p"): _meta(spec.torch_dtype, *spec.shape) for name, spec in specs.items()
    }
    return Weight(FORMATS[format], parts[""], parts.get(BLOCK_SCALE), parts.get(ROW_SCALE))


def _lines(format: str, *shape: int) -> Lines:
    if format == "fp8":
        return Lines(_meta(FP8, *shape), _meta(torch.float32, shape[0]))
    return Lines(_meta(torch.bfloat16, *shape))


formats = pytest.mark.parametrize("format", ["bf16", "fp8", "int4", "nvfp4"])
ROWS = (1, 2, 4, 8, 32)


@formats
def test_experts(monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    compare = _check(monkeypatch, experts, "_gate_up", "_down")
    for tokens in (256 * rows for rows in ROWS):
        routed = Routed(
            *(_meta(torch.float32, tokens, TOP_K), _meta(torch.int32, tokens, TOP_K)),
            *(_meta(torch.int32, tokens * TOP_K), _meta(torch.int32, EXPERTS + 1)),
        )
        gate_up = _weight(format, EXPERTS, 2 * INNER, HIDDEN)
        inner = experts.gate_up(_lines(format, tokens, HIDDEN), gate_up, routed)
        assert inner.shape == (tokens * TOP_K, INNER)
        down = _weight(format, EXPERTS, HIDDEN, INNER)
        out = experts.down(_lines(format, *inner.shape), down, routed)
        assert out.shape == (tokens, TOP_K, HIDDEN)
    assert compare() == 2 * len(ROWS)


@formats
def test_linear(monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    compare = _check(monkeypatch, linear, "_linear", "_gated_linear")
    width = GEOMETRY.intermediate_size
    for lines in (256 * rows for rows in ROWS):
        gated = linear.gated_linear(
            _lines(format, lines, HIDDEN), _weight(format, 2 * width, HIDDEN)
        )
        assert gated.shape == (lines, width)
        down = linear.linear(_lines(format, lines, width), _weight(format, HIDDEN, width))
        assert down.shape == (lines, HIDDEN)
    assert compare() == len(ROWS) * (1 if format == "bf16" else 2)


def test_routing(monkeypatch: pytest.MonkeyPatch) -> None:
    compare = _check(monkeypatch, routing, "_choose", "_sort")
    for tokens in (256 * rows for rows in ROWS):
        routing.route(_meta(torch.bfloat16, tokens, EXPERTS), TOP_K, _meta(torch.float32, EXPERTS))
    assert compare() == 2 * len(ROWS)


def test_most_experts_of_a_canvas_need_one_tile() -> None:
    chip = Chip.of(90)
    tiles = [expert_tiles(256 * rows * TOP_K, EXPERTS, chip).lines for rows in ROWS]
    assert tiles == [32, 64, 128, 128, 128]
