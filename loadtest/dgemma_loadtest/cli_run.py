"""`dgemma-loadtest run` and `scenarios`: options become an order."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from dgemma_loadtest import driver, prompts, targets
from dgemma_loadtest import scenario as scenarios_
from dgemma_loadtest.about import add as add_about
from dgemma_loadtest.about import parse as parse_about
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.fit import parse as parse_fit
from dgemma_loadtest.generator.order import Order
from dgemma_loadtest.metrics.slo import Slo
from dgemma_loadtest.metrics.summary import Summary
from dgemma_loadtest.report.run_page import Reported, report
from dgemma_loadtest.scenario import Scenario
from dgemma_loadtest.showing import Display, console, show_result
from dgemma_loadtest.simulate import SIMULATED, Simulated, service
from dgemma_loadtest.simulate import baseline as serve_baseline

SPOILED = 3  # exit code
_KEY = "authorization keys go into a file: lines of `tenant: key`"


def run(
    context: typer.Context,
    scenario: Annotated[str, typer.Option(help="A shipped scenario, or a file of YAML.")],
    out: Annotated[Path, typer.Option(help="Directory for the results; an earlier run's go.")],
    target: Annotated[
        str | None, typer.Option(help="grpc://HOST:PORT, grpcs://…, http://… or https://…")
    ] = None,
    simulate: Annotated[
        str | None,
        typer.Option(help="Instead of a target: serve here at the speed of PLATFORM[-PRECISION]."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Another target, run behind the first, into OUT/baseline; simulated: "
            "autoregressive decoding on the platform of --simulate."
        ),
    ] = None,
    checkpoint: Annotated[Path, typer.Option(help="Of --simulate.")] = Path("build/demo"),
    repository: Annotated[Path, typer.Option(help="Of --simulate.")] = Path("model_repository"),
    slots: Annotated[int | None, typer.Option(help="Of --simulate.", min=1)] = None,
    tenants: Annotated[Path | None, typer.Option(help="File of tenants, of --simulate.")] = None,
    slo: Annotated[str, typer.Option(help="Limits of goodput: ttfb=0.5,block=300ms,e2e=5")] = "",
    seed: Annotated[int, typer.Option(help="Of arrivals, prompts and lengths.", min=0)] = 0,
    duration: Annotated[
        float | None, typer.Option(help="Seconds of every stage, warm-up in proportion.", min=0.1)
    ] = None,
    tenant_keys: Annotated[Path | None, typer.Option(help=_KEY)] = None,
    tenant_target: Annotated[
        list[str] | None, typer.Option(help="TENANT=URL: a server of its own; repeatable.")
    ] = None,
    own_prompts: Annotated[
        Path | None, typer.Option("--prompts", help="CLASS.yaml, or a directory of such files.")
    ] = None,
    only_class: Annotated[
        str | None,
        typer.Option("--class", help="Prompts of this class alone, whatever the scenario says."),
    ] = None,
    fit: Annotated[
        str, typer.Option(help="Lengths the model can take: auto, off, context=N,characters=N")
    ] = "auto",
    model: Annotated[str | None, typer.Option(help="Its name; else what the server says.")] = None,
    baseline_model: Annotated[str | None, typer.Option(help="The baseline's.")] = None,
    about: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE of a target that does not say it over gRPC: platform, precision, "
            "hardware, driver, engine_hash; repeatable."
        ),
    ] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="Authorities to trust, a PEM file.")] = None,
) -> None:
    """Offer a scenario's load to a target and write down what came of it."""
    limits = Slo.parse(slo).limits()
    wanted = scenarios_.load(scenario).with_prompts(only_class).with_duration(duration)
    own_targets = _pairs(tenant_target or [])
    told, simulated = parse_about(about or []), None
    if simulate is not None:
        simulated = Simulated(simulate, checkpoint, repository, slots, tenants=tenants)
        told |= simulated.about()
    target, baseline = _served(context, target, simulated, baseline, out)
    for url, option in ((target, "target"), (baseline, "baseline")):
        if url is not None:
            targets.check(url, option)
    if fit not in ("auto", "off"):
        parse_fit(fit)
    _check_prompts(wanted, own_prompts)
    order = Order(
        scenario=wanted.model_dump(mode="json", by_alias=True, exclude_none=True),
        target=target,
        seed=seed,
        out=str(out),
        tenant_targets=own_targets,
        keys=keys_of(tenant_keys),
        model=model,
        ca=None if tls_ca is None else str(tls_ca),
        prompts=None if own_prompts is None else str(own_prompts),
        fit=fit,
        slo=limits,
    )
    results = [_shown(order, "target" if baseline else wanted.name)]
    if baseline is not None and results[0].state == "complete":
        other = Order(
            **{
                **vars(order),
                "target": baseline,
                "out": str(out / "baseline"),
                "model": baseline_model,
                "tenant_targets": {},
                "fit": fit,
            }
        )
        results.append(_shown(other, "baseline"))
    done = _reported(out, told)
    on = console()
    for result in results:
        show_result(result, on)
    on.print(f"results: {out}, {done.path.name}", highlight=False, markup=False, soft_wrap=True)
    if any(result.state == "failed" for result in results):
        raise typer.Exit(1)
    if any(result.overhead.spoiled for result in results):
        raise typer.Exit(SPOILED)
    if done.failed:
        raise typer.Exit(1)


def _reported(out: Path, told: Mapping[str, str]) -> Reported:
    """The page and its gates; Ctrl-C waits until they are there."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        add_about(out, told)
        return report(out)
    finally:
        signal.signal(signal.SIGINT, before)


def _served(
    context: typer.Context,
    target: str | None,
    simulated: Simulated | None,
    baseline: str | None,
    out: Path,
) -> tuple[str, str | None]:
    """URLs of both; what is simulated is started, and ends with the command."""
    if (target is None) == (simulated is None):
        raise InputError("target: give one of --target URL and --simulate PLATFORM")
    if baseline == SIMULATED and simulated is None:
        raise InputError("baseline: simulated needs --simulate PLATFORM")
    if simulated is not None:
        if baseline == SIMULATED:
            baseline = context.with_resource(serve_baseline(simulated.machine(), out))
        target = context.with_resource(service(simulated, out)).grpc_url
    assert target is not None, "one of both is given"
    return target, baseline


def scenarios() -> None:
    """Name the shipped scenarios."""
    on = console()
    for name in scenarios_.shipped():
        about = scenarios_.load(name).about
        on.print(f"{name:18} {about}", highlight=False, markup=False, soft_wrap=True)


def _shown(order: Order, label: str) -> Summary:
    with Display(Console(stderr=True), label) as display:
        return driver.run(order, display.show)


def _check_prompts(wanted: Scenario, own: Path | None) -> None:
    entries = prompts.library(own)
    for load in (load for stage in wanted.stages for load in stage.loads):
        prompts.check(load.prompts, entries, load.task)


def _pairs(given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        tenant, mark, url = text.partition("=")
        if not mark or not tenant:
            raise InputError(f"tenant-target: got {text!r}; allowed: TENANT=URL")
        targets.check(url, f"tenant-target {tenant}")
        found[tenant] = url
    return found


def keys_of(path: Path | None) -> dict[str, str]:
    """Keys by tenant, from a file of YAML. Raises InputError."""
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"tenant-keys: {path}: cannot be read as YAML: {error}") from None
    if not isinstance(content, Mapping) or not all(isinstance(v, str) for v in content.values()):
        raise InputError(f"tenant-keys: {path}: must be lines of `tenant: key`")
    return {str(tenant): key for tenant, key in content.items()}
