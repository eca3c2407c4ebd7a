"""Which product a driver's name means.

Knows how names are spelled; knows nothing of machines.
"""

from __future__ import annotations

import re

from dgemma.targets import Gpu, Target


def is_product(gpu: Gpu, name: str) -> bool:
    """Whether a driver's name of a GPU is that of a product.

    They agree in the words with a digit, sizes of memory left out: `RTX 5090` is `NVIDIA GeForce
    RTX 5090`, `H100 80 GB` is `NVIDIA H100 PCIe`.
    """
    words = re.findall(r"\w+", re.sub(r"\b\d+ GB\b", "", gpu.name))
    marks = {word for word in words if any(c.isdigit() for c in word)}
    return bool(marks) and marks <= set(re.findall(r"\w+", name))


def gpu_of(target: Target, name: str) -> Gpu | None:
    """The target's product of this name; None where none is known by it."""
    return next((gpu for gpu in target.gpus if is_product(gpu, name)), None)
