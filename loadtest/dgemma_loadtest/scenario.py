"""A scenario as it is written: who asks what, how often, in which stages.

Knows fields, their limits and what they say together; knows nothing of prompts' texts or servers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dgemma_loadtest.errors import InputError

SHIPPED = Path(__file__).with_name("scenarios")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=/, -]{0,62}$")]
Seconds = Annotated[float, Field(ge=0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Rate = Annotated[float, Field(gt=0, le=1e5)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Arrivals(_Entry):
    """An open loop: requests are due whatever becomes of those before them."""

    process: Literal["poisson", "gamma", "constant", "trace"] = "poisson"
    rate: Rate | None = None  # per second
    cv: Annotated[float, Field(gt=0, le=20)] = 2.0  # gamma: deviation of gaps over their mean
    times_s: tuple[float, ...] | None = None  # trace: when each is due
    speed: Annotated[float, Field(gt=0, le=1e4)] = 1.0  # trace

    @model_validator(mode="after")
    def _suit(self) -> Self:
        if self.process == "trace" and not self.times_s:
            raise ValueError("a trace needs times_s, the seconds at which requests are due")
        if self.process != "trace" and self.rate is None:
            raise ValueError(f"{self.process} needs rate, in requests per second")
        return self


class Cancel(_Entry):
    """Requests that their users leave."""

    share: Share
    after_s: Annotated[float, Field(gt=0, le=1e6)] | None = None
    after_blocks: Count | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.after_s is None) == (self.after_blocks is None):
            raise ValueError("give one of after_s and after_blocks")
        return self


class Between(_Entry):
    min: Count
    max: Count

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Load(_Entry):
    """One kind of requests: a closed loop of `users`, or an open loop of `arrivals`."""

    name: Name | None = None  # else the tenant's
    tenant: Name = "default"
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0  # the tenant's, as the server has it
    users: Count | None = None  # each waits for its answer before it asks again
    think_s: Seconds = 0.0  # between an answer and the next request: the mean
    think: Literal["exponential", "constant"] = "exponential"
    arrivals: Arrivals | None = None
    from_s: Seconds = 0.0  # within the stage
    until_s: Seconds | None = None
    task: Literal["generate", "infill"] = "generate"
    prompts: dict[Name, Annotated[float, Field(gt=0)]] = Field(default={"prose": 1.0}, min_length=1)
    prompt_tokens: Count | None = None  # cut or joined to about this length
    fresh: bool = True  # no two prompts begin alike, so that no prefix is cached
    answer_tokens: Count | Between | Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    sampling: dict[str, Any] = {}  # as the service takes it: preset, ignore_eos, …
    cancel: Cancel | None = None
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    retry_s: Annotated[float, Field(gt=0, le=3600)] = 1.0  # a closed loop's pause after a refusal
    max_open: Count = 4096  # of an open loop: requests above it are not sent
    connections: Annotated[int, Field(ge=1, le=4096)] = 16  # of an open loop

    @model_validator(mode="after")
    def _suit(self) -> Self:
        if (self.users is None) == (self.arrivals is None):
            raise ValueError("give one of users (closed loop) and arrivals (open loop)")
        if self.until_s is not None and self.until_s <= self.from_s:
            raise ValueError(f"until_s {self.until_s:g} must be above from_s {self.from_s:g}")
        return self

    @property
    def label(self) -> str:
        return self.name or self.tenant

    @property
    def offered(self) -> float:
        """Users, or requests per second; of a trace its mean."""
        if self.users is not None:
            return float(self.users)
        assert self.arrivals is not None
        if self.arrivals.rate is not None:
            return self.arrivals.rate
        times = sorted(self.arrivals.times_s or ())
        return self.arrivals.speed * len(times) / max(times[-1] - times[0], 1e-9)


class Stage(_Entry):
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


class Sweep(_Entry):
    """One stage after the other, each with more users, or a higher rate, than the one before."""

    users: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    rate: Annotated[tuple[Rate, ...], Field(min_length=1)] | None = None
    until_knee: bool = False  # ends behind the first stage that does not keep up
    knee_share: Share = 0.9  # keeping up: so much of what is offered is completed

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.users is None) == (self.rate is None):
            raise ValueError("give one of users and rate")
        if self.until_knee and self.rate is None:
            raise ValueError("until_knee needs rate: users of a closed loop always keep up")
        return self


class VictimStages(_Entry):
    """A tenant that is to be the same with and without an aggressor, and the stages to compare."""

    tenant: Name
    alone: Name
    beside: Name


class Scenario(_Entry):
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
