"""What a target's builder hands over: the files it wrote and what executes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dgemma.manifest import Binding, Runtime

Progress = Callable[[str, int, int], None]  # what, done, total


@dataclass(frozen=True)
class Parts:
    """Files of an engine directory, by name, and what its manifest says of them."""

    runtime: Runtime
    graph: str
    weights: tuple[str, ...]
    bindings: tuple[Binding, ...]
    others: tuple[str, ...] = ()  # such as a build log
    weights_are_constants: bool = False
