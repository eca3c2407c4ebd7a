from __future__ import annotations

from dgemma.request import FREE, StreamMode
from dgemma_build.demo.vocabulary import EOS, to_ids
from tests.dgemma.engine.fake_engine import hashed
from tests.dgemma.scheduler.requests import desk, fixed_steps, modes, request

L = 8


def test_a_pinned_canvas_needs_no_pass() -> None:
    at = desk()
    at.submit(request("a", pinned=to_ids("pinned!!")))
    assert at.scheduler.step() is False
    assert at.engine.passes == []
    assert (at.ids("a"), at.reason("a")) == (to_ids("pinned!!"), "length")
    assert at.usage("a").denoising_steps == (0,)
    assert at.usage("a").passes == 0
    assert at.scheduler.stats.running == 0


def test_pinned_answers_do_not_hold_back_those_that_wait() -> None:
    at = desk(slots=1)
    for name in "abc":
        at.submit(request(name, pinned=to_ids("pinned!!")))
    at.submit(request("d"))
    at.run()
    assert [at.reason(name) for name in "abcd"] == ["length"] * 4
    assert modes(at.engine.passes) == ["ed", "d"]


def test_a_template_spans_canvases_and_comes_back_unchanged() -> None:
    template = [*to_ids("abcd"), *[FREE] * 8, *to_ids("efgh"), *[FREE] * 2, *[EOS] * 6]
    at = desk()
    at.submit(request("a", pinned=template, stream=StreamMode.DRAFT, max_new_tokens=len(template)))
    at.run()
    got = at.ids("a")
    assert at.reason("a") == "stop"
    assert len(got) == 18
    assert [g for g, t in zip(got, template, strict=False) if t != FREE] == to_ids("abcdefgh")
    for draft in at.drafts("a"):
        part = template[draft.block_index * L :][:L]
        assert [s == 2 for s in draft.states] == [t != FREE for t in part]
        assert all(g == t for g, t in zip(draft.token_ids, part, strict=True) if t != FREE)


def test_pinned_canvases_between_free_ones_are_encoded_in_chunks() -> None:
    template = [*to_ids("x" * 2 * L), *[FREE] * L]
    at = desk()
    at.submit(request("a", prompt="abc", pinned=template, **fixed_steps(2, max_new_tokens=3 * L)))
    at.run()
    # 3 + 16 known tokens are three chunks, the last of them fused.
    assert modes(at.engine.passes) == ["e", "e", "ed", "d"]
    assert at.usage("a").denoising_steps == (0, 0, 2)
    assert at.ids("a")[2 * L :] == hashed((*to_ids("abc"), *template[: 2 * L]), L)
