"""What has been encoded once is not encoded again, for whoever may know of it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from dgemma.assemble import assemble
from dgemma.request import Request
from dgemma.scheduler.options import Options
from dgemma.scheduler.prefix_cache import KeyChain
from dgemma.scheduler.tenancy import Tenant
from dgemma_build.demo.vocabulary import to_ids
from tests.dgemma.engine.fake_engine import geometry_of
from tests.dgemma.scheduler.requests import Desk, desk, fixed_steps, request
from tests.dgemma.scheduler.runs import play

L = 8
PLENTY = Options(prefix_cache_bytes=1 << 28)
WINDOW = geometry_of(sliding_window=2 * L)


def caching(options: Options = PLENTY, **more: Any) -> Desk:
    return desk(options=options, geometry=WINDOW, **more)


def run(at: Desk, name: str, prompt: list[int], **more: Any) -> None:
    at.submit(request(name, prompt=prompt, **{**fixed_steps(2), **more}))
    at.run()


# Hits


def test_a_prompt_that_begins_like_an_earlier_one_encodes_the_rest_alone() -> None:
    at, prefix = caching(), to_ids("p" * 5 * L)
    run(at, "a", [*prefix, *to_ids("first")])
    run(at, "b", [*prefix, *to_ids("second")])
    assert (at.usage("a").prefill_chunks, at.usage("a").cached_tokens) == (6, 0)
    assert (at.usage("b").prefill_chunks, at.usage("b").cached_tokens) == (1, 5 * L)
    assert at.usage("b").passes == 2


def test_a_prompt_that_is_known_throughout_encodes_nothing() -> None:
    at, prompt = caching(), to_ids("p" * 3 * L)
    run(at, "a", prompt)
    run(at, "b", prompt)
    assert at.usage("b").prefill_chunks == 0
    assert at.usage("b").passes == 2
    assert at.ids("b") == at.ids("a")


@pytest.mark.parametrize("window", [L, 12, 2 * L, 4 * L])
def test_the_next_turn_of_a_chat_encodes_only_what_is_new(window: int) -> None:
    """Also where a ring forgets a block's beginning before its end is there."""
    geometry = geometry_of(sliding_window=window)
    at, first = desk(options=PLENTY, geometry=geometry), to_ids("x" * 21)
    run(at, "first", first, max_new_tokens=6 * L)
    turn = [*first, *at.ids("first"), *to_ids("and then?")]
    run(at, "second", turn)
    # All but the last canvas has been encoded, and blocks are whole.
    known = (21 + 5 * L) // L * L
    assert at.usage("second").cached_tokens == known
    assert at.usage("second").prefill_chunks == -(-(len(turn) - known) // L)
    fresh = caching()
    run(fresh, "second", turn)
    assert at.ids("second") == fresh.ids("second")


def test_without_a_cache_nothing_is_known() -> None:
    at, prompt = caching(Options()), to_ids("p" * 3 * L)
    run(at, "a", prompt)
    run(at, "b", prompt)
    assert at.usage("b").prefill_chunks == 3


# Whose


def test_another_tenant_finds_nothing_and_the_same_one_does() -> None:
    at, prompt = caching(), to_ids("secret plans, in several blocks")
    run(at, "a", prompt, cache_salt=b"a")
    run(at, "b", prompt, cache_salt=b"b")
    run(at, "again", prompt, cache_salt=b"a")
    assert [at.usage(name).cached_tokens for name in ("a", "b", "again")] == [0, 0, 3 * L]


def test_tenants_share_what_is_published_and_nothing_behind_it() -> None:
    at, published = caching(), to_ids("s" * (2 * L + 3))
    for name in "ab":
        prompt = [*published, *to_ids("x" * 2 * L)]
        run(at, name, prompt, cache_salt=name.encode(), shared_tokens=len(published))
    assert at.usage("b").cached_tokens == 2 * L


def test_a_key_depends_on_every_token_before_and_on_the_salt() -> None:
    def keys(prompt: list[int], **more: Any) -> list[bytes]:
        return KeyChain(request("r", prompt=prompt, **more), L).keys

    prompt = to_ids("x" * 3 * L)
    assert len(set(keys(prompt))) == len(keys(prompt)) == 3
    assert keys(prompt) == keys(prompt)
    for at in range(3 * L):
        changed = [*prompt[:at], 3, *prompt[at + 1 :]]
        same = [a == b for a, b in zip(keys(prompt), keys(changed), strict=True)]
        assert same == [block < at // L for block in range(3)]
    assert not set(keys(prompt)) & set(keys(prompt, cache_salt=b"s"))
    published = keys(prompt, cache_salt=b"s", shared_tokens=2 * L)
    other = keys(prompt, cache_salt=b"t", shared_tokens=2 * L)
    assert [a == b for a, b in zip(published, other, strict=True)] == [True, True, False]


def test_a_growing_context_has_the_keys_of_the_whole() -> None:
    tokens = to_ids("abcdefghijklmnopqrstuvwxyz0123456789")
    grown = KeyChain(request("r", prompt=tokens[:3]), L)
    for start in range(3, len(tokens), 5):
        grown.extend(tokens[start : start + 5])
    assert grown.keys == KeyChain(request("r", prompt=tokens), L).keys


# Memory


def test_what_is_kept_stays_within_its_bytes_and_the_oldest_goes_first() -> None:
    at = caching(Options(prefix_cache_bytes=4 * L * 8))
    cache = at.scheduler.cache
    assert cache is not None
    for name in "abc":
        run(at, name, to_ids(name * 2 * L))
        assert cache.nbytes <= 4 * L * 8
    assert len(cache) == 4 and cache.evicted == 2
    run(at, "c2", to_ids("c" * 2 * L))
    run(at, "b2", to_ids("b" * 2 * L))
    run(at, "a2", to_ids("a" * 2 * L))
    cached = [at.usage(name).cached_tokens for name in ("c2", "b2", "a2")]
    assert cached == [2 * L, 2 * L, 0]


def test_a_context_loses_its_end_before_its_beginning() -> None:
    at = caching(Options(prefix_cache_bytes=4 * L * 8))
    run(at, "a", to_ids("a" * 3 * L))
    run(at, "a2", to_ids("a" * 3 * L))
    run(at, "b", to_ids("b" * 2 * L))
    run(at, "a3", to_ids("a" * 3 * L))
    assert at.usage("a3").cached_tokens == 2 * L


def test_a_cache_too_small_for_a_block_keeps_nothing() -> None:
    at = caching(Options(prefix_cache_bytes=1))
    run(at, "a", to_ids("a" * 3 * L))
    run(at, "b", to_ids("a" * 3 * L))
    assert at.usage("b").cached_tokens == 0
    assert at.scheduler.cache is not None and at.scheduler.cache.nbytes == 0


@pytest.mark.parametrize("window", [6, L, 12, 2 * L, 3 * L])
def test_no_answer_changes_however_little_is_kept(window: int) -> None:
    """Many requests at a time in few bytes, so that blocks of running requests are forgotten."""
    rng = random.Random(window)
    geometry = geometry_of(sliding_window=window)
    beginnings = [to_ids(letter * 4 * L) for letter in "pq"]
    asked: list[Request] = []
    for number in range(40):
        prompt = rng.choice(beginnings)[: rng.randint(1, 4 * L)] + to_ids("z" * rng.randint(0, L))
        answer = rng.randint(1, 3 * L)
        asked.append(
            request(
                str(number),
                prompt=prompt,
                tenant=Tenant(str(number % 2)),
                **fixed_steps(1 + number % 3, max_new_tokens=answer),
            )
        )
    with_cache = desk(2, Options(prefix_cache_bytes=6 * L * 8), geometry=geometry)
    without = desk(2, geometry=geometry)
    for at in (with_cache, without):
        at.submit(*asked)
        at.run(1000)
    assert sum(with_cache.usage(each.id).cached_tokens for each in asked) > 0
    for each in asked:
        assert with_cache.ids(each.id) == without.ids(each.id)


# On a real engine


def test_a_prefix_from_the_cache_has_the_same_bits_on_the_demo_engine(
    demo_engine: Path, demo_checkpoint: Path
) -> None:
    """Whether a prompt's chunks have the borders that they had when it was encoded or not."""
    rng = random.Random(3)
    length = 96
    parts = assemble(demo_engine, demo_checkpoint, slots=2, threads=1, options=PLENTY)
    plain = assemble(demo_engine, demo_checkpoint, slots=2, threads=1)
    prefix = [rng.randrange(32, 120) for _ in range(2 * length)]
    settings = fixed_steps(2, ignore_eos=True, max_new_tokens=2 * length)
    first = request("first", prompt=[*prefix, 40, 41], seed=1, **settings)
    second = request("second", prompt=[*prefix, 50, 51, 52], seed=2, **settings)
    for each in (first, second):
        cached, fresh = (play(p, [(0, each)])[each.id] for p in (parts, plain))
        assert cached.has_the_bits_of(fresh)
    assert cached.cached_tokens == 2 * length
    answer = play(plain, [(0, first)])["first"].ids
    turn = request("turn", prompt=[*prefix, 40, 41, *answer, 60], seed=3, **settings)
    cached, fresh = (play(p, [(0, turn)])["turn"] for p in (parts, plain))
    assert (cached.cached_tokens, fresh.cached_tokens) == (3 * length, 0)
    assert cached.has_the_bits_of(fresh)


def test_what_a_short_ring_forgets_of_a_block_is_found_again_on_the_demo_engine(
    demo_engine: Path, demo_checkpoint: Path
) -> None:
    """Its window is shorter than what is written until a block behind a prompt is complete."""
    rng, length = random.Random(4), 96
    parts = assemble(demo_engine, demo_checkpoint, slots=1, threads=1, options=PLENTY)
    plain = assemble(demo_engine, demo_checkpoint, slots=1, threads=1)
    settings = fixed_steps(1, ignore_eos=True, max_new_tokens=3 * length)
    prompt = [rng.randrange(32, 120) for _ in range(70)]
    answer = play(parts, [(0, request("first", prompt=prompt, seed=1, **settings))])["first"].ids
    turn = request("turn", prompt=[*prompt, *answer, 60], seed=2, **settings)
    cached, fresh = (play(p, [(0, turn)])["turn"] for p in (parts, plain))
    assert (cached.cached_tokens, fresh.cached_tokens) == (2 * length, 0)
    assert cached.has_the_bits_of(fresh)
