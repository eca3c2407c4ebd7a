"""The wire contract with a real Triton server: what is sent and what comes back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from dgemma.client import Client, gather
from dgemma_build.demo.prompts import count_prompt
from dgemma_build.demo.vocabulary import chat_prompt, to_ids
from tests.triton.raw import TYPES, Answered, ask, inputs, joined, stream

CANVAS = 96
MODES = ("none", "block", "draft")
# Three canvases of which the last is cut; every canvas takes two or three steps.
SAMPLING: dict[str, Any] = {
    "seed": 7,
    "max_new_tokens": 200,
    "max_denoising_steps": 3,
    "ignore_eos": True,
    "return_token_ids": True,
}
PROMPT = count_prompt(3)
USAGE = {
    *("prompt_tokens", "completion_tokens", "committed_tokens", "denoising_steps", "cap_hits"),
    *("mean_entropy", "passes", "prefill_chunks", "service_units", "cached_tokens", "seed"),
    *("queue_ms", "first_block_ms", "total_ms"),
}


def answer_ids(url: str, **changes: Any) -> list[int]:
    return joined(ask(url, inputs(text_input=PROMPT, sampling={**SAMPLING, **changes})))[1]


@pytest.fixture(scope="module")
def answers(url: str) -> dict[str, list[Answered]]:
    """The same request in each stream mode."""
    return {
        mode: ask(url, inputs(text_input=PROMPT, stream=mode, sampling=SAMPLING)) for mode in MODES
    }


# Responses


@pytest.mark.parametrize("mode", MODES)
def test_every_response_has_all_outputs_with_their_types_and_shapes(
    answers: dict[str, list[Answered]], mode: str
) -> None:
    for response in answers[mode]:
        assert {name: datatype for name, (datatype, _) in response.declared.items()} == TYPES
        shapes = {name: shape for name, (_, shape) in response.declared.items()}
        ids, states = shapes.pop("token_ids"), shapes.pop("text_states")
        assert set(map(tuple, shapes.values())) == {(1,)}
        draft = response.kind == "draft"
        assert len(ids) == 1 and (ids == [CANVAS] or not draft)
        assert states == [len(response.text("text_output")) if draft else 0]


@pytest.mark.parametrize(
    ("mode", "per_block"), [("none", ""), ("block", "block"), ("draft", "draft*steps block")]
)
def test_a_stream_mode_decides_what_comes_before_the_one_final_response(
    answers: dict[str, list[Answered]], mode: str, per_block: str
) -> None:
    responses = answers[mode]
    expected: list[tuple[str, int, int]] = []
    for block, steps in enumerate(responses[-1].usage["denoising_steps"]):
        if "draft" in per_block:
            expected += [("draft", block, step) for step in range(1, steps + 1)]
        if "block" in per_block:
            expected.append(("block", block, steps))
    last = len(responses[-1].usage["denoising_steps"]) - 1
    expected.append(("final", last, responses[-1].usage["denoising_steps"][-1]))
    assert [
        (r.kind, int(r.outputs["block_index"][0]), int(r.outputs["denoising_step"][0]))
        for r in responses
    ] == expected
    assert [r.final for r in responses] == [False] * (len(responses) - 1) + [True]


def test_blocks_come_unless_something_else_is_asked_for(
    url: str, answers: dict[str, list[Answered]]
) -> None:
    responses = ask(url, inputs(text_input=PROMPT, sampling=SAMPLING))
    assert [r.kind for r in responses] == [r.kind for r in answers["block"]]


def test_all_stream_modes_give_the_same_answer(answers: dict[str, list[Answered]]) -> None:
    results = {mode: joined(responses) for mode, responses in answers.items()}
    assert results["none"] == results["block"] == results["draft"]
    assert len(results["none"][1]) == SAMPLING["max_new_tokens"]


@pytest.mark.parametrize("mode", MODES)
def test_the_client_library_gives_what_the_raw_stream_gives(
    url: str, answers: dict[str, list[Answered]], mode: Any
) -> None:
    with Client(url) as client:
        updates = list(client.stream(PROMPT, stream=mode, **SAMPLING))
    assert [
        (u.kind, u.text, list(u.token_ids), list(u.states), u.block_index, u.denoising_step)
        for u in updates
    ] == [
        (
            r.kind,
            r.text("text_output"),
            r.outputs["token_ids"].tolist(),
            r.outputs["text_states"].tolist(),
            int(r.outputs["block_index"][0]),
            int(r.outputs["denoising_step"][0]),
        )
        for r in answers[mode]
    ]
    whole = gather(updates)
    assert (whole.text, list(whole.token_ids)) == joined(answers[mode])
    assert whole.finish_reason == "length"
    assert whole.usage.keys() == USAGE


@pytest.mark.parametrize("mode", MODES)
def test_finish_reason_and_usage_come_with_the_final_response_only(
    answers: dict[str, list[Answered]], mode: str
) -> None:
    *before, final = answers[mode]
    assert {r.text("finish_reason") + r.text("usage") for r in before} <= {""}
    assert final.text("finish_reason") == "length"
    assert final.usage.keys() == USAGE


def test_the_usage_adds_up(answers: dict[str, list[Answered]]) -> None:
    usage = answers["block"][-1].usage
    steps = usage["denoising_steps"]
    assert usage["prompt_tokens"] == 1 + len(PROMPT)  # the service puts BOS in front
    assert usage["completion_tokens"] == SAMPLING["max_new_tokens"]
    assert usage["committed_tokens"] == 3 * CANVAS
    assert len(steps) == len(usage["mean_entropy"]) == 3
    assert all(1 <= count <= SAMPLING["max_denoising_steps"] for count in steps)
    assert usage["passes"] == sum(steps)  # prompt and commits ride along
    assert 0 <= usage["cap_hits"] <= 3
    assert usage["seed"] == SAMPLING["seed"]
    assert 0 <= usage["queue_ms"] <= usage["first_block_ms"] <= usage["total_ms"]


# Prompts


def test_messages_text_and_token_ids_are_three_ways_to_say_the_same(url: str) -> None:
    chat = json.dumps([{"role": "user", "content": PROMPT}])
    written = f"<bos><|turn>user\n{PROMPT}<turn|>\n<|turn>model\n"
    prompts: list[Any] = [{"messages": chat}, {"text_input": written}]
    prompts += [{"text_input": written.removeprefix("<bos>")}, {"input_ids": chat_prompt(PROMPT)}]
    finals = [ask(url, inputs(**p, stream="none", sampling=SAMPLING))[-1] for p in prompts]
    assert {final.usage["prompt_tokens"] for final in finals} == {len(chat_prompt(PROMPT))}
    assert all(joined([final]) == joined([finals[0]]) for final in finals)


def test_a_prompt_longer_than_a_canvas_takes_a_pass_for_each_further_canvas(url: str) -> None:
    prompt = to_ids("0123456789" * 30)  # 300 tokens: three whole canvases and 12
    [final] = ask(url, inputs(input_ids=prompt, stream="none", sampling=SAMPLING))
    assert final.usage["prompt_tokens"] == 300
    assert final.usage["passes"] == 3 + sum(final.usage["denoising_steps"])


# Sampling parameters


def test_a_drawn_seed_is_reported_and_reproduces_the_answer(url: str) -> None:
    # So hot that no step of any seed is like another's, however sure the network is.
    unseeded = {**SAMPLING, "t_min": 20.0, "t_max": 20.0}
    del unseeded["seed"]

    def run(**seed: int) -> tuple[int, tuple[str, list[int]], list[float]]:
        sampling = {**unseeded, **seed}
        [final] = ask(url, inputs(text_input=PROMPT, stream="none", sampling=sampling))
        return final.usage["seed"], joined([final]), final.usage["mean_entropy"]

    first, second = run(), run()
    assert first[0] != second[0]
    assert first[2] != second[2]
    assert run(seed=first[0]) == first
    assert run(seed=second[0]) == second


@pytest.mark.parametrize("asked", [None, False])
def test_token_ids_are_sent_only_on_request(url: str, asked: bool | None) -> None:
    sampling = {key: value for key, value in SAMPLING.items() if key != "return_token_ids"}
    if asked is not None:
        sampling["return_token_ids"] = asked
    responses = ask(url, inputs(text_input=PROMPT, stream="draft", sampling=sampling))
    assert [r.outputs["token_ids"].shape for r in responses] == [(0,)] * len(responses)
    assert {r.outputs["token_ids"].dtype for r in responses} == {np.dtype(np.int32)}


def test_the_fast_preset_runs_sixteen_steps_a_block(url: str) -> None:
    sampling = {"preset": "fast", "max_new_tokens": 200, "ignore_eos": True, "seed": 1}
    [final] = ask(url, inputs(text_input=PROMPT, stream="none", sampling=sampling))
    assert final.usage["denoising_steps"] == [16, 16, 16]
    assert final.usage["cap_hits"] == 3


def test_the_quality_preset_is_what_the_checkpoint_says(url: str) -> None:
    assert answer_ids(url, preset="quality") == answer_ids(url)


# Templates, whose pinned text is known whatever the network says


def pinned(url: str, template: str, **sampling: Any) -> tuple[str, Answered]:
    parameters = {"seed": 1, "return_token_ids": True, "max_denoising_steps": 4, **sampling}
    tensors = inputs(text_input=PROMPT, canvas_template=template, sampling=parameters)
    responses = ask(url, tensors)
    return joined(responses)[0], responses[-1]


@pytest.mark.parametrize("canvases", [1, 2])
def test_the_pinned_text_of_a_template_comes_back_unchanged(url: str, canvases: int) -> None:
    before, after = "x = [" + "1, " * (40 * (canvases - 1)), "]  # né ✓\n"
    template = f"{before}<|gap:9|>{after}"
    tensors = inputs(
        text_input=PROMPT, canvas_template=template, stream="draft", sampling={**SAMPLING}
    )
    responses = ask(url, tensors)
    _, ids = joined(responses)
    assert ids[: len(before)] == to_ids(before)
    assert ids[len(before) + 9 :][: len(to_ids(after))] == to_ids(after)
    drafts = [r for r in responses if r.kind == "draft"]
    assert drafts
    start = 0 if canvases == 1 else CANVAS
    held = to_ids(before)[start:]
    assert all(r.outputs["token_ids"].tolist()[: len(held)] == held for r in drafts)
    assert all(set(r.outputs["text_states"].tolist()[: len(held)]) == {2} for r in drafts)


def test_a_fully_pinned_template_needs_no_pass(url: str) -> None:
    template = "nothing is left to say. " * 6
    text, final = pinned(url, template)
    assert text == template
    assert final.usage["passes"] == 0
    assert final.usage["denoising_steps"] == [0, 0]


@pytest.mark.parametrize(
    ("ignored", "text", "reason"), [(False, "ab", "stop"), (True, "abcd", "length")]
)
def test_ignore_eos_goes_on_behind_a_stop_id(
    url: str, ignored: bool, text: str, reason: str
) -> None:
    answered, final = pinned(url, "ab<eos>cd", ignore_eos=ignored)
    assert answered == text
    assert final.text("finish_reason") == reason


@pytest.mark.parametrize("stop", ["END", ["END"], ["nowhere", "END"]])
@pytest.mark.parametrize("before", [20, CANVAS - 2, CANVAS - 1, CANVAS])
def test_a_stop_string_ends_the_answer_also_across_canvases(
    url: str, stop: Any, before: int
) -> None:
    text, final = pinned(url, "." * before + "END of it", stop=stop)
    assert text == "." * before
    assert final.text("finish_reason") == "stop"
    assert final.usage["completion_tokens"] == before


# Several requests


def test_a_late_request_joins_while_another_runs_and_gets_the_answer_it_gets_alone(
    url: str,
) -> None:
    alone = answer_ids(url)
    long = {"max_new_tokens": 96, "max_denoising_steps": 1024, "confidence_threshold": 0.0}
    with stream(url) as opened:
        opened.send(inputs(text_input="a", stream="draft", sampling=long), "early")
        while opened.answer().outputs["denoising_step"][0] < 3:
            pass
        opened.send(inputs(text_input=PROMPT, stream="block", sampling=SAMPLING), "late")
        late: list[Answered] = []
        drafts_between = 0
        while not (late and late[-1].final):
            response = opened.answer()
            assert response.request_id == "late" or not response.final
            if response.request_id == "late":
                late.append(response)
            else:
                drafts_between += 1
    assert joined(late)[1] == alone
    assert drafts_between >= late[-1].usage["passes"]  # they shared every pass
