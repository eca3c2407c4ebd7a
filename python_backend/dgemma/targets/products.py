"""Which products an engine is for, and which one a driver's name means.

Knows how names are spelled; knows nothing of machines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from dgemma.engine.kernels.chip import CAPABILITIES, Chip
from dgemma.targets import Gpu, Target


def gpus_for(target: Target, precision: str, known: Iterable[Target]) -> tuple[Gpu, ...]:
    """The GPUs of a target; where that is any GPU, all of the `known` targets'.

    Those that have no kernels, or none for the precision, are left out of these.
    """
    if target.flavour != "torch":
        return target.gpus
    return tuple(gpu for t in known if t.has_plan and _has_kernels(t, precision) for gpu in t.gpus)


def _has_kernels(target: Target, precision: str) -> bool:
    capability = int((target.compute_capability or "0").replace(".", ""))
    return capability in CAPABILITIES and Chip.of(capability).takes(precision)


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
