"""Does the next turn of a chat encode only what is new, and who can tell that a prompt is known?

Asked from outside: two tenants of a real Triton server, by what usage says and by a clock. Knows
the statistics of paired samples.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from dgemma.client import Client
from dgemma.geometry import Geometry
from dgemma.settings import Settings
from dgemma.triton_server.server import TritonServer
from dgemma_build.engine import build_engine
from tests.accept.main_job import Line
from tests.bench.__main__ import MODEL_REPOSITORY
from tests.dgemma.tenants.tenant_files import ACME, OTHER, file_of, tenant
from tests.identity import any_text

TOKENS = 2000  # of a chat, before its second turn
CONTEXT = 4096
ASKS = 60  # tokens of what the user says in the second turn, about
# A test that finds a difference where there is none does so once in a hundred runs.
CHANCE = 0.01
FASTER = 0.5  # first block of a known prompt, of a cold one
FLIPS = 20_000
BRIEF: dict[str, Any] = {"max_denoising_steps": 1, "confidence_threshold": 0.0, "ignore_eos": True}

Messages = list[dict[str, str]]


def longer(engine: Path, checkpoint: Path) -> tuple[Path, Path]:
    """The same checkpoint with room for longer chats: positions are computed, not learnt."""
    wide = engine.with_name(f"{engine.name}-{CONTEXT}")
    copy = wide.with_name(f"{wide.name}-checkpoint")
    shutil.copytree(checkpoint, copy, dirs_exist_ok=True)
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = CONTEXT
    (copy / "config.json").write_text(json.dumps(config, indent=1))
    build_engine(copy, "cpu", "fp32", wide)
    return wide, copy


@dataclass(frozen=True)
class Turn:
    """What one request cost: its first block's time as the client sees it, and its usage."""

    seconds: float
    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int
    prefill_chunks: int


def ask(client: Client, **options: Any) -> Turn:
    began = time.perf_counter()
    updates = client.stream(**{"return_token_ids": True, **BRIEF, **options})
    first = next(updates)
    seconds = time.perf_counter() - began
    heard = [first, *updates]
    usage = heard[-1].usage
    assert usage is not None
    return Turn(
        seconds,
        "".join(update.text for update in heard),
        tuple(token for update in heard for token in update.token_ids),
        *(usage[key] for key in ("prompt_tokens", "cached_tokens", "prefill_chunks")),
    )


