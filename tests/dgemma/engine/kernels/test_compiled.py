from __future__ import annotations

from collections.abc import Iterator

import pytest

from dgemma.engine.kernels.chip import CAPABILITIES, Chip
from dgemma.engine.kernels.compiled import all_variants, compile_variant
from dgemma.engine.kernels.variant import Variant
from dgemma.errors import ConfigurationError
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.geometry import Geometry
from dgemma_build.kernels.check import check, tasks

REAL = named_geometry(DEFAULT)
ARCHES = {80: "sm_80", 89: "sm_89"} | {c: f"sm_{c}a" for c in (90, 100, 103, 120, 121)}


def largest(geometry: Geometry, chip: Chip) -> Iterator[Variant]:
    """All kernels, of products the one with the largest tile: `make accept-7` compiles the rest."""
    for variant in all_variants(geometry, chip):
        if not variant.name.endswith(" lines") or variant.name.endswith(" 128 lines"):
            yield variant


def test_every_kernel_fits_every_chip() -> None:
    """Compiled in processes that do not interpret kernels, as those of the tests do."""
    found = check(tasks(largest, REAL, CAPABILITIES))
    assert {one.capability for one in found} == set(CAPABILITIES)
    wrong = [f"{one.capability} {one.kernel}: {one.problem}" for one in found if one.problem]
    assert not wrong, "\n".join(wrong)
    for one in found:
        assert one.resources is not None
        assert one.resources.arch == ARCHES[one.capability]
        assert 0 < one.resources.registers <= 255 and one.resources.cubin_bytes > 0


def test_e4m3_is_left_to_chips_that_multiply_it() -> None:
    types = {
        capability: {
            t for v in all_variants(REAL, Chip.of(capability)) for t in v.signature.values()
        }
        for capability in CAPABILITIES
    }
    assert {c for c, used in types.items() if "*fp8e4nv" in used} == set(CAPABILITIES) - {80}


def test_an_interpreted_kernel_is_refused() -> None:
    variant = next(all_variants(REAL, Chip.of(90)))
    with pytest.raises(
        ConfigurationError, match="is interpreted, not compiled: unset TRITON_INTERPRET"
    ):
        compile_variant(variant, Chip.of(90))


def test_two_kernels_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="90: two kernels are named '"):
        tasks(lambda g, c: [*all_variants(g, c)] * 2, REAL, [90])
