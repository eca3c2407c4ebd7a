"""Locust's users: each stands for one of the generator's, which does the asking."""

from __future__ import annotations

import time
from typing import Any

import gevent
from locust import LoadTestShape, User, task

from dgemma_loadtest.loads import Load
from dgemma_loadtest.scenario import Scenario
from dgemma_loadtest.swarm.session import Session

SPAWN_ALL = 100.0  # users per second where the scenario is the shape


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
    environment: Any = user.environment
    found: Session = environment.dgemma_session
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
                "fixed_count": present(load) if all_stages else 0,
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
        """Between two stages all users leave: Locust would keep those of the one before."""

        def __init__(self) -> None:
            self.reset_time()

        def reset_time(self) -> None:
            self.start_time = time.perf_counter()
            self._left = list(scenario.stages)
            self._ends_s, self._present = 0.0, False
            self._users: tuple[int, float, list[type[User]]] = (0, SPAWN_ALL, [])

        def tick(self) -> tuple[int, float, list[type[User]]] | None:
            assert self.runner is not None
            now_s = time.perf_counter() - self.start_time
            environment: Any = self.runner.environment
            if now_s < self._ends_s:
                return self._users
            if self._present:
                self._present = False
                environment.dgemma_session.end_stage()
                return 0, SPAWN_ALL, self._users[2]
            if not self._left:
                return None
            stage = self._left.pop(0)
            self._ends_s, self._present = now_s + stage.duration_s, True
            theirs: list[type[User]] = [c for c in classes.values() if c.stage == stage.name]
            self._users = (sum(map(present, stage.loads)), SPAWN_ALL, theirs)
            offered = {load.label: load.offered for load in stage.loads}
            environment.dgemma_session.stage(stage.name, stage.warmup_s, offered)
            return self._users

    return ScenarioShape
