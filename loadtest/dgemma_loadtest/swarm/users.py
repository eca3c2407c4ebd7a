"""Locust's users: each stands for one of the generator's, which does the asking."""

from __future__ import annotations

from typing import Any

import gevent
from locust import LoadTestShape, User, task

from dgemma_loadtest.scenario import Load, Scenario, Stage
from dgemma_loadtest.swarm.session import Session

SPAWN_ALL = 1000.0  # users per second where the scenario is the shape


class GeneratedUser(User):
    """It is there; `load` of `stage` says what the generator asks in its place."""

    abstract = True
    stage = ""
    load = ""

    def on_start(self) -> None:
        self._number = session(self).start(self.stage, self.load)

    @task
    def be(self) -> None:
        gevent.sleep(1.0)

    def on_stop(self) -> None:
        session(self).leave(self._number)


def session(user: User) -> Session:
    found: Session = user.environment.dgemma_session
    return found


def user_classes(scenario: Scenario, *, all_stages: bool) -> dict[str, type[GeneratedUser]]:
    """A class for each load, weighted by its users; of an open loop, each user is a source of its
    own, with the load's rate. Without `all_stages` the first stage's alone.
    """
    stages = scenario.stages if all_stages else scenario.stages[:1]
    made: dict[str, type[GeneratedUser]] = {}
    for stage in stages:
        for load in stage.loads:
            name = f"{stage.name}: {load.label}" if all_stages else load.label
            fields: dict[str, Any] = {
                "stage": stage.name,
                "load": load.label,
                "weight": present(load),
                "abstract": False,
            }
            made[name] = type(name, (GeneratedUser,), fields)
    return made


def present(load: Load) -> int:
    """Users that there are of it: one where requests come by themselves."""
    return load.users or 1


def shape(scenario: Scenario, classes: dict[str, type[GeneratedUser]]) -> type[LoadTestShape]:
    """The scenario's stages, one after the other, as long as each is to last."""

    class ScenarioShape(LoadTestShape):
        current: Stage | None = None

        def tick(self) -> tuple[int, float, list[type[User]]] | None:
            now, ends = self.get_run_time(), 0.0
            for stage in scenario.stages:
                ends += stage.duration_s
                if now < ends:
                    return self._of(stage)
            return None

        def _of(self, stage: Stage) -> tuple[int, float, list[type[User]]]:
            if stage is not self.current:
                self.current = stage
                assert self.runner is not None
                offered = {load.label: load.offered for load in stage.loads}
                self.runner.environment.dgemma_session.stage(stage.name, stage.warmup_s, offered)
            theirs: list[type[User]] = [c for c in classes.values() if c.stage == stage.name]
            return sum(map(present, stage.loads)), SPAWN_ALL, theirs

    return ScenarioShape
