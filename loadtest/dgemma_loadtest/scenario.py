"""A scenario as it is written: loads in stages, one after the other.

Knows fields, their limits and what they say together; knows nothing of prompts' texts or servers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from dgemma_loadtest.errors import InputError
from dgemma_loadtest.loads import Count, Entry, Load, Name, Rate, Seconds, Share

SHIPPED = Path(__file__).with_name("scenarios")


class Stage(Entry):
    """A span of time with one mixture of loads."""

    name: Name
    duration_s: Annotated[float, Field(gt=0, le=1e6)] = 30.0  # warm-up included
    warmup_s: Seconds = 0.0  # what is due in it is recorded and does not count
    drain_s: Seconds = 60.0  # how long requests that are open at the end may still take
    requests: Count | None = None  # ends the stage when so many have been sent
    loads: Annotated[tuple[Load, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _suit(self) -> Self:
        if self.warmup_s >= self.duration_s:
            raise ValueError(f"warmup_s must be below duration_s, {self.duration_s:g}")
        labels = [load.label for load in self.loads]
        if len(set(labels)) < len(labels):
            raise ValueError(f"loads need names of their own; got {', '.join(labels)}")
        return self


class Sweep(Entry):
    """One stage after the other, each with more users, or a higher rate, than the one before."""

    users: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    rate: Annotated[tuple[Rate, ...], Field(min_length=1)] | None = None
    until_knee: bool = False  # ends behind the first stage that does not keep up
    knee_share: Share = 0.9  # of what is due in its second half, completed in it

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.users is None) == (self.rate is None):
            raise ValueError("give one of users and rate")
        if self.until_knee and self.rate is None:
            raise ValueError("until_knee needs rate: users of a closed loop always keep up")
        return self


class VictimStages(Entry):
    """A tenant that is to be the same with and without an aggressor, and the stages to compare."""

    tenant: Name
    alone: Name
    beside: Name


class Scenario(Entry):
    """See the module. With a sweep there is one stage, which it repeats."""

    schema_version: Literal[1] = Field(1, alias="schema")
    name: Name
    about: str = ""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    sweep: Sweep | None = None
    victim: VictimStages | None = None
    slots: Count | None = None  # of the server, where the service gap's bound is to use them

    @model_validator(mode="after")
    def _suit(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"stages need names of their own; got {', '.join(names)}")
        if self.sweep is not None and len(self.stages) > 1:
            raise ValueError(f"a sweep needs exactly one stage to repeat; got {len(names)}")
        if self.victim is not None:
            for stage in (self.victim.alone, self.victim.beside):
                if stage not in names:
                    raise ValueError(f"victim: there is no stage {stage!r} ({', '.join(names)})")
        return self

    def expanded(self) -> Scenario:
        """Without a sweep: its stages are written out."""
        if self.sweep is None:
            return self
        stage = self.stages[0]
        if self.sweep.users is not None:
            stages = [
                _with(stage, f"{users} user{'s' * (users > 1)}", users=users)
                for users in self.sweep.users
            ]
        else:
            stages = [_with(stage, f"{rate:g} per s", rate=rate) for rate in self.sweep.rate or ()]
        return self.model_copy(update={"stages": tuple(stages), "sweep": None})

    def with_prompts(self, prompt_class: str | None) -> Scenario:
        """All prompts of that class; None: as they are."""
        if prompt_class is None:
            return self
        return self._with_loads(lambda load: {"prompts": {prompt_class: 1.0}})

    def with_duration(self, seconds: float | None) -> Scenario:
        """Every stage that long, and what it holds in proportion; None: as they are."""
        if seconds is None:
            return self
        stages = []
        for stage in self.stages:
            factor = seconds / stage.duration_s

            def shorter(load: Load, factor: float = factor) -> dict[str, Any]:
                until_s = None if load.until_s is None else load.until_s * factor
                return {"from_s": load.from_s * factor, "until_s": until_s}

            one = self.model_copy(update={"stages": (stage,)})._with_loads(shorter).stages[0]
            spans = {"duration_s": seconds, "warmup_s": stage.warmup_s * factor}
            stages.append(one.model_copy(update=spans))
        return self.model_copy(update={"stages": tuple(stages)})

    def _with_loads(self, change: Callable[[Load], dict[str, Any]]) -> Scenario:
        stages = [
            stage.model_copy(
                update={
                    "loads": tuple(load.model_copy(update=change(load)) for load in stage.loads)
                }
            )
            for stage in self.stages
        ]
        return self.model_copy(update={"stages": tuple(stages)})


def load(name: str) -> Scenario:
    """A shipped scenario by its name, or a file of YAML or TOML. Raises InputError."""
    path = SHIPPED / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        raise InputError(
            f"scenario: there is no {name!r}; give a file, or one of {', '.join(shipped())}"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"scenario: {path}: cannot be read as YAML: {error}") from None
    return parse(content, str(path))


def parse(content: object, where: str = "scenario") -> Scenario:
    """Raises InputError with everything that is wrong."""
    try:
        return Scenario.model_validate(content)
    except ValidationError as error:
        raise InputError("\n".join(_mistakes(where, error))) from None


def shipped() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def _mistakes(where: str, error: ValidationError) -> list[str]:
    lines = []
    for mistake in error.errors():
        if mistake["type"] == "too_short" and mistake["input"]:
            continue  # of a list whose entries are at fault, and named
        field = ".".join(str(part) for part in mistake["loc"]) or "file"
        got = repr(mistake["input"])
        said = mistake["msg"].removeprefix("Value error, ")
        shown = f"; got {got}" if len(got) <= 60 else ""
        lines.append(f"{where}: {field}: {said}{shown}")
    return lines


def _with(stage: Stage, name: str, *, users: int | None = None, rate: float | None = None) -> Stage:
    """The stage with so many users, or such a rate, in each of its loads of that kind."""
    loads = []
    for each in stage.loads:
        if users is not None and each.users is not None:
            each = each.model_copy(update={"users": users})
        if rate is not None and each.arrivals is not None and each.arrivals.rate is not None:
            arrivals = each.arrivals.model_copy(update={"rate": rate})
            each = each.model_copy(update={"arrivals": arrivals})
        loads.append(each)
    return stage.model_copy(update={"name": name, "loads": tuple(loads)})
