"""Our network against Hugging Face's, pass by pass, on random geometries."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgemma.engine.base import Capacity
from dgemma.engine.torch_reference import TorchReference
from dgemma.model.checkpoint import Checkpoint
from dgemma.tail.statistics import Head
from tests.oracle.checkpoints import FULL, SLIDING, Case, draw_case
from tests.oracle.hugging_face import HuggingFace
from tests.oracle.passes import denoise_row, encode_rows, prefill, soft_embedding

SEEDS = range(24)
CLOSE = {"rtol": 0.0, "atol": 1e-4}


def open_both(case: Case, directory: Path) -> tuple[HuggingFace, TorchReference]:
    checkpoint = case.write(directory)
    engine = TorchReference.from_checkpoint(Checkpoint(checkpoint), Capacity(2, case.context, 3))
    return HuggingFace(checkpoint), engine


def random_ids(case: Case, seed: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, case.text.get("vocab_size", 320), shape, generator=generator)


def our_logits(engine: TorchReference, hidden: Tensor, temperature: float = 1.0) -> Tensor:
    """The tail's scores; these are larger than logits by a constant that no softmax sees."""
    head = Head(engine.embedding(), engine.geometry.final_logit_softcapping)
    scores = head.scores(hidden, torch.tensor(temperature), 0, engine.geometry.vocab_size)
    return scores - head.softcap / temperature


@pytest.mark.parametrize("seed", SEEDS)
def test_hidden_states_and_logits_are_those_of_hugging_face(seed: int, tmp_path: Path) -> None:
    case = draw_case(seed)
    hf, engine = open_both(case, tmp_path)
    prompt, slot = torch.tensor(case.prompt), 1
    expected, cache = hf.encode(prompt)
    torch.testing.assert_close(prefill(engine, prompt, slot), expected, **CLOSE)
    start, logits = len(prompt), None
    for canvas in random_ids(case, seed, (case.canvases, case.canvas_length)):
        for step in range(2):  # the first without, the second with self-conditioning
            soft = None if logits is None else soft_embedding(engine, logits)
            ours = engine.forward([denoise_row(canvas, slot, start, soft)])[0]
            theirs = hf.denoise(canvas, cache, logits)
            torch.testing.assert_close(ours, theirs, **CLOSE)
            torch.testing.assert_close(our_logits(engine, ours), hf.logits(theirs), **CLOSE)
            logits = None if step else hf.logits(theirs) / 0.7
        expected, cache = hf.encode(canvas, cache)
        ours = engine.forward(encode_rows(engine, canvas, slot, start))[0]
        torch.testing.assert_close(ours, expected, **CLOSE)
        start += case.canvas_length


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


KV_HEADS = ("num_key_value_heads", "num_global_key_value_heads")


def layer_types(case: Case) -> list[str]:
    types: list[str] = case.text["layer_types"]
    return types


def test_an_encoder_scalar_is_not_its_decoders(tmp_path: Path) -> None:
    """So a network that uses one for the other cannot pass the tests of this file."""
    _, engine = open_both(draw_case(0), tmp_path)
    for layer in engine.network.layers:
        assert abs(layer.layer_scalar - layer.encoder_layer_scalar) > 1e-3