def chat(rng: random.Random, tokens: int) -> Messages:
    """A user's, a model's and again a user's message, of about so many tokens together."""
    sizes = [tokens // 2, tokens // 4, tokens - tokens // 2 - tokens // 4]
    roles = ["user", "assistant", "user"]
    return [
        {"role": role, "content": any_text(rng, size)}
        for role, size in zip(roles, sizes, strict=True)
    ]


def goes_on(rng: random.Random, messages: Messages, answer: str) -> Messages:
    return [
        *messages,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": any_text(rng, ASKS)},
    ]


@dataclass(frozen=True)
class Round:
    """One chat: its first turn, and its second one by who has had the first and by who has not."""

    first: Turn
    again: Turn  # the same tenant's
    other: Turn  # another tenant's, of the very same prompt
    cold: Turn  # that tenant's, of a prompt that nobody has sent


def play(mine: Client, others: Client, rng: random.Random, length: int) -> Round:
    messages = chat(rng, TOKENS)
    first = ask(mine, messages=messages, max_new_tokens=length)
    second = goes_on(rng, messages, first.text)
    unheard = goes_on(rng, chat(rng, TOKENS), first.text)
    turns = {}
    asks = [("again", mine, second), ("other", others, second), ("cold", others, unheard)]
    rng.shuffle(asks)
    for name, client, prompt in asks:
        turns[name] = ask(client, messages=prompt, max_new_tokens=length)
    return Round(first, **turns)


def second_turn(engine: Path, checkpoint: Path, rounds: int) -> Iterator[Line]:
    """All lines; the server has a slot for one request, and memory for all prefixes."""
    wide, copy = longer(engine, checkpoint)
    length = Geometry.from_checkpoint(copy).canvas_length
    rng = random.Random(5)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tenants = scratch / "tenants.yaml"
        tenants.write_text(file_of(tenant("acme", ACME), tenant("rival", OTHER)))
        settings = Settings.load(
            engine=wide,
            checkpoint=copy,
            tenants=tenants,
            threads=len(os.sched_getaffinity(0)),
            log_level="warning",
        )
        server = stack.enter_context(
            TritonServer(MODEL_REPOSITORY, env=settings.environment(), log=scratch / "triton.log")
        )
        mine, others = (
            stack.enter_context(Client(server.grpc_url, api_key=key)) for key in (ACME, OTHER)
        )
        yield blocks_of_an_answer(mine, rng, length)
        play(mine, others, rng, length)  # to warm
        shown = track(range(rounds), "chats", console=Console(stderr=True), transient=True)
        played = [play(mine, others, rng, length) for _ in shown]
    yield from costs(played, length)
    yield from timings(played)


def blocks_of_an_answer(client: Client, rng: random.Random, length: int) -> Line:
    """Token ids say exactly what is new behind an answer of several blocks."""
    prompt = [64 + ord(letter) for letter in any_text(rng, TOKENS)]
    first = ask(client, input_ids=prompt, max_new_tokens=3 * length)
    more = [64 + ord(letter) for letter in any_text(rng, ASKS)]
    turn = ask(client, input_ids=[*prompt, *first.token_ids, *more], max_new_tokens=length)
    known = (len(prompt) + 2 * length) // length * length  # the last canvas is never encoded
    rest = -(-(turn.prompt_tokens - known) // length)
    return Line(
        f"second turn behind {len(prompt)} tokens and 3 blocks",
        f"{turn.cached_tokens} cached, {turn.prefill_chunks} chunks",
        f"{known} cached, {rest} chunks",
        (turn.cached_tokens, turn.prefill_chunks) == (known, rest),
    )


def costs(played: Sequence[Round], length: int) -> Iterator[Line]:
    """By what usage says."""
    again = [each.again for each in played]
    right = sum(
        each.again.cached_tokens == each.first.prompt_tokens // length * length for each in played
    )
    new = sum(
        turn.prefill_chunks == -(-(turn.prompt_tokens - turn.cached_tokens) // length)
        for turn in again
    )
    chunks = sorted({turn.prefill_chunks for turn in again})
    cold = sorted({each.cold.prefill_chunks for each in played})
    yield Line(
        f"second turns of {played[0].first.prompt_tokens} tokens, {len(played)} chats",
        f"{right} found all of the first turn; {chunks} chunks instead of {cold}",
        "all, and no other chunk is encoded",
        right == new == len(played),
    )
    known = sum(each.other.cached_tokens + each.cold.cached_tokens for each in played)
    yield Line("  another tenant's, the same prompt", f"{known} tokens found", "0", known == 0)


def timings(played: Sequence[Round]) -> Iterator[Line]:
    """By a clock: the time to the first block, in pairs of one chat."""

    def ratios(name: str) -> list[float]:
        return [getattr(each, name).seconds / each.cold.seconds for each in played]

    cold = np.median([each.cold.seconds for each in played])
    yield Line("first block of a cold prompt", f"{cold * 1e3:.1f} ms, median", "")
    for name, who in (("again", "same tenant"), ("other", "other tenant")):
        found = ratios(name)
        chance = by_chance(found)
        low, high = interval(found)
        seen = f"{np.median(found):.3f} of it ({low:.3f} to {high:.3f}), p = {chance:.4f}"
        if name == "again":
            holds = bool(high <= FASTER and chance < CHANCE)
            yield Line(f"  {who}", seen, f"<= {FASTER}, p < {CHANCE}", holds)
        else:
            yield Line(f"  {who}", seen, f"no difference, p >= {CHANCE}", chance >= CHANCE)


def by_chance(ratios: Sequence[float]) -> float:
    """How often ratios as far from 1 would come of two that are the same: signs are flipped."""
    logs = np.log(ratios)
    # Ranks instead of sizes, as Wilcoxon has it: one slow request must not decide.
    ranks = np.abs(logs).argsort().argsort() + 1
    seen = abs(float((np.sign(logs) * ranks).sum()))
    signs = np.random.default_rng(1).choice([-1, 1], (FLIPS, len(ranks)))
    return float((1 + (np.abs(signs @ ranks) >= seen).sum()) / (1 + FLIPS))


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Of the median, 95 %: by drawing the samples again."""
    draws = np.random.default_rng(2).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)
