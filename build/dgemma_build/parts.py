"""What a target's builder hands over: the files it wrote and what executes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dgemma.manifest import Binding, Link, Runtime

Progress = Callable[[str, int, int], None]  # what, done, total


@dataclass(frozen=True)
class Parts:
    """Files of an engine directory, by name, and what its manifest says of them."""

    runtime: Runtime
    graph: str = ""  # as in `Manifest`
    weights: tuple[str, ...] = ()
    bindings: tuple[Binding, ...] = ()
    tail: tuple[str, ...] = ()  # graphs of the tail, where it does not run in torch
    index: str | None = None  # as in `Manifest`
    others: tuple[str, ...] = ()  # such as a build log
    profiles: tuple[Mapping[str, tuple[int, int]], ...] = ()  # as in `Manifest`
    constants: str | None = None  # as in `Manifest`
    chain: tuple[Link, ...] = ()  # as in `Manifest`
    tools: tuple[str, ...] = ("torch", "onnx")  # distributions whose versions made it
