from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from dgemma.answer import Answer
from dgemma.assemble import Parts, assemble
from dgemma.request import Request, RequestParser
from dgemma.scheduler.options import Options
from dgemma.scheduler.scheduler import Scheduler
from dgemma.tail.draws import SeededDraws
from dgemma.tail.statistics import Head
from dgemma.tail.tail import Tail
from dgemma_build.demo.vocabulary import EOS, VOCAB_SIZE
from tests.dgemma.engine.fake_engine import FakeEngine, geometry_of
from tests.identity import CROWD, keyed_by_row, mixes_differ
from tests.tiny_checkpoint import DEFAULTS, byte_tokenizer


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are quicker without threads, above all on a machine that is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fake_parts(slots: int = CROWD, options: Options | None = None) -> Parts:
    """The real tail and scheduler over an engine whose wishes waver with every canvas it sees."""
    engine = FakeEngine(slots, wavering=11.0, geometry=geometry_of(sliding_window=16))
    length, tokenizer = engine.geometry.canvas_length, byte_tokenizer()
    tail = Tail(Head(engine.embedding(), 30.0), SeededDraws(length, VOCAB_SIZE))
    parser = RequestParser(
        DEFAULTS,
        tokenizer,
        vocab_size=VOCAB_SIZE,
        canvas_length=length,
        max_model_len=engine.capacity.context,
        image_token_ids=frozenset(),
    )

    def answer(request: Request) -> Answer:
        return Answer(tokenizer, request.sampling, frozenset({EOS}))

    return Parts(parser, Scheduler(engine, tail, answer, options))


def test_a_request_gets_the_same_tokens_alone_and_in_a_crowd() -> None:
    assert mixes_differ(fake_parts, mixes=15, seed=1) == 0


def test_noise_keyed_by_row_is_found_out() -> None:
    assert mixes_differ(lambda: keyed_by_row(fake_parts()), mixes=8, seed=1) >= 4


def test_a_request_that_makes_room_gets_the_same_tokens() -> None:
    parts = fake_parts(slots=2)
    assert mixes_differ(lambda: parts, mixes=8, seed=3) == 0
    assert parts.scheduler.stats.preemptions >= 5


def test_a_request_gets_the_same_tokens_with_what_others_have_left_in_the_cache() -> None:
    """Prompts are short here: what is found of them was encoded in the same chunks."""
    parts = fake_parts(slots=2, options=Options(prefix_cache_bytes=10 * 64))
    assert mixes_differ(lambda: parts, mixes=8, seed=4) == 0
    cache = parts.scheduler.cache
    assert cache is not None and len(cache) > 0


@pytest.fixture(scope="module")
def demo_parts(demo_engine: Path, demo_checkpoint: Path) -> partial[Parts]:
    return partial(assemble, demo_engine, demo_checkpoint, slots=CROWD, threads=1)


def test_the_demo_engine_gives_the_same_tokens_alone_and_in_a_crowd(
    demo_parts: partial[Parts],
) -> None:
    assert mixes_differ(demo_parts, mixes=3, seed=2) == 0


def test_the_demo_engine_with_noise_keyed_by_row_is_found_out(demo_parts: partial[Parts]) -> None:
    assert mixes_differ(lambda: keyed_by_row(demo_parts()), mixes=3, seed=2) > 0
