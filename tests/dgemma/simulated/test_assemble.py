from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from dgemma.assemble import Parts
from dgemma.errors import ConfigurationError, InvalidRequest
from dgemma.request import RawRequest
from dgemma.scheduler.events import Block, Event, Finished
from dgemma.scheduler.options import Options
from dgemma.simulated.assemble import assemble_simulated
from dgemma.simulated.clock import VirtualClock

OPTIONS = Options(prefix_cache_bytes=1 << 30)


@pytest.fixture
def parts(demo_checkpoint: Path) -> Parts:
    return assemble_simulated(
        "h100-fp8", demo_checkpoint, slots=4, options=OPTIONS, clock=VirtualClock()
    )


def run(parts: Parts, *asked: dict[str, Any], text: bytes = b"hello") -> list[list[Event]]:
    """All of the requests together."""
    heard: list[list[Event]] = [[] for _ in asked]
    for number, parameters in enumerate(asked):
        raw = RawRequest(text_input=text, sampling_parameters=json.dumps(parameters).encode())
        parts.scheduler.submit(parts.parser.parse(raw, str(number)), heard[number].append)
    while parts.scheduler.step():
        pass
    return heard


def usage(events: list[Event]) -> Any:
    last = events[-1]
    assert isinstance(last, Finished) and last.error is None
    return last.usage


def test_one_request_gets_what_the_roofline_gives(parts: Parts) -> None:
    """Tokens per second are 256 / (passes × pass time) for each of its canvases."""
    assert parts.simulation is not None
    [events] = run(parts, {"max_new_tokens": 1024, "seed": 5, "ignore_eos": True})
    found = usage(events)
    assert found.completion_tokens == 1024
    assert found.passes == sum(found.denoising_steps)
    platform = parts.simulation.platform
    quickest, slowest = (platform.pass_s([n, n + 256], 1) for n in (0, 1024))
    assert quickest <= found.total_ms / 1e3 / found.passes <= slowest
    assert parts.simulation.device.spent.busy == pytest.approx(found.total_ms / 1e3, abs=1e-3)
    assert parts.simulation.device.spent.starved == 0.0


def test_an_answer_is_the_same_alone_and_in_a_crowd(parts: Parts, demo_checkpoint: Path) -> None:
    wanted = [{"max_new_tokens": 700, "seed": seed} for seed in range(6)]
    crowd = run(parts, *wanted)
    for parameters, events in zip(wanted, crowd, strict=True):
        [alone] = run(parts, parameters)
        assert usage(alone).denoising_steps == usage(events).denoising_steps
        assert blocks(alone) == blocks(events)


def blocks(events: list[Event]) -> list[Block]:
    return [event for event in events if isinstance(event, Block)]


def test_answers_are_text_of_the_length_that_was_asked_for(parts: Parts) -> None:
    [events] = run(parts, {"max_new_tokens": 300, "ignore_eos": True, "seed": 1})
    text = "".join(block.delta.text for block in blocks(events))
    assert len(text) == 300 and text.isascii() and text.isalnum()


def test_some_answers_stop_by_themselves(parts: Parts) -> None:
    wanted = [{"max_new_tokens": 4096, "seed": seed} for seed in range(8)]
    ends = [events[-1] for events in run(parts, *wanted)]
    reasons = [end.finish_reason for end in ends if isinstance(end, Finished)]
    assert reasons.count("stop") >= 6
    assert all(usage([end]).completion_tokens < 4096 for end in ends[:1])


def test_a_prompt_that_is_known_is_not_encoded_again(parts: Parts) -> None:
    text = b"word " * 300
    [first], [second] = (run(parts, {"max_new_tokens": 5, "seed": 1}, text=text) for _ in range(2))
    assert usage(first).cached_tokens == 0
    assert usage(second).cached_tokens == 1280
    assert usage(second).total_ms < usage(first).total_ms


def test_a_context_of_128k_tokens_needs_no_memory(demo_checkpoint: Path) -> None:
    made = assemble_simulated("dgx-spark-nvfp4", demo_checkpoint, slots=1, clock=VirtualClock())
    raw = RawRequest(input_ids=[100] * 131072, sampling_parameters=b'{"max_new_tokens": 9}')
    heard: list[Event] = []
    made.scheduler.submit(made.parser.parse(raw, "long"), heard.append)
    while made.scheduler.step():
        pass
    assert usage(heard).prefill_chunks == 512


def test_ids_are_those_of_the_tokenizer(parts: Parts) -> None:
    parts.parser.parse(RawRequest(input_ids=[319]), "last")
    with pytest.raises(InvalidRequest, match=r"got 320; allowed: 0 to 319, the vocabulary"):
        parts.parser.parse(RawRequest(input_ids=[320]), "none")


def test_everything_that_is_said_says_simulated(
    demo_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        made = assemble_simulated("h100-fp8-goal", demo_checkpoint, slots=8, clock=VirtualClock())
    assert caplog.messages and all("simulated" in message for message in caplog.messages)
    description = next(m for m in caplog.messages if "nothing is computed" in m)
    assert "1.25 × the roofline of H100 80 GB" in description
    assert made.selection is not None and made.simulation is not None
    assert made.selection.name == "simulated-h100-fp8-goal"
    assert made.simulation.report().startswith("simulated h100-fp8-goal: ")


@pytest.mark.parametrize(
    ("name", "slots", "message"),
    [
        ("rtx-4090-fp8", 1, r"simulated weights .*: only 24564\.0 MiB are free; the simulated RTX"),
        ("h100-fp8", 32, r"simulated K/V of 32 slots × 262144 .*; .* set fewer DGEMMA_SLOTS"),
        ("tpu-bf16", 1, "DGEMMA_SIMULATE: got 'tpu-bf16'"),
    ],
)
def test_what_the_platform_could_not_hold_is_refused(
    demo_checkpoint: Path, name: str, slots: int, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        assemble_simulated(name, demo_checkpoint, slots=slots)
