"""Kernels compiled ahead of time for any chip, without one: what each of them takes of it.

Knows Triton's compiler and what ptxas tells; knows neither launches nor what a kernel computes.
Settings of Triton are the process's: one compilation at a time.
"""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from dgemma.engine.kernels import attention, experts, heads, keep, linear, norms, routing, tail
from dgemma.engine.kernels.chip import Chip
from dgemma.engine.kernels.variant import Variant
from dgemma.errors import ConfigurationError, DgemmaError
from dgemma.geometry import Geometry

# Every module that exports `variants`.
MODULES = (attention, experts, heads, keep, linear, norms, routing, tail)

_DIVISIBLE = [["tt.divisibility", 16]]
_MATRIX = {"tcgen05.mma": "tcgen05", "wgmma.mma_async": "wgmma", "mma.sync": "mma.sync"}


class KernelDoesNotCompile(DgemmaError):
    """Triton or ptxas refuses a kernel; `why` is what they say, of several lines."""

    def __init__(self, variant: Variant, chip: Chip, why: str) -> None:
        super().__init__(
            f"{variant.name} does not compile for compute capability {chip.capability}: {why}"
        )
        self.variant, self.chip, self.why = variant, chip, why


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes. Bytes of stack and spills are those of a thread."""

    arch: str  # "sm_90a"
    registers: int  # of a thread
    shared_bytes: int  # of a program
    tensor_columns: int  # of a program's tensor memory, where the chip has one
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    matrix: str  # instructions: "tcgen05", "wgmma", "mma.sync", several of them, or "none"
    cubin_bytes: int
    warnings: tuple[str, ...] = ()  # ptxas's, of performance that is lost

    @property
    def spills(self) -> bool:
        return self.spill_store_bytes + self.spill_load_bytes > 0


def all_variants(geometry: Geometry, chip: Chip) -> Iterator[Variant]:
    """Everything that an engine launches on `chip`."""
    for module in MODULES:
        yield from module.variants(geometry, chip)


def compile_variant(variant: Variant, chip: Chip) -> Resources:
    """Compiles for `chip`, keeps nothing, and says what it takes.

    KernelDoesNotCompile says why it does not. ConfigurationError where TRITON_INTERPRET was set
    when the kernel was imported: nothing compiles one that is interpreted.
    """
    if not isinstance(variant.kernel, JITFunction):
        raise ConfigurationError(
            f"{variant.name} is interpreted, not compiled: unset TRITON_INTERPRET and start again"
        )
    try:
        return _resources(variant, chip)
    except Exception as error:  # whatever the passes of a compiler raise
        raise KernelDoesNotCompile(variant, chip, str(error).strip()) from error


def _resources(variant: Variant, chip: Chip) -> Resources:
    source = _source(variant)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    with _listening() as log:
        kernel = triton.compile(source, GPUTarget("cuda", chip.capability, 32), options)
    ptx: str = kernel.asm["ptx"]
    told = log.getvalue()
    return Resources(
        arch=_found(r"^\.target (\w+)", ptx),
        registers=int(_found(r"Used (\d+) registers", told)),
        shared_bytes=kernel.metadata.shared,
        tensor_columns=getattr(kernel.metadata, "tmem_size", None) or 0,
        stack_bytes=_sum(r"(\d+) bytes stack frame", told),
        spill_store_bytes=_sum(r"(\d+) bytes spill stores", told),
        spill_load_bytes=_sum(r"(\d+) bytes spill loads", told),
        matrix=" + ".join(name for part, name in _MATRIX.items() if part in ptx) or "none",
        cubin_bytes=len(kernel.asm["cubin"]),
        warnings=tuple(line for line in told.splitlines() if "Potential Performance Loss" in line),
    )


def _source(variant: Variant) -> ASTSource:
    """ValueError where the variant does not name each argument once."""
    names = variant.kernel.arg_names
    given = [*variant.signature, *variant.constants]
    if sorted(given) != sorted(names):
        raise ValueError(
            f"the kernel's arguments are {', '.join(names)}, but {', '.join(given)} are described; "
            "give each a type or a constant"
        )
    return ASTSource(
        fn=variant.kernel,
        signature={name: variant.signature.get(name, "constexpr") for name in names},
        constexprs=dict(variant.constants),
        attrs={
            (place,): _DIVISIBLE
            for place, name in enumerate(names)
            if name in variant.aligned or variant.signature.get(name, "").startswith("*")
        },
    )


@contextmanager
def _listening() -> Iterator[io.StringIO]:
    """What ptxas prints, of compilations that neither read nor fill the user's cache."""
    with (
        tempfile.TemporaryDirectory() as cache,
        knobs.cache.scope(),
        knobs.nvidia.scope(),
        redirect_stdout(io.StringIO()) as log,
    ):
        knobs.cache.dir = cache
        knobs.nvidia.dump_ptxas_log = True
        yield log


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        raise ValueError(f"the compiler's output has no {pattern!r}")
    return found.group(1)


def _sum(pattern: str, text: str) -> int:
    """Over the kernel and what it calls."""
    return sum(map(int, re.findall(pattern, text)))
