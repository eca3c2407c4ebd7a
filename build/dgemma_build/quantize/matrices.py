"""The linear layers inside the network's parameters.

Knows that a bank of experts is many matrices, in which order, and what each is called where a
checkpoint has them one by one; knows nothing of formats.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Matrix:
    """A linear layer: its module's name, and its rows and columns."""

    module: str
    rows: int
    columns: int


def matrices(name: str, shape: tuple[int, ...]) -> list[Matrix]:
    """The linear layers of a parameter, in the order of their rows in it."""
    if ".experts." not in name:
        return [Matrix(name.removesuffix(".weight"), *shape)]
    bank, _, part = name.rpartition(".")
    experts, rows, columns = shape
    parts = ["gate_proj", "up_proj"] if part == "gate_up_proj" else [part]  # gate rows first
    return [
        Matrix(f"{bank}.{expert}.{part}", rows // len(parts), columns)
        for expert in range(experts)
        for part in parts
    ]
