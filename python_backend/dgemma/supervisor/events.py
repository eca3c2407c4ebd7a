"""What the supervisor learns, and what it does about it.

Knows names; knows neither processes nor when what is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Part(StrEnum):
    """What is supervised."""

    TRITON = "triton"  # the server with its models' processes
    FRONT = "front"  # HTTP


# What is learnt


@dataclass(frozen=True)
class Began:
    """The supervisor itself has started."""


@dataclass(frozen=True)
class Up:
    """The part that was started has done its work for the first time."""

    part: Part


@dataclass(frozen=True)
class Alive:
    """The part has just done what it is there for."""

    part: Part


@dataclass(frozen=True)
class Failed:
    """The part has died or cannot go on; `for_good` where a start could not help either."""

    part: Part
    why: str
    for_good: bool = False


@dataclass(frozen=True)
class Ended:
    """The part that was asked to end has done so."""

    part: Part


@dataclass(frozen=True)
class StopAsked:
    """Somebody wants the service to end; `delay_s` is what others need to notice that first."""

    delay_s: float = 0.0


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = Began | Up | Alive | Failed | Ended | StopAsked | Tick


# What is done


@dataclass(frozen=True)
class Start:
    """Begin to start the part."""

    part: Part


@dataclass(frozen=True)
class Stop:
    """Ask the part to finish what is in flight, and to end."""

    part: Part


@dataclass(frozen=True)
class Kill:
    """End the part at once, and remove whatever it leaves."""

    part: Part


@dataclass(frozen=True)
class Announce:
    """Tell whether requests should be sent here; `why` says why not."""

    ready: bool
    why: str


@dataclass(frozen=True)
class Report:
    """Tell the operator what has failed and what follows."""

    message: str


@dataclass(frozen=True)
class Exit:
    """End the supervisor; nothing of any part is left. `why` is empty where all went well."""

    code: int
    why: str = ""


Action = Start | Stop | Kill | Announce | Report | Exit
