"""A Locust environment's part in a run: messages between master and workers, and what each does.

Locust's master collects, its workers have users; in a single process it is both. Messages go the
same way in all three cases. Knows Locust's events; times are the generator's.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from dgemma_loadtest import recording, targets
from dgemma_loadtest.cli_run import SPOILED, keys_of
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.generator.order import Command, Order
from dgemma_loadtest.metrics.latency import waited
from dgemma_loadtest.records import Outcome, Record
from dgemma_loadtest.report.run_page import report
from dgemma_loadtest.run_file import Client
from dgemma_loadtest.scenario import Scenario
from dgemma_loadtest.showing import console, show_result
from dgemma_loadtest.swarm.bridge import FINISH_S, Bridge
from dgemma_loadtest.swarm.collector import Collector
from dgemma_loadtest.swarm.settings import SwarmSettings

ALL = "all"  # the one stage of a run whose shape is Locust's
USERS_A_WORKER = 1_000_000
FAILURES = frozenset({Outcome.FAILED, Outcome.LATE})
logger = logging.getLogger(__name__)


class Session:
    """See the module; one for each environment, over all tests that it runs."""

    def __init__(
        self, environment: Environment, settings: SwarmSettings, scenario: Scenario
    ) -> None:
        self._environment, self._settings, self._scenario = environment, settings, scenario
        self._runner: Any = environment.runner
        self._collects = not isinstance(self._runner, WorkerRunner)
        self._generates = not isinstance(self._runner, MasterRunner)
        self._collector: Collector | None = None
        self._bridge: Bridge | None = None
        self._begin: dict[str, Any] = {}
        self._finished = 0
        self._failure: str | None = None
        self._runs = itertools.count(1)
        self._listen()

    # A user's side.

    def start(self, stage: str, load: str) -> int:
        assert self._bridge is not None, "users come after the test's start"
        return self._bridge.start(stage, load, USERS_A_WORKER * self._worker)

    def leave(self, number: int) -> None:
        if self._bridge is not None:
            self._bridge.command(Command("stop", user=number))

    # The shape's side: where the master is.

    def stage(self, name: str, warmup_s: float | None, offered: dict[str, float]) -> None:
        if self._collector is not None:
            self._collector.stage(name, warmup_s, offered)
            self._tell("stage", stage=name, warmup_s=warmup_s)
        else:  # the shape's first tick comes before the test's start
            self._begin = {"stage": name, "warmup_s": warmup_s, "offered": offered}

    def end_stage(self) -> None:
        """No more requests of it are due."""
        if self._collector is not None:
            self._collector.stop()

    # Locust's events.

    def _listen(self) -> None:
        events = self._environment.events
        events.test_start.add_listener(self._on_start)
        events.spawning_complete.add_listener(self._on_spawned)
        events.test_stop.add_listener(self._on_stop)
        if self._collects:
            for kind, listener in (
                ("records", self._hear_records),
                ("server", self._hear_server),
                ("client", self._hear_client),
                ("error", self._hear_error),
                ("finished", self._hear_finished),
            ):
                self._runner.register_message(f"dgemma_{kind}", listener)
        if self._generates:
            for kind, listener in (
                ("begin", self._hear_begin),
                ("stage", self._hear_stage),
                ("measure", self._hear_measure),
            ):
                self._runner.register_message(f"dgemma_{kind}", listener)
            self._runner.register_message("dgemma_finish", self._hear_finish, concurrent=True)

    def _on_start(self, **_: Any) -> None:
        """The master begins and says when; whoever has users starts a generator."""
        if self._collects:
            try:
                self._collect()
            except InputError as error:
                self._give_up(str(error))
                return
        if self._generates and self._begin:
            keys = keys_of(self._settings.tenant_keys)
            order = Order(
                scenario=self._scenario.model_dump(mode="json", by_alias=True, exclude_none=True),
                target=self._begin["target"],
                seed=self._settings.seed + self._worker,
                keys=keys,
                model=self._settings.model,
                ca=_text(self._settings.tls_ca),
                prompts=_text(self._settings.prompts),
                fit=self._settings.fit,
                epoch_unix=self._begin["epoch_unix"],
                commanded=True,
            )
            self._bridge = Bridge(order, self._forward)
            first = self._begin
            self._bridge.command(Command("stage", stage=first["stage"], warmup_s=first["warmup_s"]))

    def _collect(self) -> None:
        target = self._environment.host or ""
        targets.check(target, "host")
        run = next(self._runs)
        out = self._settings.out
        out = out if run == 1 else out.with_name(f"{out.name}-{run}")
        self._failure, self._finished = None, 0
        self._collector = Collector(out, self._settings, self._scenario, target)
        first = {"stage": ALL, "warmup_s": None, "offered": {}, **self._begin}
        self._collector.stage(first["stage"], first["warmup_s"], first["offered"])
        self._begin = {}
        self._tell(
            "begin",
            target=target,
            epoch_unix=self._collector.clock.epoch_unix,
            stage=first["stage"],
            warmup_s=first["warmup_s"],
        )

    def _on_spawned(self, **_: Any) -> None:
        if self._collector is not None and self._settings.shape == "locust":
            self._collector.measure()
            self._tell("measure")

    def _on_stop(self, **_: Any) -> None:
        """Wait for what is still to be heard, and sum up."""
        if self._collector is None:
            return
        self._collector.stop()
        workers = len(self._runner.clients.all) if isinstance(self._runner, MasterRunner) else 1
        self._tell("finish")
        with gevent.Timeout(FINISH_S + 5.0, False):
            while self._finished < workers:
                gevent.sleep(0.05)
        collector, self._collector = self._collector, None
        result = collector.finish(self._failure)
        done = report(Path(collector.out))
        on = console(stderr=True)
        show_result(result, on)
        on.print(f"results: {done.path}", highlight=False, markup=False, soft_wrap=True)
        if result.overhead.spoiled:
            self._environment.process_exit_code = SPOILED
        elif done.failed:
            self._environment.process_exit_code = 1

    # Messages from the master.

    def _hear_begin(self, msg: Any, **_: Any) -> None:
        self._begin = msg.data

    def _hear_stage(self, msg: Any, **_: Any) -> None:
        if self._bridge is not None:
            self._bridge.command(Command("stage", **msg.data))

    def _hear_measure(self, **_: Any) -> None:
        if self._bridge is not None:
            self._bridge.command(Command("measure"))

    def _hear_finish(self, **_: Any) -> None:
        if self._bridge is not None:
            self._bridge.finish()
            self._bridge = None
        self._tell("finished")

    # Messages from workers.

    def _forward(self, event: dict[str, Any]) -> None:
        """What a generator says; Locust's own tables are told here, where they are merged from."""
        match event["event"]:
            case "records":
                for line in event["lines"]:
                    self._environment.events.request.fire(**_row(recording.from_json(line)))
                self._tell("records", lines=event["lines"])
            case "server":
                self._tell("server", server=event["server"], fit=event["fit"])
            case "client":
                self._tell("client", client=event["client"])
            case "error":
                self._tell("error", message=event["message"])

    def _hear_records(self, msg: Any, **_: Any) -> None:
        if self._collector is not None:
            self._collector.records(msg.data["lines"])

    def _hear_server(self, msg: Any, **_: Any) -> None:
        if self._collector is not None:
            self._collector.server(msg.data["server"], msg.data["fit"])

    def _hear_client(self, msg: Any, **_: Any) -> None:
        if self._collector is not None:
            self._collector.client(Client(**msg.data["client"]))

    def _hear_error(self, msg: Any, **_: Any) -> None:
        self._give_up(msg.data["message"])

    def _hear_finished(self, **_: Any) -> None:
        self._finished += 1

    @property
    def _worker(self) -> int:
        return max(0, getattr(self._runner, "worker_index", 0))

    def _tell(self, kind: str, **content: Any) -> None:
        self._runner.send_message(f"dgemma_{kind}", content)

    def _give_up(self, why: str) -> None:
        logger.error(why)
        self._failure = why
        self._environment.process_exit_code = 2
        gevent.spawn(self._runner.quit)


def _row(record: Record) -> dict[str, Any]:
    """A request as Locust's tables take it; what is no failure has a row of its own."""
    named = record.outcome is Outcome.OK or record.outcome in FAILURES
    failure = None
    if record.outcome in FAILURES:
        failure = RuntimeError(f"{record.outcome.value}: {record.code}: {record.message or ''}")
    return {
        "request_type": record.task,
        "name": record.load if named else f"{record.load} ({record.outcome.value})",
        "response_time": 1e3 * waited(record),
        "response_length": sum(chunk.characters for chunk in record.chunks),
        "exception": failure,
        "context": {},
    }


def _text(path: object) -> str | None:
    return None if path is None else str(path)


def initialiser(settings: SwarmSettings, scenario: Scenario) -> Callable[..., None]:
    """A listener that gives each environment its session."""

    def on_init(environment: Any, **_: Any) -> None:
        environment.dgemma_session = Session(environment, settings, scenario)
        # Timers count from when the loop last looked at the clock: before all was imported.
        gevent.get_hub().loop.update_now()

    return on_init
