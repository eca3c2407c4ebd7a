"""Our network against Hugging Face's, pass by pass, on random geometries."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgemma.engine.base import Capacity
from dgemma.engine.torch_reference import TorchReference
from dgemma.model.checkpoint import Checkpoint
from dgemma.tail.statistics import Head
from dgemma_build.demo.vocabulary import VOCAB_SIZE
from tests.oracle.checkpoints import FULL, SLIDING, Case, draw_case
from tests.oracle.hugging_face import HuggingFace
from tests.oracle.passes import assert_close, denoise_row, prefill, soft_embedding

SEEDS = range(24)
KV_HEADS = ("num_key_value_heads", "num_global_key_value_heads")


def open_both(case: Case, directory: Path) -> tuple[HuggingFace, TorchReference]:
    checkpoint = case.write(directory / str(case.seed))
    engine = TorchReference.from_checkpoint(Checkpoint(checkpoint), Capacity(2, case.context, 3))
    return HuggingFace(checkpoint), engine


def random_ids(case: Case, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(case.seed)
    return torch.randint(0, VOCAB_SIZE, shape, generator=generator)


def our_logits(engine: TorchReference, hidden: Tensor) -> Tensor:
    """The tail's scores; these are larger than logits by a constant that no softmax sees."""
    head = Head(engine.embedding(), engine.geometry.final_logit_softcapping)
    return head.scores(hidden[None], torch.tensor(1.0), 0, VOCAB_SIZE)[0] - head.softcap


@dataclass(frozen=True)
class Pass:
    """What HF made of some tokens: a prompt or a canvas to keep, or a canvas to denoise."""

    ids: Tensor
    hidden: Tensor
    denoise: bool
    before: Tensor | None = None  # logits [L, V] of the step before


def passes(hf: HuggingFace, case: Case) -> list[Pass]:
    """Prefill, then of each canvas a step without and one with self-conditioning, and commit."""
    prompt = torch.tensor(case.prompt)
    hidden, cache = hf.encode(prompt)
    walked = [Pass(prompt, hidden, denoise=False)]
    for canvas in random_ids(case, (case.canvases, case.canvas_length)):
        first = hf.denoise(canvas, cache)
        before = hf.logits(first) / 0.7
        second = hf.denoise(canvas, cache, before)
        walked += [Pass(canvas, first, denoise=True), Pass(canvas, second, True, before)]
        hidden, cache = hf.encode(canvas, cache)
        walked.append(Pass(canvas, hidden, denoise=False))
    return walked


@pytest.mark.parametrize("seed", SEEDS)
def test_hidden_states_and_logits_are_those_of_hugging_face(seed: int, tmp_path: Path) -> None:
    for case in draw_case(seed).again():
        hf, engine = open_both(case, tmp_path)
        expected = passes(hf, case)
        if hf.routes_clearly:
            break
    slot, start = 1, 0
    for step in expected:
        if step.denoise:
            soft = None if step.before is None else soft_embedding(engine, step.before)
            ours = engine.forward([denoise_row(step.ids, slot, start, soft)])[0]
            theirs = hf.logits(step.hidden)
            assert_close(our_logits(engine, ours), theirs)
        else:
            ours = prefill(engine, step.ids, slot, start)
            start += len(step.ids)
        assert_close(ours, step.hidden)


def test_the_drawn_geometries_cover_what_can_vary() -> None:
    cases = [draw_case(seed) for seed in SEEDS]
    windows = [case.text["sliding_window"] for case in cases if SLIDING in layer_types(case)]
    pairs = [case for case in cases if SLIDING in layer_types(case)]
    assert {case.text["top_k_experts"] for case in cases} == {1, 2, 3}
    assert {case.text["num_experts"] > 8 for case in cases} == {True, False}
    assert len({tuple(layer_types(case)) for case in cases}) >= 5
    assert any(layer_types(case)[0] == FULL and len(layer_types(case)) > 1 for case in cases)
    assert {24, 64} <= {case.canvas_length for case in cases}
    assert any(w < case.canvas_length for w, case in zip(windows, pairs, strict=True))
    assert any(w < len(case.prompt) for w, case in zip(windows, pairs, strict=True))
    assert any(w > case.context for w, case in zip(windows, pairs, strict=True))
    for small, large in (("head_dim", "global_head_dim"), KV_HEADS):
        assert any(case.text[small] < case.text[large] for case in pairs)
        assert any(case.text[small] > case.text[large] for case in pairs)


def layer_types(case: Case) -> list[str]:
    types: list[str] = case.text["layer_types"]
    return types


def test_an_encoder_scalar_is_not_its_decoders(tmp_path: Path) -> None:
    """So a network that uses one for the other cannot pass the tests of this file."""
    _, engine = open_both(draw_case(0), tmp_path)
    scalars = dict(engine.network.named_parameters())
    for name, of_encoder in scalars.items():
        if name.endswith("encoder_layer_scalar"):
            of_decoder = scalars[name.replace("encoder_layer_scalar", "layer_scalar")]
            assert abs(of_encoder - of_decoder).item() > 1e-3
