"""What is drawn for a request: prompts, lengths and who leaves, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgemma_loadtest import fit, prompts
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.fit import Fit
from dgemma_loadtest.jobs import Job, JobSource, stream
from tests.loadtest.make import scenario_of

LIBRARY = prompts.library()


def jobs(count: int, fit: Fit | None = None, seed: int = 5, **load: Any) -> list[Job]:
    (made,) = scenario_of({"users": 1, **load}).stages[0].loads
    source = JobSource(made, LIBRARY, fit or Fit(), stream(seed, 0), "x")
    return [source.next(0) for _ in range(count)]


def test_the_same_seed_gives_the_same_jobs() -> None:
    mixed = {"prompts": {"code": 1, "random": 1}, "answer_tokens": {"min": 1, "max": 900}}
    assert jobs(50, **mixed) == jobs(50, **mixed)
    assert jobs(50, **mixed) != jobs(50, seed=6, **mixed)


def test_classes_by_their_shares() -> None:
    found = Counter(job.prompt.prompt_class for job in jobs(4000, prompts={"code": 3, "prose": 1}))
    assert found["code"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_no_two_fresh_prompts_begin_alike() -> None:
    beginnings = {job.prompt.text[:16] for job in jobs(200, prompts={"short": 1})}
    assert len(beginnings) == 200
    assert len({job.prompt.text for job in jobs(99, prompts={"short": 1}, fresh=False)}) <= 8


def test_exact_prompts_are_left_alone() -> None:
    texts = {entry.text for entry in LIBRARY["demo"]}
    assert {job.prompt.text for job in jobs(99, prompts={"demo": 1}, prompt_tokens=500)} <= texts


def test_lengths() -> None:
    (long,) = jobs(1, prompts={"prose": 1}, prompt_tokens=9000)
    assert len(long.prompt.text) == 36_000
    drawn = [job.max_new_tokens for job in jobs(500, answer_tokens={"min": 3, "max": 7})]
    assert set(drawn) == {3, 4, 5, 6, 7}
    assert {job.max_new_tokens for job in jobs(99, answer_tokens=[20, 300])} == {20, 300}


def test_lengths_are_held_to_what_the_model_takes() -> None:
    small = Fit(context=1024, characters=1.0)
    (job,) = jobs(1, small, prompts={"prose": 1}, prompt_tokens=8192, answer_tokens=2048)
    assert job.max_new_tokens == 512 and len(job.prompt.text) == 1024 - 512 - fit.RESERVED
    (job,) = jobs(1, small, prompts={"random": 1}, prompt_tokens=8192, answer_tokens=100)
    assert job.max_new_tokens == 100 and len(job.prompt.text) == 1024 - 100 - fit.RESERVED


def test_leavers() -> None:
    leavers = jobs(1000, cancel={"share": 0.3, "after_blocks": 2})
    leave = sum(job.cancel_after_blocks == 2 for job in leavers)
    assert leave / 1000 == pytest.approx(0.3, abs=0.05)
    assert all(job.cancel_after_s is None for job in leavers)


def test_infill_takes_prompts_with_a_template() -> None:
    assert all(job.prompt.template for job in jobs(60, prompts={"demo": 1}, task="infill"))


def test_thinking() -> None:
    (load,) = scenario_of({"users": 1, "think_s": 2.0}).stages[0].loads
    source = JobSource(load, LIBRARY, Fit(), stream(1), "x")
    assert np.mean([source.think() for _ in range(4000)]) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("text", ["context=0", "context=x", "tokens=5", "context", ""])
def test_fits_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="fit: got"):
        fit.parse(text)


def test_fit() -> None:
    assert fit.parse("context=1024,characters=1.5") == Fit(1024, 1.5)
    assert Fit().answer(9_999_999) == 9_999_999 and Fit().prompt(5) is None


def test_own_prompts(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("- {name: one, text: Hello}")
    found = prompts.library(own)
    assert [entry.text for entry in found["mine"]] == ["Hello"] and "code" in found
    assert "mine" in prompts.library(tmp_path)
    own.write_text("- {name: one}")
    with pytest.raises(InputError, match=r"mine\.yaml: 0\.text"):
        prompts.library(own)
    with pytest.raises(InputError, match="directory of them"):
        prompts.library(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no class 'nothing'; known: code, demo"):
        prompts.check({"nothing": 1.0}, LIBRARY, "generate")
    with pytest.raises(InputError, match="has a template"):
        prompts.check({"prose": 1.0}, LIBRARY, "infill")
