from __future__ import annotations

import pytest

from dgemma.metrics.passes import PassMetrics, width
from dgemma.scheduler.options import Options
from dgemma.scheduler.stats import CacheStats, SchedulerStats
from tests.dgemma.engine.fake_engine import FakeEngine
from tests.dgemma.metrics.book import Book
from tests.dgemma.scheduler.requests import Desk, desk, fixed_steps, modes, request

MODEL = "demo"


@pytest.mark.parametrize(
    ("rows", "label"),
    [
        (1, "1"),
        (2, "2"),
        (3, "3-4"),
        (4, "3-4"),
        (5, "5-8"),
        (8, "5-8"),
        (9, "9-16"),
        (33, "33-64"),
    ],
)
def test_widths_are_powers_of_two(rows: int, label: str) -> None:
    assert width(rows) == label


def test_a_look_adds_what_has_happened_since_the_one_before() -> None:
    book = Book()
    metrics = PassMetrics(book, MODEL)
    metrics.look(SchedulerStats(4, 2, 1, 1, {1: 3, 3: 2, 4: 1}, 5, 8, 0.5, 2, CacheStats(6, 4)))
    again = SchedulerStats(4, 4, 0, 3, {1: 4, 3: 2, 4: 2}, 7, 11, 0.75, 2, CacheStats(9, 5, 1, 64))
    metrics.look(again)
    metrics.look(again)
    assert dict(book.counts) == {
        ("dgemma_passes_total", "1"): 4,
        ("dgemma_passes_total", "3-4"): 4,
        ("dgemma_rows_total", "encode"): 7,
        ("dgemma_rows_total", "denoise"): 11,
        ("dgemma_pass_seconds_total",): 0.75,
        ("dgemma_reruns_total",): 2,
        ("dgemma_preemptions_total",): 3,
        ("dgemma_prefix_cache_lookups_total",): 9,
        ("dgemma_prefix_cache_hits_total",): 5,
        ("dgemma_prefix_cache_evictions_total",): 1,
    }
    assert book.gauges == {
        ("num_requests_running", MODEL): 4,
        ("num_requests_waiting", MODEL): 0,
        ("num_request_max", MODEL): 4,
        ("gpu_cache_usage_perc", MODEL): 1.0,
        ("dgemma_prefix_cache_bytes",): 64,
    }


def looked(at: Desk) -> Book:
    book = Book()
    PassMetrics(book, MODEL).look(at.scheduler.stats)
    return book


def test_the_scheduler_counts_rows_as_the_engine_has_seen_them() -> None:
    at = desk(slots=2)
    at.submit(*(request(name, **fixed_steps(3), max_new_tokens=20) for name in "abc"))
    at.run()
    seen = modes(at.engine.passes)
    book = looked(at)
    assert book.counts["dgemma_rows_total", "encode"] == "".join(seen).count("e")
    assert book.counts["dgemma_rows_total", "denoise"] == "".join(seen).count("d")
    passes = {key[1]: n for key, n in book.counts.items() if key[0] == "dgemma_passes_total"}
    assert passes == {
        label: sum(width(len(rows)) == label for rows in seen) for label in set(passes)
    }
    assert sum(passes.values()) == len(seen) == at.scheduler.passes
    assert sum(at.usage(name).service_units for name in "abc") == sum(map(len, seen))
    assert book.counts["dgemma_pass_seconds_total",] > 0


def test_a_pass_that_failed_is_not_counted() -> None:
    at = desk(slots=1)
    at.engine.failure = RuntimeError("bad pass")
    at.submit(request("a"))
    with pytest.raises(RuntimeError):
        at.scheduler.step()
    assert at.scheduler.passes == 0


def test_who_runs_and_who_waits() -> None:
    at = desk(slots=2)
    at.submit(*(request(name, **fixed_steps(3)) for name in "abc"))
    at.scheduler.step()
    book = looked(at)
    assert book.gauges["num_requests_running", MODEL] == 2
    assert book.gauges["num_requests_waiting", MODEL] == 1
    assert book.gauges["gpu_cache_usage_perc", MODEL] == 1.0


def test_prompts_that_begin_alike_are_hits() -> None:
    engine = FakeEngine(2)
    length = engine.geometry.canvas_length
    at = Desk.of(engine, Options(prefix_cache_bytes=1 << 20))
    prompt = [*range(20, 20 + 2 * length), 20]
    for name in "ab":
        at.submit(request(name, prompt=prompt, cache_salt=b"s"))
        at.run()
    book = looked(at)
    assert book.counts["dgemma_prefix_cache_lookups_total",] == 4
    assert book.counts["dgemma_prefix_cache_hits_total",] == 2
    assert at.usage("b").cached_tokens == 2 * length
    assert book.gauges["dgemma_prefix_cache_bytes",] == at.scheduler.cache.nbytes > 0  # type: ignore[union-attr]
