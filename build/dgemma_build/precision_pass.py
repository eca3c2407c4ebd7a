"""A precision as a pass over the emitted graph: weights become payloads, scales and dequantisers.

Knows how a graph multiplies by a weight of each format; knows neither how weights are quantised nor
what compiles the graph. One pass serves the fp32 graph for onnxruntime and the BF16 one for GPUs.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from dgemma.errors import ConfigurationError
from dgemma.precision import BLOCK_SCALE, FORMATS, ROW_SCALE, Format, Policy, TensorSpec, tensors

# A payload's element as ONNX counts it: a store packs two of the narrow ones in a byte, in the
# order of ONNX, so the bytes are the same and only the shape differs.
_ELEMENTS = {
    "fp8": TensorProto.FLOAT8E4M3FN,
    "int4": TensorProto.INT4,
    "nvfp4": TensorProto.FLOAT4E2M1,
}
_SCALES = {
    "F32": TensorProto.FLOAT,
    "BF16": TensorProto.BFLOAT16,
    "F8_E4M3": TensorProto.FLOAT8E4M3FN,
}
LARGEST_E4M3 = 448.0
SMALLEST_TOKEN = 1e-12  # in place of the largest value of a token that is all zeros


@dataclass(frozen=True)
class _Product:
    """The one place where a weight is used: `x @ W.T`, of matrices or of banks of them."""

    name: str
    format: Format
    dtype: int  # of the graph
    shape: tuple[int, ...]
    specs: dict[str, TensorSpec]  # of the inputs that take the weight's place, itself first
    transpose: NodeProto
    matmul: NodeProto


def apply_precision(model: onnx.ModelProto, policy: Policy) -> dict[str, str]:
    """Quantise, in place, the weights that `policy` names; returns weight -> format.

    Each becomes the inputs that `dgemma.precision.tensors` lists; weights of other formats keep the
    graph's type. fp8 rounds a product's activations too, each token by its own largest value.
    Raises ConfigurationError naming a weight that is used in any other way than `x @ W.T`, or a
    rule of the policy that no weight of the graph matches; the graph is as it was then.
    """
    products = _find(model.graph, policy)
    _Rewriter(model.graph, products).run()
    return {name: product.format.name for name, product in products.items()}


def _find(graph: onnx.GraphProto, policy: Policy) -> dict[str, _Product]:
    consumers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    names = [value.name for value in graph.input]
    for pattern, rule in policy.rules:
        if FORMATS[rule].is_quantized and not any(fnmatchcase(n, pattern) for n in names):
            raise ConfigurationError(f"the policy's {pattern!r} matches no weight of the graph")
    return {
        value.name: _product(value, consumers, format)
        for value in graph.input
        if (format := policy.format_of(value.name)).is_quantized
    }


def _product(
    value: ValueInfoProto, consumers: dict[str, list[NodeProto]], format: Format
) -> _Product:
    name, tensor = value.name, value.type.tensor_type
    shape = tuple(dim.dim_value for dim in tensor.shape.dim)
    specs = tensors(format, name, shape)
    path: list[NodeProto] = []
    for wanted in ("Transpose", "MatMul"):
        current = path[-1].output[0] if path else name
        if [node.op_type for node in consumers[current]] != [wanted]:
            used = ", ".join(node.op_type for node in consumers[current]) or "nothing"
            raise ConfigurationError(
                f"{name}: {format.name} needs a weight that is transposed and multiplied by, once, "
                f"but {current} goes to {used}; a graph emitted with fused=True is not quantised"
            )
        path += consumers[current]
    transpose, matmul = path
    swapped = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    order = helper.get_node_attr_value(transpose, "perm")
    if order != swapped or matmul.input[1] != transpose.output[0]:
        raise ConfigurationError(
            f"{name}: {format.name} needs x @ W.T, but {transpose.name} permutes {order} "
            f"and {matmul.name} multiplies {list(matmul.input)}"
        )
    return _Product(name, format, tensor.elem_type, shape, specs, transpose, matmul)


class _Rewriter:
    """Writes the graph's nodes anew, in order, with those of quantised products replaced."""

    def __init__(self, graph: onnx.GraphProto, products: dict[str, _Product]) -> None:
        self.graph, self.products = graph, products
        self.by_output = {p.transpose.output[0]: p for p in products.values()}
        self.by_output |= {p.matmul.output[0]: p for p in products.values()}
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.rounded: dict[str, tuple[str, str]] = {}  # activation -> itself in fp8, its scales

    def run(self) -> None:
        for node in self.graph.node:
            product = self.by_output.get(node.output[0])
            if product is None:
                self.nodes.append(node)
            elif node.op_type == "Transpose":
                node.input[0] = self.dequantized(product)
                self.nodes.append(node)
            else:
                self.multiply(product)
        inputs = [new for old in self.graph.input for new in self.declared(old)]
        # A protobuf list is emptied together with its elements.
        inputs, nodes = copy.deepcopy(inputs), copy.deepcopy(self.nodes)
        del self.graph.input[:], self.graph.node[:]
        self.graph.input.extend(inputs)
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(self.constants.values())

    def declared(self, value: ValueInfoProto) -> list[ValueInfoProto]:
        """The inputs that stand where `value` stood."""
        if (product := self.products.get(value.name)) is None:
            return [value]
        payload, *scales = product.specs
        element = _ELEMENTS[product.format.name]
        return [
            helper.make_tensor_value_info(payload, element, product.shape),
            *(_declare(name, product.specs[name]) for name in scales),
        ]

    def dequantized(self, product: _Product) -> str:
        """Payload * block scale; the row scale is left to `multiply`."""
        name, format, dtype = product.name, product.format, product.dtype
        if format.block_scale is None:
            one = self.constant("one", 1.0, dtype)
            return self.node("DequantizeLinear", [name, one], f"{name}/value")
        scale = name + BLOCK_SCALE
        if format.block_scale == "F8_E4M3":
            one = self.constant("one", 1.0, dtype)
            scale = self.node("DequantizeLinear", [scale, one], f"{scale}/value")
        else:
            scale = self.cast(scale, _SCALES[format.block_scale], dtype)
        blocks = {"axis": len(product.shape) - 1, "block_size": format.group_size}
        return self.node("DequantizeLinear", [name, scale], f"{name}/value", **blocks)

    def multiply(self, product: _Product) -> None:
        """The product of activations and payload, then the factors that were left out of it."""
        node, name, dtype = product.matmul, product.name, product.dtype
        factors = []
        if product.format.payload == "F8_E4M3":
            node.input[0], scales = self.round_tokens(node.input[0], dtype)
            factors.append(scales)
        if product.format.row_scale is not None:
            order = helper.get_node_attr_value(product.transpose, "perm")
            scale = name + ROW_SCALE
            factors.append(self.node("Transpose", [scale], f"{scale}/columns", perm=order))
        self.nodes.append(node)
        if not factors:
            return
        result, node.output[0] = node.output[0], f"{name}/product"
        factor = self.node("Mul", factors, f"{name}/factor") if len(factors) > 1 else factors[0]
        wide = self.cast(node.output[0], dtype, TensorProto.FLOAT)
        if dtype == TensorProto.FLOAT:
            self.node("Mul", [wide, factor], result)
        else:
            scaled = self.node("Mul", [wide, factor], f"{name}/scaled")
            self.node("Cast", [scaled], result, to=dtype)

    def round_tokens(self, x: str, dtype: int) -> tuple[str, str]:
        """`x [.., K]` in fp8, of the graph's type again, and the fp32 scales `[.., 1]` left out."""
        if x not in self.rounded:
            wide = self.cast(x, dtype, TensorProto.FLOAT)
            axes = self.constant("last_axis", [-1], TensorProto.INT64)
            size = self.node("Abs", [wide], f"{x}/size")
            largest = self.node("ReduceMax", [size, axes], f"{x}/largest", keepdims=1)
            least = self.constant("smallest_token", SMALLEST_TOKEN, TensorProto.FLOAT)
            largest = self.node("Max", [largest, least], f"{x}/largest_or_least")
            limit = self.constant("largest_e4m3", LARGEST_E4M3, TensorProto.FLOAT)
            scales = self.node("Div", [largest, limit], f"{x}/scales")
            scaled = self.node("Div", [wide, scales], f"{x}/scaled")
            # Scales of one: TensorRT and ONNX know a scale per tensor, not one per token.
            one = self.constant("one", 1.0, TensorProto.FLOAT)
            zero = self.constant("zero", 0.0, TensorProto.FLOAT8E4M3FN)
            narrow = self.node("QuantizeLinear", [scaled, one, zero], f"{x}/rounded")
            one = self.constant("one", 1.0, dtype)
            self.rounded[x] = self.node("DequantizeLinear", [narrow, one], f"{x}/value"), scales
        return self.rounded[x]

    def node(self, op: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def cast(self, name: str, of: int, to: int) -> str:
        return name if of == to else self.node("Cast", [name], f"{name}/cast", to=to)

    def constant(self, name: str, value: float | list[int], dtype: int) -> str:
        name = f"precision/{name}.{TensorProto.DataType.Name(dtype)}"
        if name not in self.constants:
            values = value if isinstance(value, list) else [value]
            dims = [len(values)] if isinstance(value, list) else []
            self.constants[name] = helper.make_tensor(name, dtype, dims, values)
        return name


def _declare(name: str, spec: TensorSpec) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, _SCALES[spec.dtype], spec.shape)
