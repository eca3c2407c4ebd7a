"""What TensorRT says while it builds: its log, how far it is, and whether it should go on.

Knows its two callback interfaces; knows nothing of what is built. Both are called from threads of
TensorRT's, where an exception of Python would end the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

WHOLE = 1000  # of a build; the parts that have passed are told in this unit


class BuildLog:
    """The lines of a build, but for the verbose ones, which are 80 MB for 30 layers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.last_error = "no reason was given"

    @property
    def text(self) -> str:
        return "".join(line + "\n" for line in self.lines)

    def logger(self, trt: Any) -> Any:
        """An `ILogger` that writes here."""
        log = self
        severities = trt.ILogger.Severity
        names = {severities.INFO: "info", severities.WARNING: "warning"}

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()

            def log(self, severity: Any, message: str) -> None:
                if severity == severities.VERBOSE:
                    return
                name = names.get(severity, "error")
                log.lines.append(f"{name}: {message}")
                if name == "error":
                    log.last_error = message

        return Logger()


@dataclass
class _Phase:
    steps: int
    done: int = 0


def _passed(phases: Iterable[_Phase]) -> float:
    """The share of the outermost of phases within phases, each of them a step of the one before."""
    share = 0.0
    for phase in reversed(list(phases)):
        share = min(1.0, (phase.done + share) / phase.steps)
    return share


def listener(trt: Any, tell: Callable[[int], None]) -> Any:
    """An `IProgressMonitor` that tells each new part of `WHOLE`.

    What `tell` raises is kept in `raised` and asks TensorRT to stop.
    """

    class Listener(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.raised: BaseException | None = None
            self.phases: dict[str, _Phase] = {}
            self.told = 0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = _Phase(num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if (phase := self.phases.get(phase_name)) is not None:
                    phase.done = step + 1
                part = int(WHOLE * _passed(self.phases.values()))
                if self.raised is None and self.told < part < WHOLE:
                    self.told = part
                    tell(part)
            except BaseException as error:
                self.raised = error
            return self.raised is None

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

    return Listener()
