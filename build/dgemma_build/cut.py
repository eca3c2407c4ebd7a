"""An emitted graph taken apart into its layers.

Knows which nodes belong to a layer (by what they are computed from) and what passes from one layer
to the next; knows nothing of what a layer computes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

from onnx import GraphProto, NodeProto

from dgemma.engine.graph import OF_LAYER, ROW_INPUTS, TOKENS

BEFORE = -1  # in place of a layer's index: what is computed without any layer


@dataclass(frozen=True)
class Cut:
    """A graph's nodes by layer, in their order."""

    before: list[NodeProto]
    layers: list[list[NodeProto]]
    after: list[NodeProto]
    residual: list[str]  # the value that enters each layer, and the one that leaves the last
    owner: dict[str, int]  # the layer of each value; BEFORE, or their number for what comes after
    stack: str | None  # what joins one value of every layer, where there is such a node


class _Node(NamedTuple):
    op_type: str
    input: tuple[str, ...]
    output: tuple[str, ...]


def cut(graph: GraphProto, depth: int) -> Cut:
    """Take the graph of a network of `depth` layers apart.

    A node belongs to the last layer whose weights or pools it is computed from; but what follows
    from one layer's result alone, such as a cast of it, belongs to the next. Raises ValueError
    where anything else that was computed from weights passes between layers.
    """
    stack = _stack(graph)
    owner = {value.name: layer_of(value.name) for value in graph.input}
    owner["norm.weight"] = depth  # the network's last norm is what comes after the layers
    # Indices, masks and rotary tables may serve many layers; what came from weights may not.
    weighed = {name for name in owner if name not in (*ROW_INPUTS, TOKENS, "room")}
    weighed -= {name for name in owner if name.startswith("pool_")}
    for node in graph.node:
        newest = max((owner.get(name, BEFORE) for name in node.input), default=BEFORE)
        owner |= dict.fromkeys(node.output, depth if node.output[0] == stack else newest)
        if not weighed.isdisjoint(node.input):
            weighed.update(node.output)
    # Plain tuples: reading a field of protobuf takes longer than all that is done with it here.
    plain = [_Node(n.op_type, tuple(n.input), tuple(n.output)) for n in graph.node]
    residual = [_entrance(plain, owner, weighed, stack, layer) for layer in range(depth + 1)]

    parts: dict[int, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        parts[owner[node.output[0]]].append(node)
    layers = [parts[layer] for layer in range(depth)]
    return Cut(parts[BEFORE], layers, parts[depth], residual, owner, stack)


def layer_of(name: str) -> int:
    """The layer whose input or output of the graph is called `name`, or BEFORE."""
    match = OF_LAYER.match(name)
    return int(match[2]) if match else BEFORE


def renamed(value: str, layer: int) -> str:
    """What a layer's `value` is called in the layer `layer`."""
    if layer_of(value) == BEFORE:
        return f"layers.{layer}/{value}"
    return OF_LAYER.sub(rf"\g<1>.{layer}", value, count=1)


def _stack(graph: GraphProto) -> str | None:
    """What joins the loads of all layers: the first Concat on the way up from `load`."""
    producers = {value: node for node in graph.node for value in node.output}
    node = producers.get("load")
    while node is not None and node.op_type != "Concat":
        node = producers.get(node.input[0]) if node.input else None
    return None if node is None else node.output[0]


def _entrance(
    nodes: list[_Node], owner: dict[str, int], weighed: set[str], stack: str | None, layer: int
) -> str:
    """The one value that `layer` and what comes after it get from before; `owner` is corrected."""

    def crossing() -> list[str]:
        read = {
            value
            for node in nodes
            if owner[node.output[0]] >= layer and node.output[0] != stack
            for value in node.input
        }
        made = (v for node in nodes for v in node.output if owner[node.output[0]] < layer)
        return [value for value in made if value in read and value in weighed]

    # Where all that comes after reads a cast, the residual stream is what was cast.
    producers = {value: node for node in nodes for value in node.output}
    entrance = crossing()[0]
    while producers[entrance].op_type == "Cast":
        entrance = producers[entrance].input[0]
    follows = {entrance}
    for node in nodes:
        if owner[node.output[0]] == layer - 1 and not follows.isdisjoint(node.input):
            follows.update(node.output)
            owner |= dict.fromkeys(node.output, layer)
    if (passing := crossing()) != [entrance]:
        raise ValueError(f"more than the residual stream enters layer {layer}: {passing}")
    return entrance
