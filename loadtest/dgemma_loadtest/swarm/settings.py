"""What `locust -f loadtest/locustfile.py` is told by its environment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from dgemma_loadtest import scenario as scenarios
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.scenario import Scenario

PREFIX = "DGEMMA_LOADTEST_"


class SwarmSettings(BaseSettings):
    """Variables begin with DGEMMA_LOADTEST_; the target is Locust's own --host."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    scenario: str = "concurrency-sweep"
    shape: Literal["locust", "scenario"] = "locust"  # who says how many users there are
    out: Path = Path("var/loadtest/locust")
    tenant_keys: Path | None = None
    prompts: Path | None = None
    prompt_class: str | None = Field(default=None, validation_alias=f"{PREFIX}CLASS")
    fit: str = "auto"
    slo: str = ""
    seed: int = Field(default=0, ge=0)
    model: str | None = None
    tls_ca: Path | None = None

    @classmethod
    def load(cls) -> SwarmSettings:
        """From the environment. Raises InputError."""
        try:
            return cls()
        except ValidationError as error:
            lines = [
                f"{PREFIX}{'_'.join(map(str, mistake['loc'])).upper().removeprefix(PREFIX)}: "
                f"{mistake['msg']}; got {mistake['input']!r}"
                for mistake in error.errors()
            ]
            raise InputError("\n".join(lines)) from None

    def loaded(self) -> Scenario:
        """The scenario; its sweep is written out where it is the shape."""
        wanted = scenarios.load(self.scenario).with_prompts(self.prompt_class)
        return wanted.expanded() if self.shape == "scenario" else wanted
