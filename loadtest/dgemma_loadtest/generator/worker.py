"""The generator's process: `python -m dgemma_loadtest.generator.worker`, told by lines what to do.

Knows how a run is set up, watched and written down. Without its parent it ends.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from dgemma_loadtest import fit as fits
from dgemma_loadtest import prompts, recording, run_file, scenario, targets
from dgemma_loadtest.clock import Clock
from dgemma_loadtest.errors import InputError, TargetError
from dgemma_loadtest.fit import Fit
from dgemma_loadtest.generator.commanded import commanded
from dgemma_loadtest.generator.order import ORDER, STOP, Order, event
from dgemma_loadtest.generator.pipes import Pipes
from dgemma_loadtest.generator.probe import fitted
from dgemma_loadtest.generator.progress import Progress, Tally
from dgemma_loadtest.generator.sources import Supplies
from dgemma_loadtest.generator.stages import Conductor
from dgemma_loadtest.generator.watch import Watch
from dgemma_loadtest.records import Record
from dgemma_loadtest.run_file import Host, Run, Server, StageWindow
from dgemma_loadtest.scenario import Scenario
from dgemma_loadtest.targets.base import Target

PROGRESS_S = 0.5
_GC = (50_000, 20, 100)  # collections are pauses


async def main() -> None:
    pipes = await Pipes.open()
    try:
        order = ORDER.validate_json(await pipes.line())
        await _work(order, pipes)
        pipes.send(event("done"))
    except (InputError, TargetError) as error:
        pipes.send(event("error", message=str(error)))
    except BaseException as error:
        pipes.send(event("error", message=f"the generator failed: {error!r}"))
        raise
    finally:
        await pipes.close()


async def _work(order: Order, pipes: Pipes) -> None:
    clock = Clock(order.epoch_unix)
    wanted = scenario.parse(order.scenario)
    entries = prompts.library(Path(order.prompts) if order.prompts else None)
    for load in (load for stage in wanted.stages for load in stage.loads):
        prompts.check(load.prompts, entries, load.task)
    ca = Path(order.ca) if order.ca else None
    async with AsyncExitStack() as stack:
        opened: dict[str, Target] = {}
        for tenant, url in {"": order.target, **order.tenant_targets}.items():
            opened[tenant] = targets.open_target(
                url, clock, keys=order.keys, model=order.model, ca=ca
            )
            stack.push_async_callback(opened[tenant].close)
        server = await opened[""].describe()
        supplies = Supplies(opened, entries, Fit(), order.seed, clock)
        fit = await _fit(order, wanted, supplies, server)
        supplies = replace(supplies, fit=fit)
        run = _run(order, wanted, clock, server, fit)
        pipes.send(event("server", server=asdict(server), fit=fit.to_json()))
        gc.freeze()
        gc.set_threshold(*_GC)
        watch = Watch()
        watching = asyncio.create_task(watch.run())
        stack.callback(watching.cancel)
        if order.commanded:
            await commanded(wanted, supplies, pipes)
            if (client := watch.client()) is not None:
                pipes.send(event("client", client=asdict(client)))
        else:
            await _scripted(order, wanted, supplies, run, watch, pipes)


async def _scripted(
    order: Order, wanted: Scenario, supplies: Supplies, run: Run, watch: Watch, pipes: Pipes
) -> None:
    """All stages; records and `run.json` are there at any moment."""
    out = Path(order.out) if order.out else None
    tally = Tally()
    current = run

    def announce(windows: tuple[StageWindow, ...]) -> None:
        nonlocal current
        current = replace(current, stages=windows, client=watch.client())
        if out is not None:
            run_file.write(current, out)

    with ExitStack() as files:
        writer = files.enter_context(recording.Writer(out / recording.FILE)) if out else None

        def keep(record: Record) -> None:
            tally.add(record)
            if writer is not None:
                writer.add(record)

        announce(())
        conductor = Conductor(wanted, supplies, keep, announce)
        helpers = [
            asyncio.create_task(_heed(pipes, conductor)),
            asyncio.create_task(_report(pipes, conductor, tally)),
        ]
        try:
            await conductor.run()
            stopped = conductor.stop.is_set()
            current = replace(current, state="interrupted" if stopped else "complete")
        except Exception as error:
            current = replace(current, state="failed", why=str(error))
            raise
        finally:
            for helper in helpers:
                helper.cancel()
            announce(conductor.windows)
            pipes.send(_progress(conductor, tally))


async def _heed(pipes: Pipes, conductor: Conductor) -> None:
    """Ends the run when it is told to, or when nobody is there any more."""
    while await pipes.line() not in (STOP.encode(), b""):
        pass
    conductor.stop.set()


async def _report(pipes: Pipes, conductor: Conductor, tally: Tally) -> None:
    while True:
        pipes.send(_progress(conductor, tally))
        await asyncio.sleep(PROGRESS_S)


def _progress(conductor: Conductor, tally: Tally) -> bytes:
    sending, windows = conductor.sending, conductor.windows
    window = windows[-1] if windows else None
    now = sending.clock.now() if sending else 0.0
    shown = Progress(
        stage=window.name if window else "",
        stage_number=len(windows),
        stages=conductor.stages,
        elapsed_s=now - window.begins_s if window else 0.0,
        duration_s=window.arrivals_end_s - window.begins_s if window else 0.0,
        sent=sum(tally.outcomes.values()) + (len(sending.open) if sending else 0),
        open=len(sending.open) if sending else 0,
        outcomes=dict(tally.outcomes),
        blocks=tally.blocks,
        tokens=tally.tokens,
        ttfb_p50_s=tally.ttfb_p50_s,
        lag_p99_s=tally.lag_p99_s,
    )
    return event("progress", **asdict(shown))


async def _fit(order: Order, wanted: Scenario, supplies: Supplies, server: Server) -> Fit:
    """What lengths are held to; `auto` asks the server with the key of the first tenant."""
    if order.fit == "off":
        return Fit()
    if order.fit != "auto":
        return fits.parse(order.fit)
    tenant = wanted.stages[0].loads[0].tenant
    return await fitted(supplies.target(tenant), tenant, server.max_context)


def _run(order: Order, wanted: Scenario, clock: Clock, server: Server, fit: Fit) -> Run:
    return Run(
        target=order.target,
        scenario=wanted.expanded().model_dump(mode="json", by_alias=True, exclude_none=True),
        seed=order.seed,
        started_at=datetime.fromtimestamp(clock.epoch_unix, UTC).isoformat(timespec="milliseconds"),
        epoch_unix=clock.epoch_unix,
        host=Host.here(),
        server=server,
        slo=order.slo,
        fit=fit.to_json(),
    )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    with suppress(BrokenPipeError):
        asyncio.run(main())
    sys.exit(0)
