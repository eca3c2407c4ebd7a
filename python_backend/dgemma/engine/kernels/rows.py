"""The rows of a pass as kernels read them, on the device.

Knows where the tokens of a row stand; knows nothing of what is computed for them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PassRows:
    """R rows of `length` tokens each; all tensors are `[R]`, int32 but for `denoise`.

    The numbers are only in device memory, so that a captured pass can be run for other rows: what
    a launch needs to know of them is a bound that its caller gives. A row with `valid` 0 pads the
    pass: nothing is computed for it.
    """

    length: int
    start: Tensor  # absolute position of the first token
    valid: Tensor  # tokens that are real
    slot: Tensor
    denoise: Tensor  # bool or int8; 0: encode
    partner: Tensor  # row of the same pass whose tokens stand right before this one's, or -1

    @property
    def count(self) -> int:
        return self.start.shape[0]
