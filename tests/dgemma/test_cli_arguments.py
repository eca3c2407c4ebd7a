from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgemma.cli_arguments import prompt_options, sampling_options, template_text
from dgemma.client import RequestRejected
from dgemma.sampling import SamplingParameters


def from_stdin(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


# The prompt


def test_a_prompt_is_one_message_of_the_user() -> None:
    assert prompt_options("hi", None, raw=False) == {
        "messages": [{"role": "user", "content": "hi"}]
    }


def test_a_raw_prompt_is_sent_as_it_is() -> None:
    assert prompt_options(r"a\nb", None, raw=True) == {"prompt": r"a\nb"}


@pytest.mark.parametrize("data", ["né\n", "né\r\n", "né"])
def test_a_dash_reads_standard_input_without_its_last_line_break(
    data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_stdin(data.encode(), monkeypatch)
    assert prompt_options("-", None, raw=True) == {"prompt": "né"}


def test_only_one_line_break_is_taken_off() -> None:
    assert prompt_options("\n\n", None, raw=True) == {"prompt": "\n\n"}


def test_messages_come_from_a_file(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "né"}, {"role": "user", "content": "hi"}]
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(messages, ensure_ascii=False))
    assert prompt_options(None, str(file), raw=False) == {"messages": messages}


def test_messages_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    from_stdin(b'{"messages": []}', monkeypatch)
    assert prompt_options(None, "-", raw=False) == {"messages": {"messages": []}}


@pytest.mark.parametrize(
    ("prompt", "messages", "raw", "error"),
    [
        (None, None, False, "PROMPT: give either"),
        ("x", "chat.json", False, "PROMPT: give either"),
        (None, "chat.json", True, "--raw: applies to PROMPT, not to --messages"),
    ],
)
def test_a_prompt_and_messages_exclude_each_other(
    prompt: str | None, messages: str | None, raw: bool, error: str
) -> None:
    with pytest.raises(RequestRejected, match=f"^{error}"):
        prompt_options(prompt, messages, raw)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (None, "--messages: cannot read FILE: No such file or directory"),
        (b"[{", "--messages: FILE is not JSON: "),
        (b'["\xff"]', "--messages: FILE is not UTF-8 text: "),
    ],
)
def test_a_file_of_messages_that_cannot_be_used_is_named_with_the_reason(
    tmp_path: Path, data: bytes | None, error: str
) -> None:
    file = tmp_path / "chat.json"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(RequestRejected) as caught:
        prompt_options(None, str(file), raw=False)
    assert caught.value.message.startswith(error.replace("FILE", str(file)))


# --set


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("seed=7", {"seed": 7}),
        ("t_min=0.5", {"t_min": 0.5}),
        ("ignore_eos=true", {"ignore_eos": True}),
        ('stop=["a", "b"]', {"stop": ["a", "b"]}),
        ("stop=END", {"stop": "END"}),
        ('stop="7"', {"stop": "7"}),
        ("stop=a=b", {"stop": "a=b"}),
        ("stop=", {"stop": ""}),
        ("unheard_of=1", {"unheard_of": 1}),  # the server knows what it accepts
    ],
)
def test_a_value_is_json_where_it_can_be_and_a_string_otherwise(
    setting: str, expected: dict[str, Any]
) -> None:
    assert sampling_options([setting]) == expected


def test_settings_add_up_and_the_last_one_of_a_key_wins() -> None:
    assert sampling_options(["seed=1", "t_min=1", "seed=2"]) == {"seed": 2, "t_min": 1}


@pytest.mark.parametrize("setting", ["seed", "=7", ""])
def test_a_setting_without_key_or_value_is_rejected(setting: str) -> None:
    with pytest.raises(RequestRejected, match=r"^--set: write KEY=VALUE, got "):
        sampling_options([setting])


@pytest.mark.parametrize(
    "key",
    [
        *("prompt", "messages", "input_ids", "canvas_template", "preset"),
        *("stream", "timeout_s", "options", "self"),
    ],
)
def test_what_has_an_option_of_its_own_or_is_no_parameter_cannot_be_set(key: str) -> None:
    with pytest.raises(RequestRejected, match=f"^--set: {key} is not a sampling parameter"):
        sampling_options([f"{key}=1"])


def test_everything_else_that_a_request_may_say_can_be_set() -> None:
    keys = set(SamplingParameters.model_fields) - {"preset"}
    assert sampling_options(f"{key}=1" for key in keys) == dict.fromkeys(keys, 1)


# --template


@pytest.mark.parametrize(
    ("typed", "template"),
    [
        (r"a\nb\tc", "a\nb\tc"),
        (r"a\\nb", r"a\nb"),
        (r"\\\n", "\\\n"),
        (r"a\xb\ ", r"a\xb\ "),
        ("a\nb", "a\nb"),
        ("", ""),
    ],
)
def test_escapes_of_line_breaks_tabs_and_backslashes_are_understood(
    typed: str, template: str
) -> None:
    assert template_text(typed) == template


@given(st.text(st.sampled_from("ab\\nt\n\t<|>"), max_size=20))
def test_every_template_can_be_typed(template: str) -> None:
    typed = template.replace("\\", r"\\").replace("\n", r"\n").replace("\t", r"\t")
    assert template_text(typed) == template


def test_a_template_from_a_file_is_taken_literally(tmp_path: Path) -> None:
    file = tmp_path / "template.txt"
    file.write_text("a\\n<|gap:3|>\n\n")
    assert template_text(f"@{file}") == "a\\n<|gap:3|>\n"


def test_a_template_from_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RequestRejected, match=r"^--template: cannot read .*: No such file"):
        template_text(f"@{tmp_path / 'missing'}")
