"""What kernels need to know of a GPU to be laid out for it, by compute capability.

Knows limits that NVIDIA documents (CUDA C++ Programming Guide, Compute Capabilities); measures
nothing and needs no GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from dgemma.errors import ConfigurationError

_KIB = 1024


@dataclass(frozen=True)
class Chip:
    """One compute capability."""

    capability: int  # 90 for 9.0
    shared_bytes: int  # of shared memory that one program can have
    has_fp8: bool  # whether its matrix units multiply e4m3
    has_wide_mma: bool  # wgmma or tcgen05: 64 lines at least, operands from shared memory

    @classmethod
    def of(cls, capability: int) -> Chip:
        """ConfigurationError for a compute capability that no kernel is laid out for."""
        if capability not in _CHIPS:
            known = ", ".join(str(chip) for chip in _CHIPS)
            raise ConfigurationError(
                f"compute capability {capability} has no kernels; known: {known}"
            )
        return _CHIPS[capability]

    def takes(self, precision: str) -> bool:
        """Whether weights of it can be read: codes of fp8 and scales of nvfp4 are e4m3."""
        return self.has_fp8 or precision not in ("fp8", "nvfp4")


_CHIPS = {
    chip.capability: chip
    for chip in (
        Chip(80, 163 * _KIB, has_fp8=False, has_wide_mma=False),
        Chip(89, 99 * _KIB, has_fp8=True, has_wide_mma=False),
        Chip(90, 227 * _KIB, has_fp8=True, has_wide_mma=True),
        Chip(100, 227 * _KIB, has_fp8=True, has_wide_mma=True),
        Chip(103, 227 * _KIB, has_fp8=True, has_wide_mma=True),
        Chip(120, 99 * _KIB, has_fp8=True, has_wide_mma=False),
        Chip(121, 99 * _KIB, has_fp8=True, has_wide_mma=False),
    )
}
CAPABILITIES = tuple(_CHIPS)
