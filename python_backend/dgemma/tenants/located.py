"""YAML whose values can be found again: which line of the document holds `tenants[1].weight`.

Knows nodes and lines; knows nothing of what the document means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

# The C loader is ten times as fast and holds the interpreter for as much less.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Path = Sequence[str | int]  # keys and indices from the top


@dataclass(frozen=True)
class Problem:
    """What is wrong, and in which line, counted from 1."""

    line: int
    what: str


class Unreadable(Exception):
    """The text is no YAML document, or one that says a thing twice."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.what)
        self.problem = problem


class Document:
    """One YAML document: its `data`, and the lines they stand in."""

    def __init__(self, text: str) -> None:
        """Raises Unreadable."""
        loader = _Loader(text)
        try:
            self._root: Node | None = loader.get_single_node()
            if self._root is not None:
                _refuse_repeated_keys(self._root)
            self.data: Any = None if self._root is None else loader.construct_document(self._root)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = " ".join(part for part in (error.problem, error.context) if part)
            raise Unreadable(Problem(mark.line + 1 if mark else 1, f"not YAML: {what}")) from None
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise Unreadable(Problem(1, f"not YAML: {error}")) from None
        finally:
            loader.dispose()

    def line(self, path: Path) -> int:
        """Where the value is; where it is missing, the innermost value around it."""
        node, line = self._root, 1
        for part in path:
            found = next((child for key, child in _children(node) if key == part), None)
            if found is None:
                break
            node, line = found[1], found[0].start_mark.line + 1
        return line


def _children(node: Node | None) -> Iterator[tuple[str | int, tuple[Node, Node]]]:
    """Key or index of each child; the node that begins it, and its value's node."""
    if isinstance(node, MappingNode):
        for key, value in node.value:
            if isinstance(key, ScalarNode):
                yield key.value, (key, value)
    elif isinstance(node, SequenceNode):
        for index, value in enumerate(node.value):
            yield index, (value, value)


def _refuse_repeated_keys(root: Node) -> None:
    """YAML's loaders would keep the last and say nothing."""
    waiting, seen = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue  # an alias, or a node that contains itself
        seen.add(id(node))
        keys: set[str | int] = set()
        for key, (start, value) in _children(node):
            if key in keys:
                raise Unreadable(Problem(start.start_mark.line + 1, f"{key} is given twice"))
            keys.add(key)
            waiting.append(value)
