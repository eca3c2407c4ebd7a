"""Prompts beside canvases: neither holds the other up."""

from __future__ import annotations

from dgemma.engine.base import NO_PARTNER
from dgemma.scheduler.options import Options
from dgemma.scheduler.tenancy import Tenant
from dgemma_build.demo.vocabulary import to_ids
from tests.dgemma.engine.fake_engine import geometry_of, hashed
from tests.dgemma.scheduler.requests import Desk, desk, fixed_steps, modes, request

L = 8


def prefill_rows(at: Desk) -> list[int]:
    """Of each pass, the rows of prompts; in these tests no canvas is committed."""
    return [mode.count("e") for mode in modes(at.engine.passes)]


def test_a_long_prompt_does_not_hold_a_canvas_up() -> None:
    at = desk(slots=2)
    at.submit(request("canvas", **fixed_steps(12)))
    at.scheduler.step()
    at.submit(request("long", prompt="x" * 10 * L, **fixed_steps(2)))
    at.run()
    assert modes(at.engine.passes) == ["ed", *["de"] * 9, "ded", "dd"]
    assert at.usage("canvas").passes == 12


def test_many_prompts_share_the_rows_for_them() -> None:
    at = desk(slots=8, options=Options(prefill_rows=2))
    at.submit(request("canvas", **fixed_steps(30)))
    at.scheduler.step()
    for number in range(7):
        at.submit(request(str(number), prompt="x" * 3 * L, **fixed_steps(2)))
    at.run()
    assert max(prefill_rows(at)) == 2
    assert sum(prefill_rows(at)) == 1 + 7 * 3
    assert at.usage("canvas").passes == 30
    for number in range(7):
        usage = at.usage(str(number))
        assert usage.passes == 2 + 3 - 1
        assert at.ids(str(number)) == hashed(tuple(to_ids("x" * 3 * L)), L)


def test_the_first_prompt_is_encoded_before_the_next_begins() -> None:
    at = desk(slots=4, options=Options(prefill_rows=1))
    for name in "abc":
        at.submit(request(name, prompt=name * 3 * L, **fixed_steps(2)))
    at.run()
    encoded = [row.ids[0].item() for rows in at.engine.passes for row in rows if not row.denoise]
    assert encoded == [token for name in "abc" for token in to_ids(name * 3)]


def test_a_tenant_of_short_prompts_is_not_behind_a_long_one_of_another() -> None:
    at = desk(slots=4, options=Options(prefill_rows=1))
    at.submit(request("long", prompt="x" * 20 * L, tenant=Tenant("a"), **fixed_steps(1)))
    for _ in range(6):
        at.scheduler.step()
    at.submit(request("short", prompt="y" * 2 * L, tenant=Tenant("b"), **fixed_steps(1)))
    at.run()
    assert at.usage("short").total_ms < at.usage("long").total_ms
    first = [mode == "e" for mode in modes(at.engine.passes)].count(True)
    assert first == len(at.engine.passes) - 2


def test_a_prompt_alone_is_encoded_two_chunks_at_a_time() -> None:
    at = desk(slots=2, geometry=geometry_of(sliding_window=2 * L))
    prompt = to_ids("abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGH"[: 5 * L + 3])
    at.submit(request("a", prompt=prompt, **fixed_steps(2)))
    at.run()
    assert modes(at.engine.passes) == ["ee", "ee", "e", "ed", "d"]
    assert [row.partner for row in at.engine.passes[1]] == [NO_PARTNER, 0]
    assert at.ids("a") == hashed(tuple(prompt), L)


def test_a_second_chunk_waits_where_the_rows_are_another_prompts() -> None:
    at = desk(4, Options(prefill_rows=3), geometry=geometry_of(sliding_window=2 * L))
    for name in "ab":
        at.submit(request(name, prompt=name * 6 * L, **fixed_steps(2)))
    at.run()
    # Three rows a pass: two of the one, one of the other.
    assert modes(at.engine.passes)[:2] == ["eee", "eee"]
    assert max(prefill_rows(at)) == 3
    for name in "ab":
        assert at.ids(name) == hashed(tuple(to_ids(name * 6 * L)), L)


def test_one_row_for_prompts_never_stops() -> None:
    at = desk(slots=4, options=Options(prefill_rows=1))
    for number in range(12):
        at.submit(
            request(
                str(number),
                prompt="z" * (1 + 5 * number),
                tenant=Tenant(f"t{number % 3}"),
                max_new_tokens=2 * L,
            )
        )
    at.run()
    assert all(at.reason(str(number)) == "length" for number in range(12))
