"""Target `cpu`: the emitted graph with its weights as external initialisers for onnxruntime.

Knows how an ONNX graph points into a weight store; knows nothing of GPUs.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto

from dgemma_build.store import Place


def attach_weights(model: onnx.ModelProto, store: str, places: dict[str, Place]) -> None:
    """Turn the graph's weight inputs into initialisers that live in the file `store`.

    A weight that the network has but this graph does not use (none, or an unused scalar) is left
    out. The graph stays as small as it was: no weight is copied into it.
    """
    remaining = []
    for value in model.graph.input:
        place = places.get(value.name)
        if place is None:
            remaining.append(value)
            continue
        tensor = model.graph.initializer.add()
        tensor.name = value.name
        tensor.data_type = value.type.tensor_type.elem_type
        tensor.dims.extend(d.dim_value for d in value.type.tensor_type.shape.dim)
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in (
            ("location", store),
            ("offset", str(place.offset)),
            ("length", str(place.length)),
        ):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, text
    del model.graph.input[:]
    model.graph.input.extend(remaining)
