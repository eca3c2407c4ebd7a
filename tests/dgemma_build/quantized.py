"""Weights in each format, written out plainly: the reference that graphs are held to."""

from __future__ import annotations

from dataclasses import replace

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dgemma.geometry import FULL, Geometry, LayerGeometry
from dgemma.model.network import Network
from dgemma.precision import BLOCK_SCALE, ROW_SCALE, Policy
from tests.dgemma.engine.fake_engine import geometry_of

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def whole_groups() -> Geometry:
    """A small geometry all of whose matrices have a multiple of 64 columns."""
    small = geometry_of(hidden_size=64, vocab_size=40, sliding_window=12)
    layers = tuple(
        LayerGeometry(layer.layer_type, 32 if layer.layer_type == FULL else 16, 2)
        for layer in small.layers
    )
    return replace(small, layers=layers, intermediate_size=64, moe_intermediate_size=64)


def quantize(format: str, name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """A store's tensors of `weight`, and the values that they stand for."""
    return {"fp8": _fp8, "int4": _int4, "nvfp4": _nvfp4}[format](name, weight)


def _fp8(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scale = weight.abs().amax(-1, keepdim=True) / 448
    payload = (weight / scale).to(torch.float8_e4m3fn)
    return {name: payload, name + ROW_SCALE: scale}, payload.float() * scale


def _int4(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    groups = weight.unflatten(-1, (-1, 64))
    scale = (groups.abs().amax(-1) / 7).to(torch.bfloat16)
    values = (groups / scale.float()[..., None]).round().clamp(-7, 7)
    payload = _packed(values.flatten(-2).to(torch.int8) & 15)
    return {name: payload, name + BLOCK_SCALE: scale}, (values * scale.float()[..., None]).flatten(
        -2
    )


def _nvfp4(name: str, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    groups = weight.unflatten(-1, (-1, 16))
    tensor_scale = weight.abs().amax((-1, -2), keepdim=True).expand(*weight.shape[:-1], 1) / 2688
    block = (groups.abs().amax(-1) / 6 / tensor_scale).to(torch.float8_e4m3fn)
    unit = (block.float() * tensor_scale)[..., None]
    code = ((groups / unit).abs()[..., None] - E2M1).abs().argmin(-1)
    values = E2M1[code] * groups.sign() * unit
    payload = _packed((code + 8 * (groups < 0)).flatten(-2).to(torch.int8))
    stored = {name: payload, name + BLOCK_SCALE: block, name + ROW_SCALE: tensor_scale.contiguous()}
    return stored, values.flatten(-2)


def _packed(codes: Tensor) -> Tensor:
    """Two codes of four bits in each byte, the even column low."""
    return (codes[..., 0::2] | codes[..., 1::2] << 4).view(torch.uint8)


def quantize_network(network: Network, policy: Policy) -> dict[str, Tensor]:
    """The store of `network`, whose weights become the values stored."""
    stored: dict[str, Tensor] = {}
    for name, parameter in network.named_parameters():
        format = policy.format_of(name)
        if not format.is_quantized:
            stored[name] = parameter.data
            continue
        tensors, values = quantize(format.name, name, parameter.data)
        stored |= tensors
        parameter.data = values
    return stored


def attach(model: onnx.ModelProto, stored: dict[str, Tensor]) -> None:
    """Make the graph's weight inputs initialisers with the very bytes of a store."""
    remaining = []
    for value in model.graph.input:
        if value.name not in stored:
            remaining.append(onnx.ValueInfoProto.FromString(value.SerializeToString()))
            continue
        tensor = model.graph.initializer.add()
        tensor.name, tensor.data_type = value.name, value.type.tensor_type.elem_type
        tensor.dims.extend(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        data = stored[value.name].contiguous()
        tensor.raw_data = data.flatten().view(torch.uint8).numpy().tobytes()
    del model.graph.input[:]
    model.graph.input.extend(remaining)


class TokenRounding(TorchFunctionMode):
    """Rounds what is multiplied by the given weights to fp8, each token by its largest value.

    An activation halfway between two values may be rounded to either, so the roundings of whom the
    result is compared with are taken over, once they are found to be as close as one's own.
    """

    def __init__(self, theirs: dict[int, Tensor]) -> None:
        """`theirs`: rounded activations, in units of a token's scale, by the weight's address."""
        super().__init__()
        self.theirs = theirs
        self.compared = self.differing = 0  # roundings

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (F.linear, Tensor.matmul) and args[1].data_ptr() in self.theirs:
            args = (self._rounded(args[0], self.theirs[args[1].data_ptr()]), *args[1:])
        return func(*args, **(kwargs or {}))

    def _rounded(self, x: Tensor, theirs: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448
        scaled = x / scale
        ours = scaled.to(torch.float8_e4m3fn).float()
        worse = (theirs - scaled).abs() - (ours - scaled).abs()
        assert worse.max() < 448e-5, "a rounding that no error of fp32 explains"
        self.compared += ours.numel()
        self.differing += int((ours != theirs).sum())
        return theirs * scale
