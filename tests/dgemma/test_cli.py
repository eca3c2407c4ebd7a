"""`dgemma generate`, and what all commands have in common."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer
from typer.testing import CliRunner, Result

from dgemma import __version__
from dgemma.cli import _summary, app
from dgemma.client import DEFAULT_TIMEOUT_S
from tests.dgemma import tls
from tests.dgemma.fake_triton import (
    USAGE,
    FakeTriton,
    answer,
    failure,
    inputs,
    one_block_then_wait,
    response,
)

PATIENCE_S = 60.0
SUMMARY = "30 tokens in 0.15 s · 200 tokens/s · 3.5 steps per block · 9 passes · seed 1234\n"


@pytest.fixture
def fake() -> Iterator[FakeTriton]:
    with FakeTriton(answer) as server:
        yield server


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def generate(fake: FakeTriton, *arguments: str, stdin: str | None = None) -> Result:
    return run("generate", "--url", fake.url, *arguments, stdin=stdin)


def sent(fake: FakeTriton) -> dict[str, Any]:
    """The one request that arrived; what is JSON in it is decoded, and no deadline mentioned."""
    [request] = fake.requests
    arrived: dict[str, Any] = {
        name: json.loads(value) if name in {"messages", "sampling_parameters"} else value
        for name, value in inputs(request).items()
    }
    assert arrived["sampling_parameters"].pop("deadline_s") == DEFAULT_TIMEOUT_S
    return {name: value for name, value in arrived.items() if value}


# What is printed


def test_the_answer_goes_to_standard_output_and_a_summary_to_standard_error(
    fake: FakeTriton,
) -> None:
    result = generate(fake, "hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello, world\n", SUMMARY)
    assert sent(fake) == {"messages": [{"role": "user", "content": "hi"}], "stream": "block"}


def test_the_summary_of_what_was_simulated_says_so() -> None:
    summary = _summary({**USAGE, "simulated": "h100-fp8-goal"})
    assert summary == SUMMARY.rstrip("\n") + " · simulated h100-fp8-goal"


def test_json_is_one_object_with_the_whole_answer(fake: FakeTriton) -> None:
    result = generate(fake, "hi", "--json")
    assert json.loads(result.stdout) == {
        "kind": "final",
        "text": "Hello, world",
        "token_ids": [1, 2, 3, 4],
        "finish_reason": "stop",
        "usage": USAGE,
    }
    assert (result.exit_code, result.stdout.count("\n"), result.stderr) == (0, 1, "")
    assert sent(fake)["stream"] == "none"


def test_watching_prints_plain_lines_where_there_is_no_terminal(fake: FakeTriton) -> None:
    result = generate(fake, "hi", "--watch")
    assert result.exit_code == 0
    assert result.stdout == (
        "block 0 step 1: He⏎xo,\n"
        "block 0 step 2: Hello,\n"
        "block 1 step 1:  wörld\n"
        "block 1 step 2:  world\n"
        "Hello, world\n"
    )
    assert result.stderr == SUMMARY
    assert sent(fake)["stream"] == "draft"


def test_watching_with_json_prints_an_object_per_update(fake: FakeTriton) -> None:
    result = generate(fake, "hi", "--watch", "--json")
    objects = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [found["kind"] for found in objects]
    assert kinds == ["draft", "draft", "block", "draft", "draft", "block", "final"]
    assert objects[0]["states"] == [1, 1, 0, 0, 0, 2]
    assert objects[-1]["text"] == "Hello, world"


# What is sent


def test_options_become_the_request(fake: FakeTriton) -> None:
    result = generate(
        fake,
        *("hi", "--preset", "fast", "--template", r"a\n<|gap:3|>"),
        *("--set", "seed=7", "--set", "stop=END", "--set", "t_min=0.5"),
    )
    assert result.exit_code == 0, result.output
    assert sent(fake) == {
        "messages": [{"role": "user", "content": "hi"}],
        "canvas_template": "a\n<|gap:3|>",
        "sampling_parameters": {"seed": 7, "stop": "END", "t_min": 0.5, "preset": "fast"},
        "stream": "block",
    }


def test_messages_and_template_come_from_files(fake: FakeTriton, tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "né"}]
    chat, template = tmp_path / "chat.json", tmp_path / "template.txt"
    chat.write_text(json.dumps(messages))
    template.write_text("<|gap:2|>\\n\n")
    assert generate(fake, "--messages", str(chat), "--template", f"@{template}").exit_code == 0
    assert sent(fake)["messages"] == messages
    assert sent(fake)["canvas_template"] == "<|gap:2|>\\n"


def test_a_prompt_from_standard_input_can_be_raw(fake: FakeTriton) -> None:
    assert generate(fake, "-", "--raw", stdin="né\n").exit_code == 0
    assert sent(fake) == {"text_input": "né", "stream": "block"}


@pytest.mark.parametrize(
    ("arguments", "variable", "expected"),
    [
        ([], None, None),
        ([], "", None),
        ([], "dgk_v", "Bearer dgk_v"),
        (["--api-key", "dgk_a"], None, "Bearer dgk_a"),
        (["--api-key", "dgk_a"], "dgk_v", "Bearer dgk_a"),
    ],
)
def test_the_api_key_comes_from_the_option_or_the_variable(
    fake: FakeTriton,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    variable: str | None,
    expected: str | None,
) -> None:
    monkeypatch.delenv("DGEMMA_API_KEY", raising=False)
    if variable is not None:
        monkeypatch.setenv("DGEMMA_API_KEY", variable)
    assert generate(fake, "hi", *arguments).exit_code == 0
    assert fake.metadata[0].get("authorization") == expected


def test_a_server_with_tls_is_reached_with_its_authority(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_bytes(tls.CERTIFICATE)
    with FakeTriton(answer, tls=(tls.KEY, tls.CERTIFICATE)) as fake:
        result = generate(fake, "hi", "--tls-ca", str(authority))
    assert (result.exit_code, result.stdout) == (0, "Hello, world\n")


# Exit codes and error texts


def fails(result: Result, code: int, *words: str) -> None:
    """One line about the error on standard error, no more."""
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 2),
        (grpc.StatusCode.UNAUTHENTICATED, 2),
        (grpc.StatusCode.UNAVAILABLE, 1),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
        (grpc.StatusCode.INTERNAL, 1),
        (grpc.StatusCode.UNIMPLEMENTED, 1),
    ],
)
@pytest.mark.parametrize("arguments", [(), ("--json",), ("--watch",), ("--watch", "--json")])
def test_an_error_of_the_server_is_one_line_and_an_exit_code(
    status: grpc.StatusCode, code: int, arguments: tuple[str, ...]
) -> None:
    with FakeTriton(failure(status, f"why {status.name}")) as fake:
        result = generate(fake, "hi", *arguments)
    fails(result, code, f"error: why {status.name}\n")
    assert result.stdout == ""


def test_an_error_in_the_middle_keeps_the_text_before_it() -> None:
    script = failure(grpc.StatusCode.INTERNAL, "broken", after=(response("block", "so far"),))
    with FakeTriton(script) as fake:
        result = generate(fake, "hi")
    fails(result, 1, "broken")
    assert result.stdout == "so far\n"


def test_no_server_is_an_error_that_says_how_to_start_one(fake: FakeTriton) -> None:
    fake.__exit__()
    fails(generate(fake, "hi"), 1, f"no server answers at {fake.url}", "make serve")


def test_a_missed_deadline_is_an_error(fake: FakeTriton) -> None:
    with FakeTriton(one_block_then_wait) as slow:
        result = generate(slow, "hi", "--timeout", "0.3")
        fails(result, 1, "within 0.3 s")
        assert slow.cancelled.wait(PATIENCE_S)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "PROMPT: give either PROMPT or --messages FILE"),
        (["hi", "--messages", "x.json"], "PROMPT: give either"),
        (["--messages", "/no/such.json"], "--messages: cannot read /no/such.json"),
        (["--messages", "x", "--raw"], "--raw: applies to PROMPT"),
        (["hi", "--set", "seed"], "--set: write KEY=VALUE"),
        (["hi", "--set", "messages=1"], "--set: messages is not a sampling parameter"),
        (["hi", "--template", "@/no/such"], "--template: cannot read /no/such"),
        (["hi", "--timeout", "0"], "timeout_s: must be above 0"),
        (["hi", "--url", "http://x:1"], "url: must be HOST:PORT"),
        (["hi", "--api-key", "two words"], "api_key: must be printable ASCII"),
        (["hi", "--tls-ca", "/no/such.pem"], "tls_ca: cannot read /no/such.pem"),
        (["hi\udcff"], "messages: not valid Unicode"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(
    fake: FakeTriton, arguments: list[str], words: str
) -> None:
    fails(generate(fake, *arguments), 2, words)
    assert fake.requests == []


@pytest.mark.parametrize("arguments", [["--preset", "best"], ["--unknown"], ["--timeout", "soon"]])
def test_options_that_do_not_exist_are_usage_errors(fake: FakeTriton, arguments: list[str]) -> None:
    result = generate(fake, "hi", *arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert fake.requests == []


def test_an_error_text_controls_no_terminal() -> None:
    with FakeTriton(failure(grpc.StatusCode.INTERNAL, "a\x1b[2Jb\rc")) as fake:
        result = generate(fake, "hi")
    assert result.stderr == "error: a␛[2Jb␍c\n"


# The rest of the command line


@pytest.mark.parametrize("command", [[], ["generate"], ["serve"], ["replay"], ["tenants"]])
def test_every_command_explains_itself(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_the_version_is_the_package_s() -> None:
    assert run("--version").output == f"dgemma {__version__}\n"


def test_every_option_of_generate_has_a_help_text() -> None:
    [command] = [c for n, c in typer.main.get_command(app).commands.items() if n == "generate"]
    assert all(parameter.help for parameter in command.params if parameter.name != "help")


# As a process


class Process:
    """`dgemma generate` with its output on pipes."""

    def __init__(self, *arguments: str) -> None:
        # A shell that runs the tests in the background has them, and theirs, ignore Ctrl-C.
        heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        command = f"{heed}; from dgemma.cli import app; app()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, "generate", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> tuple[int, str, str]:
        out, error = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out.decode(), error.decode()


def test_ctrl_c_cancels_the_request_keeps_the_text_and_exits_with_130() -> None:
    with FakeTriton(one_block_then_wait) as fake, Process("hi", "--url", fake.url) as command:
        assert command.process.stdout is not None
        assert command.process.stdout.read(5) == b"Hello"
        command.process.send_signal(signal.SIGINT)
        assert fake.cancelled.wait(PATIENCE_S)
        code, out, error = command.end()
    assert (code, out) == (130, "\n")
    assert error == "error: interrupted, the request is cancelled\n"


def test_ctrl_c_while_watching_cancels_too() -> None:
    with FakeTriton(one_block_then_wait) as fake:
        with Process("hi", "--url", fake.url, "--watch") as command:
            deadline = time.monotonic() + PATIENCE_S
            while not fake.requests:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            command.process.send_signal(signal.SIGINT)
            assert command.end()[0] == 130
        assert fake.cancelled.wait(PATIENCE_S)


def test_nothing_but_the_sentence_is_on_standard_error_when_no_server_answers() -> None:
    with FakeTriton(answer) as gone:
        url = gone.url
    with Process("hi", "--url", url) as command:
        code, out, error = command.end()
    assert (code, out) == (1, "")
    assert error.startswith(f"error: no server answers at {url}")
    assert error.count("\n") == 1
