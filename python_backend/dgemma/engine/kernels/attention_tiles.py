"""How the attention of a layer is laid out on a chip.

Knows head sizes and shared memory; a plain table, so that every process makes the same choice.
"""

from __future__ import annotations

from dataclasses import dataclass

from dgemma.engine.kernels.chip import Chip
from dgemma.errors import ConfigurationError

# Keys of the shortest split, and the most splits. What one canvas sees in a sliding layer, 1279
# keys, is four splits of 320: 4 tiles x 8 groups x 4 = 128 programs of 128 lines for one row. With
# 2K of context a full layer has 32 tiles x 2 groups x 4. More splits than that only add traffic of
# partial results, which is why they grow with a long context instead of becoming more.
SLIDING_SPLITS = (256, 4)
FULL_SPLITS = (512, 8)


@dataclass(frozen=True)
class Tiles:
    """Of one kind of layer; powers of two."""

    lines: int  # queries times the heads that share their keys
    keys: int  # of a block
    least: int  # blocks of a split, where a row has as many
    most: int  # splits
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, chip: Chip, head_dim: int, window: int | None) -> Tiles:
        """ConfigurationError for heads that no layout holds."""
        fitting = [size for size in _LAYOUTS if head_dim <= size]
        if not fitting:
            raise ConfigurationError(
                f"head_dim {head_dim} has no layout of attention; at most {max(_LAYOUTS)}"
            )
        lines, keys, warps, stages = _LAYOUTS[min(fitting)][_kind(chip)]
        least, most = SLIDING_SPLITS if window else FULL_SPLITS
        return cls(lines, keys, least // keys, most, warps, stages)

    def splits(self, blocks: int) -> int:
        """Of so many blocks, as the kernels count them."""
        return min(max(blocks // self.least, 1), self.most)


def _kind(chip: Chip) -> str:
    if chip.has_wide_mma:
        return "wide"
    return "large" if chip.shared_bytes > 128 * 1024 else "small"


# Lines, keys, warps, stages by the largest head. Lines fill the registers with their share of the
# result; blocks of keys are small because three more than the one at work must be in shared memory
# for loads to run beside products: with two stages a block is asked for when it is needed.
_LAYOUTS = {
    256: {"wide": (128, 32, 8, 4), "large": (128, 32, 8, 3), "small": (64, 16, 4, 4)},
    512: {"wide": (64, 16, 8, 4), "large": (64, 16, 8, 4), "small": (32, 16, 8, 3)},
}
