"""`dgemma`: text from a server on the command line, the service itself, and the replay of a tape.

Knows options, exit codes and what goes to which stream; the work is done by `dgemma.client`,
`dgemma.watch` and `dgemma.replay`.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from dgemma import __version__, cli_revisions, cli_tenants
from dgemma.cli_arguments import prompt_options, sampling_options, template_text
from dgemma.cli_download import download
from dgemma.cli_exit import BAD_INPUT, INTERRUPTED, SERVER_FAILED, fail
from dgemma.cli_profiles import show_profiles
from dgemma.cli_serve import serve
from dgemma.client import (
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    Client,
    ClientError,
    Generation,
    RequestRejected,
    Unauthenticated,
    Update,
    gather,
)
from dgemma.errors import ConfigurationError, DgemmaError, InvalidRequest
from dgemma.watch import visible, watch

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.command("profiles")(show_profiles)
app.command("download-to-cache")(download)
app.command("rollback")(cli_revisions.rollback)
app.command("serve")(serve)
app.add_typer(cli_revisions.app, name="revisions")
app.add_typer(cli_tenants.app, name="tenants")


class Preset(StrEnum):
    """The presets of the service."""

    QUALITY = "quality"
    FAST = "fast"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dgemma {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Generates text with DiffusionGemma."""
    prepare()


def prepare() -> None:
    """Set this process up for a command."""
    # The gRPC core logs what is reported here as one sentence.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a narrow locale must not cost the answer


@app.command()
def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="One user message; - reads standard input.", metavar="PROMPT"),
    ] = None,
    messages: Annotated[
        str | None,
        typer.Option(
            help="JSON file with a list of chat messages, instead of PROMPT.", metavar="FILE"
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Send PROMPT as it is, without chat template.")
    ] = False,
    template: Annotated[
        str | None,
        typer.Option(
            help=r"Answer with gaps, as <|gap:12|>; \n, \t and \\ are understood. @FILE reads one.",
            metavar="TEXT",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Sampling parameter; repeatable.", metavar="KEY=VALUE"),
    ] = None,
    preset: Annotated[
        Preset | None, typer.Option(help="The checkpoint's own settings, or 16 fixed steps.")
    ] = None,
    url: Annotated[str, typer.Option(help="gRPC endpoint.", metavar="HOST:PORT")] = DEFAULT_URL,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="API key; others can see it in the command, not in the variable.",
            envvar="DGEMMA_API_KEY",
            metavar="KEY",
        ),
    ] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(help="PEM file of the server's authority; makes it TLS.", metavar="FILE"),
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds until the answer must be complete.")
    ] = DEFAULT_TIMEOUT_S,
    watching: Annotated[
        bool, typer.Option("--watch", help="Show the canvas at every denoise step.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; with --watch, one a line.")
    ] = False,
) -> None:
    """Generate an answer: text on standard output, a summary on standard error."""
    try:
        options = {
            **prompt_options(prompt, messages, raw),
            **sampling_options(settings or []),
            "canvas_template": None if template is None else template_text(template),
            "preset": preset and preset.value,
        }
        mode: Any = "draft" if watching else "none" if as_json else "block"
        with Client(url, api_key=api_key, tls_ca=tls_ca) as client:
            updates = client.stream(**options, stream=mode, timeout_s=timeout)
            shown = _show(updates, watching=watching, as_json=as_json)
            with closing(updates), closing(shown):
                generation = gather(shown)
    except ClientError as error:
        ours = isinstance(error, RequestRejected | Unauthenticated)
        fail(error.message, BAD_INPUT if ours else SERVER_FAILED)
    except KeyboardInterrupt:
        fail("interrupted, the request is cancelled", INTERRUPTED)
    if as_json:
        _print_object("final", generation)
    else:
        typer.echo(_summary(generation.usage), err=True)


@app.command()
def front(
    url: Annotated[
        str | None, typer.Option(help="Triton's gRPC endpoint.", metavar="HOST:PORT")
    ] = None,
    metrics_url: Annotated[str | None, typer.Option(help="Triton's metrics.")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0 takes any free one.")] = None,
) -> None:
    """Serve OpenAI's and NIM's HTTP endpoints beside a running service (NIM_*, DGEMMA_*)."""
    try:
        from dgemma.front.server import serve as run
        from dgemma.front.settings import FrontSettings
    except ModuleNotFoundError as error:
        _fail_without(error, "front")
    try:
        run(FrontSettings.load(triton_url=url, triton_metrics_url=metrics_url, port=port))
    except ConfigurationError as error:
        fail(str(error), BAD_INPUT)


@app.command()
def replay(
    checkpoint: Annotated[
        Path, typer.Option(help="Hugging Face checkpoint.", exists=True, file_okay=False)
    ],
    tape: Annotated[
        Path, typer.Option(help="Request and all its draws (.npz).", exists=True, dir_okay=False)
    ],
    out: Annotated[Path, typer.Option(help="Where to write the result (.npz).")],
    engine: Annotated[
        Path | None, typer.Option(help="Engine directory; without it the network runs in torch.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Weight store of an engine that has no weights: of a GPU.")
    ] = None,
) -> None:
    """Run one request with every random draw taken from a tape."""
    try:
        from dgemma.replay import replay as run
    except ModuleNotFoundError as error:
        _fail_without(error, "replay")
    try:
        run(checkpoint, tape, out, engine, store)
    except DgemmaError as error:
        bad_input = isinstance(error, InvalidRequest | ConfigurationError)
        fail(str(error), BAD_INPUT if bad_input else SERVER_FAILED)
    except OSError as error:
        fail(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)


def _fail_without(error: ModuleNotFoundError, command: str) -> NoReturn:
    if (error.name or "").partition(".")[0] == "dgemma":
        raise error
    fail(f"{command} needs {error.name}: run pip install 'dgemma[server]'", SERVER_FAILED)


def _show(
    updates: Generator[Update, None, None], *, watching: bool, as_json: bool
) -> Generator[Update, None, None]:
    if as_json:
        return _print_updates(updates) if watching else updates
    if watching:
        return watch(updates, Console(highlight=False))
    return _print_text(updates)


def _print_text(updates: Iterable[Update]) -> Generator[Update, None, None]:
    """Prints the answer as its blocks come; a pipe gets exactly the text, and a line break."""
    safe = visible if sys.stdout.isatty() else str
    ended = True
    try:
        for update in updates:
            if update.text:  # before it is printed: an interrupt may come right behind that
                ended = update.text.endswith("\n")
            print(safe(update.text), end="", flush=True)
            yield update
    finally:
        if not ended:
            print(flush=True)


def _print_updates(updates: Iterable[Update]) -> Generator[Update, None, None]:
    """Prints all updates but the final one, which the whole answer stands for."""
    for update in updates:
        if update.kind != "final":
            _print_object(update.kind, update)
        yield update


def _print_object(kind: str, content: Update | Generation) -> None:
    print(json.dumps({"kind": kind, **asdict(content)}, ensure_ascii=False), flush=True)


def _summary(usage: Mapping[str, Any]) -> str:
    """One line about what the answer cost."""
    seconds = usage["total_ms"] / 1000
    steps = usage["denoising_steps"]
    parts = (
        f"{usage['completion_tokens']} tokens in {seconds:.2f} s",
        f"{usage['completion_tokens'] / max(seconds, 1e-6):.0f} tokens/s",
        f"{sum(steps) / max(len(steps), 1):.1f} steps per block",
        f"{usage['passes']} passes",
        f"seed {usage['seed']}",
        *([f"simulated {usage['simulated']}"] if "simulated" in usage else []),
    )
    return " · ".join(parts)
