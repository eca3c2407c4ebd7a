from __future__ import annotations

import pytest

from dgemma.geometries import DEFAULT, named_geometry
from dgemma.roofline.flops import Arithmetic
from dgemma.roofline.sizes import Model

PUBLISHED = named_geometry(DEFAULT)
L, D, V = 256, 2816, 262144


def arithmetic(precision: str = "bf16", policy: str | None = None) -> Arithmetic:
    return Arithmetic(Model.of(PUBLISHED, precision, policy))


def test_a_pass_of_one_canvas_takes_what_was_worked_out_independently() -> None:
    assert arithmetic().of([0], 1).total / 1e12 == pytest.approx(2.3, abs=0.1)


def test_logits_and_soft_embedding_by_hand() -> None:
    tail = 2 * 2 * V * D + 2 * 3 * 2112 * D  # and self-conditioning, a gated MLP
    assert arithmetic().denoised.total == tail
    both, prompt = arithmetic().of([0, 0], 1), arithmetic().of([0, 0], 0)
    assert both.total - prompt.total == L * tail


def test_layers_by_hand() -> None:
    attention = 25 * (16 + 8 + 8 + 16) * 256 + 5 * (16 + 2 + 16) * 512
    routed = 8 * 3 * 704 + 3 * 2112 + 128  # the router included
    assert arithmetic().token.total == 2 * D * (attention + 30 * routed)


def test_a_row_attends_to_a_window_in_sliding_layers_and_to_all_in_full_ones() -> None:
    a = arithmetic()
    own = 4 * 16 * L * L * (25 * 256 + 5 * 512)
    assert a.attention([0]).total == own
    assert a.attention([1024]).total == own + 4 * 16 * L * 1024 * (25 * 256 + 5 * 512)
    assert a.attention([9000]).total - a.attention([8000]).total == 4 * 16 * L * 1000 * 5 * 512
    assert a.attention([0, 9000]) == a.attention([0]) + a.attention([9000])


def test_rows_add_up() -> None:
    a = arithmetic("fp8")
    assert a.of([512] * 8, 8).total == pytest.approx(8 * a.of([512], 1).total)


def test_what_is_quantised_to_fp8_is_multiplied_in_fp8() -> None:
    a = arithmetic("fp8")
    assert a.token.fp8 / a.token.total > 0.99
    assert a.denoised.fp8 == a.attention([0]).fp8 == 0
    experts = arithmetic("fp8", "experts").token
    assert experts.fp8 == pytest.approx(2 * 30 * 8 * 3 * 704 * D)
    assert arithmetic("nvfp4", "all").token.fp8 == arithmetic("int4").token.fp8 == 0
