"""The experts' products against plain torch, and what they promise beside numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from dgemma.engine.kernels import experts, experts_reference
from dgemma.engine.kernels.chip import Chip
from dgemma.engine.kernels.operands import Lines, Weight
from dgemma.engine.kernels.routed import Routed
from dgemma.engine.kernels.routing_reference import route
from dgemma.engine.kernels.tiles import expert_tiles
from dgemma.geometries import DEFAULT, named_geometry
from tests.dgemma.engine.kernels.formats import error, lines_for, poisoned_outputs, random_weight

LIMIT = 1e-2
formats = pytest.mark.parametrize("format", ["bf16", "fp8", "int4", "nvfp4"])
Case = tuple[Lines, Weight, Lines, Weight, Routed]


@pytest.fixture(autouse=True)
def _surroundings() -> Iterator[None]:
    with poisoned_outputs():
        yield


def _case(
    format: str, tokens: int, num_experts: int, top_k: int, hidden: int, inner: int, seed: int = 0
) -> Case:
    torch.manual_seed(seed)
    routed = route(torch.randn(tokens, num_experts), top_k, torch.rand(num_experts) + 0.5)
    return (
        lines_for(format, torch.randn(tokens, hidden)),
        random_weight(format, num_experts, 2 * inner, hidden),
        lines_for(format, torch.randn(tokens * top_k, inner)),
        random_weight(format, num_experts, hidden, inner),
        routed,
    )


def _errors(case: Case) -> tuple[float, float]:
    x, gate_up, inner, down, routed = case
    return (
        error(experts.gate_up(x, gate_up, routed), experts_reference.gate_up(x, gate_up, routed)),
        error(experts.down(inner, down, routed), experts_reference.down(inner, down, routed)),
    )


# Those of four bits need whole groups of inputs.
SHAPES = [
    ("bf16 fp8", 1, 4, 2, 64, 32),
    ("bf16 fp8 nvfp4", 7, 8, 3, 64, 48),  # experts without a token
    ("bf16 fp8 nvfp4", 21, 2, 1, 80, 48),  # more than one tile of lines, and masks at every edge
    ("bf16 fp8", 9, 3, 2, 37, 21),
    ("int4 nvfp4", 21, 3, 2, 192, 64),
    ("bf16 fp8 int4 nvfp4", 12, 5, 2, 192, 128),
]
CASES = [(format, *shape) for names, *shape in SHAPES for format in names.split()]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_plain_torch(case: tuple[str, int, int, int, int, int]) -> None:
    assert max(_errors(_case(*case))) < LIMIT


@formats
def test_equals_plain_torch_with_the_real_inputs(format: str) -> None:
    x, gate_up, _, _, routed = _case(format, 3, 1, 1, 2816, 64)
    _, _, inner, down, _ = _case(format, 3, 1, 1, 128, 704)
    assert max(_errors((x, gate_up, inner, down, routed))) < LIMIT


@formats
def test_with_many_lines_of_each_expert(format: str) -> None:
    case = _case(format, 160, 2, 1, 64, 64)
    assert expert_tiles(160, 2, Chip.of(90)).lines == 128
    assert max(_errors(case)) < LIMIT


@formats
def test_all_tokens_at_one_expert(format: str) -> None:
    x, gate_up, inner, down, _ = _case(format, 40, 4, 1, 64, 64)
    scores = torch.zeros(40, 4)
    scores[:, 2] = 1
    routed = route(scores, 1, torch.ones(4))
    assert routed.offsets.tolist() == [0, 0, 0, 40, 40]
    assert max(_errors((x, gate_up, inner, down, routed))) < LIMIT


@formats
def test_a_token_gets_the_same_alone_and_among_others(format: str) -> None:
    """Bit for bit, in tiles of different sizes."""
    x, gate_up, _, down, _ = _case(format, 90, 4, 2, 128, 64)
    scores, scale = torch.randn(90, 4), torch.ones(4)
    among, alone = route(scores, 2, scale), route(scores[17:18], 2, scale)
    assert expert_tiles(180, 4, Chip.of(90)) != expert_tiles(2, 4, Chip.of(90))

    inner = experts.gate_up(x, gate_up, among)
    one = Lines(x.values[17:18], None if x.scale is None else x.scale[17:18])
    inner_alone = experts.gate_up(one, gate_up, alone)
    # Its assignments lie elsewhere among others.
    where = [among.order.tolist().index(34 + int(place)) for place in alone.order]
    assert torch.equal(inner[where], inner_alone)

    out = experts.down(lines_for(format, inner), down, among)
    out_alone = experts.down(lines_for(format, inner_alone), down, alone)
    assert torch.equal(out[17], out_alone[0])


@formats
def test_would_notice_another_experts_weights(format: str) -> None:
    """The limits above are not so wide that anything passes."""
    x, gate_up, inner, down, routed = _case(format, 12, 4, 2, 64, 64)
    shifted = replace(routed, offsets=routed.offsets + (routed.offsets > 0) * (routed.offsets < 24))
    assert shifted.offsets.tolist() != routed.offsets.tolist()
    wanted = experts_reference.gate_up(x, gate_up, routed)
    assert error(experts.gate_up(x, gate_up, shifted), wanted) > 10 * LIMIT
    unweighted = replace(routed, weights=torch.ones_like(routed.weights))
    wanted = experts_reference.down(inner, down, routed)
    assert error(experts.down(inner, down, unweighted), wanted) > 10 * LIMIT


def test_lines_of_another_format_are_refused() -> None:
    x, gate_up, _, _, routed = _case("fp8", 4, 2, 1, 64, 64)
    with pytest.raises(ValueError, match="weights in fp8 want e4m3 lines"):
        experts.gate_up(lines_for("bf16", torch.randn(4, 64)), gate_up, routed)
    with pytest.raises(ValueError, match="weights in bf16 want bf16 lines"):
        experts.down(x, random_weight("bf16", 2, 64, 64), routed)


def test_most_experts_of_a_canvas_need_one_tile() -> None:
    g, chip = named_geometry(DEFAULT), Chip.of(90)
    picked = g.canvas_length * g.top_k_experts
    tiles = [expert_tiles(picked * rows, g.num_experts, chip).lines for rows in (1, 2, 4, 8, 32)]
    assert tiles == [32, 64, 128, 128, 128]
