"""What an operator sets of the supervisor, from environment variables.

Knows each variable, its default and its range; knows nothing of how failures are found.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field

from dgemma.errors import ConfigurationError
from dgemma.settings import CommonSettings, lower


class SupervisorSettings(CommonSettings):
    """The supervisor's settings. Use `load`; its errors quote the fields' descriptions."""

    model_repository: Path = Field(
        Path("/opt/nim/model_repository"),
        validation_alias="DGEMMA_MODEL_REPOSITORY",
        description="Triton's model repository: the directory with diffusion_gemma in it",
    )
    http: bool = Field(
        True,
        validation_alias="DGEMMA_HTTP",
        description="1: HTTP is served too; 0: gRPC alone",
    )
    on_failure: Annotated[Literal["restart", "exit"], BeforeValidator(lower)] = Field(
        "restart",
        validation_alias="DGEMMA_ON_FAILURE",
        description="restart what has failed, or finish what is in flight elsewhere and exit with "
        "code 1",
    )
    quiet_s: float = Field(
        1.5,
        gt=0,
        le=3600,
        validation_alias="DGEMMA_QUIET_AFTER_S",
        description="seconds without a sign of life until the service is not ready: above 0 to "
        "3600; more than half a second and two passes",
    )
    stuck_s: float = Field(
        4.0,
        gt=0,
        le=86_400,
        validation_alias="DGEMMA_STUCK_AFTER_S",
        description="seconds without a sign of life until a process is killed: above 0 to 86400; "
        "longer than the longest two passes take",
    )
    drain_delay_s: float = Field(
        1.0,
        ge=0,
        le=600,
        validation_alias="DGEMMA_DRAIN_DELAY_S",
        description="seconds between a SIGTERM, when the service says that it is not ready, and "
        "the moment when it takes no more connections: 0 to 600",
    )

    @classmethod
    def load(cls, **keywords: Any) -> Self:
        """Raises ConfigurationError naming the variable, what it was and what is allowed."""
        loaded = super().load(**keywords)
        if loaded.stuck_s <= loaded.quiet_s:
            raise ConfigurationError(
                f"DGEMMA_STUCK_AFTER_S: got {loaded.stuck_s:g}: not above DGEMMA_QUIET_AFTER_S, "
                f"{loaded.quiet_s:g}; expected: more than that"
            )
        return loaded
