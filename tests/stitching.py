"""What a stitched graph and a full export are compared by: their operations and their outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch

from dgemma.engine.base import Capacity, Row
from dgemma.engine.batch import PassShape, to_arrays
from dgemma.engine.contexts import Contexts
from dgemma.engine.graph import ENTERING, LEAVING, TOKENS, moved, pool_names
from dgemma.engine.kv_pool import FloatArray, KVPool
from dgemma.geometry import FULL, SLIDING, Geometry
from dgemma.model.network import Network
from dgemma_build.chain import Pieces
from dgemma_build.cut import cut

Feeds = dict[str, npt.NDArray[np.generic]]


def kinds(letters: str) -> list[str]:
    """The layer types of a network written as SSF."""
    return [FULL if letter == "F" else SLIDING for letter in letters]


def operations(model: onnx.ModelProto, depth: int) -> list[Counter[str]]:
    """How often each operation occurs before the layers, in each of them, and after them."""
    parts = cut(model.graph, depth)
    return [
        Counter(node.op_type for node in part)
        for part in (parts.before, *parts.layers, parts.after)
    ]


def signature(model: onnx.ModelProto) -> list[tuple[str, int, list[int | None]]]:
    """Name, element type and fixed sizes of every input and output; None where an axis is free."""
    return [
        (
            value.name,
            value.type.tensor_type.elem_type,
            [None if a.dim_param else a.dim_value for a in value.type.tensor_type.shape.dim],
        )
        for value in (*model.graph.input, *model.graph.output)
    ]


def attended(
    rows: Sequence[Row], pool: KVPool, geometry: Geometry, capacity: Capacity
) -> list[FloatArray]:
    """What a share takes for pools: of what the rows attend to, that which `pool` holds."""
    contexts = Contexts(pool, geometry, capacity)
    arrays = contexts.arrays(PassShape.of(rows, geometry, capacity))
    contexts.place(rows, arrays)
    return arrays


def mixed_pass(geometry: Geometry, shared: bool = False) -> Feeds:
    """Prompt chunk, commit with the denoise row behind it, and a first chunk; pools are random.

    With `shared`, for a graph that computes all tokens as a share.
    """
    length, slots, context = geometry.canvas_length, 3, 40
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(geometry.vocab_size, (5, length), generator=generator)
    soft = torch.randn(length, geometry.hidden_size, generator=generator)
    rows = [
        Row(ids[0], 2, 13, 5, False),
        Row(ids[1], 2, 18, length, True, None, 0),
        Row(ids[2], 0, 21, length, True, soft),
        Row(ids[3], 1, 0, length, False),
    ]
    pool = KVPool(geometry, slots, context)
    for array in pool.arrays:
        array[:] = torch.randn(array.shape, generator=generator).numpy()
    capacity = Capacity(slots=slots, context=context, rows=len(rows))
    room = np.arange(len(rows) * length)  # no expert overflows
    feeds: Feeds = {**to_arrays(rows, geometry, capacity), "room": room}
    pools = attended(rows, pool, geometry, capacity) if shared else pool.arrays
    if shared:
        feeds[TOKENS] = np.arange(length)
    return feeds | dict(zip(pool_names(geometry), pools, strict=True))


def weights_of(network: Network) -> Feeds:
    return {name: p.detach().numpy() for name, p in network.named_parameters()}


def outputs(
    model: onnx.ModelProto, network: Network | None, feeds: Feeds
) -> Sequence[npt.NDArray[np.generic]]:
    """What onnxruntime computes of `feeds` and the network's weights, which else are fed too."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    weights = {} if network is None else weights_of(network)
    known = {value.name for value in session.get_inputs()}
    every = {**feeds, **weights}
    result: Sequence[npt.NDArray[np.generic]] = session.run(
        None, {name: array for name, array in every.items() if name in known}
    )
    return result


def run_chain(pieces: Pieces, few: Geometry, periods: int, feeds: Feeds) -> Feeds:
    """What onnxruntime computes of a pass and weights, by the names of the whole network.

    `few` is the period that was taken apart.
    """
    found: Feeds = {}
    loads = []

    def execute(piece: onnx.ModelProto, first: int) -> None:
        given = {moved(value.name, first): value.name for value in piece.graph.input}
        mine = {own: feeds[name] for name, own in given.items() if name in feeds}
        if ENTERING in given:
            mine[ENTERING] = found[LEAVING]
        for value, array in zip(piece.graph.output, outputs(piece, None, mine), strict=True):
            found[moved(value.name, first)] = array

    execute(pieces.before, 0)
    for index in range(periods):
        execute(pieces.layers, index * len(few.layers))
        loads.append(found["load"])
    return found | {"load": np.max(loads)}
