"""What wrappers launch, to compare with what is compiled ahead of time; nothing runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dgemma.engine.kernels.operands import FP8
from dgemma.engine.kernels.variant import Variant

_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    FP8: "*fp8e4nv",
    torch.uint8: "*u8",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
}


@dataclass(frozen=True)
class Launch:
    """A kernel, its arguments and its options by name."""

    kernel: Any
    arguments: Mapping[str, Any]
    options: Mapping[str, Any]

    def is_of(self, variant: Variant) -> bool:
        """Whether its types and constants are the variant's; integers may be either."""
        if self.kernel is not variant.kernel:
            return False
        if self.options.get("num_warps", 4) != variant.num_warps:
            return False
        return all(
            variant.constants[name] == value
            if name in variant.constants
            else variant.signature.get(name) == _type(value)
            for name, value in self.arguments.items()
        ) and self.arguments.keys() == {*variant.constants, *variant.signature}


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return _TYPES[value.dtype]
    return {int: "i32", float: "fp32"}.get(type(value), "constexpr")


def recording(kernel: Any, found: list[Launch]) -> Any:
    """In the place of `kernel`: its launches are noted and not run."""
    return _Recording(kernel, found)


@dataclass(frozen=True)
class _Recording:
    kernel: Any
    found: list[Launch]

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*given: Any, **named: Any) -> None:
            names = self.kernel.arg_names
            arguments = dict(zip(names, given, strict=False))
            arguments |= {key: value for key, value in named.items() if key in names}
            options = {key: value for key, value in named.items() if key not in names}
            self.found.append(Launch(self, arguments, options))

        return launch
