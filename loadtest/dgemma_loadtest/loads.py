"""One kind of requests as a scenario says it: who asks what, how often, and when they leave.

Knows fields and their limits; knows nothing of stages.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=/, -]{0,62}$")]
Seconds = Annotated[float, Field(ge=0, le=1e6)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Rate = Annotated[float, Field(gt=0, le=1e5)]
Share = Annotated[float, Field(ge=0, le=1)]


class Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Arrivals(Entry):
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


class Cancel(Entry):
    """Requests that their users leave."""

    share: Share
    after_s: Annotated[float, Field(gt=0, le=1e6)] | None = None
    after_blocks: Count | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.after_s is None) == (self.after_blocks is None):
            raise ValueError("give one of after_s and after_blocks")
        return self


class Between(Entry):
    min: Count
    max: Count

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Load(Entry):
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
