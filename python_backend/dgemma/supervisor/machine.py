"""What the supervisor decides: events and the time in, actions out.

Knows readiness, back-off and the order in which things end; knows nothing of processes or clocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from dgemma.cli_exit import BAD_INPUT, INTERRUPTED, SERVER_FAILED
from dgemma.supervisor.events import (
    Action,
    Alive,
    Announce,
    Began,
    Ended,
    Event,
    Exit,
    Failed,
    Kill,
    Part,
    Report,
    Start,
    Stop,
    StopAsked,
    Tick,
    Up,
)

# Before a part is started again, by how often it has failed of late.
BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
SETTLED_S = 60.0  # whoever was up for so long has not failed of late
STARTS_IN_VAIN = 5  # of one part, one after another; then somebody else has to look
_NAMES = {Part.TRITON: "the model server", Part.FRONT: "the HTTP front"}


@dataclass(frozen=True)
class Policy:
    """Times are seconds. The first of `parts` to start are the last to stop."""

    parts: tuple[Part, ...] = (Part.TRITON, Part.FRONT)
    restart: bool = True
    quiet_s: float = 1.5  # without a sign of life: not ready
    stuck_s: float = 4.0  # without one: killed, so that nobody goes on waiting
    start_timeout_s: float = 1800.0
    drain_timeout_s: float = 30.0
    grace_s: float = 15.0  # after that, for processes to end


class _State(Enum):
    DOWN = auto()
    STARTING = auto()
    UP = auto()
    STOPPING = auto()


@dataclass
class _Life:
    """How a part fares."""

    state: _State = _State.DOWN
    since: float = 0.0
    alive_at: float = 0.0
    start_at: float | None = None  # when it is to be started again
    failures: int = 0  # of late
    in_vain: int = 0  # starts since it was last up
    ever_up: bool = False


class Machine:
    """Give every event to `handle`, and a Tick now and then; do what it returns, in order."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._lives = {part: _Life() for part in policy.parts}
        self._now = 0.0
        self._actions: list[Action] = []
        self._announced: tuple[bool, str] | None = None
        self._exit: Exit | None = None  # how it will end, once it has been decided
        self._stop_at = self._deadline = 0.0
        self._over = False

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about the event, which came at `now`, seconds of a clock that never goes back.

        After an Exit there is nothing to do any more.
        """
        if self._over:
            return []
        self._now, self._actions = now, []
        match event:
            case Began():
                for part in self._policy.parts:
                    self._start(part)
            case Up(part):
                self._up(self._lives[part])
            case Alive(part):
                self._lives[part].alive_at = now
            case Failed(part, why, for_good):
                self._fail(part, why, for_good)
            case Ended(part):
                self._enter(self._lives[part], _State.DOWN)
            case StopAsked(delay_s):
                self._asked_to_stop(delay_s)
            case Tick():
                pass
        self._watch()
        self._go_on_stopping()
        self._announce()
        if self._over and self._exit is not None:
            self._actions.append(self._exit)
        return self._actions

    # One part

    def _enter(self, life: _Life, state: _State) -> None:
        life.state, life.since = state, self._now

    def _start(self, part: Part) -> None:
        life = self._lives[part]
        life.start_at = None
        self._enter(life, _State.STARTING)
        self._actions.append(Start(part))

    def _up(self, life: _Life) -> None:
        if life.state is _State.STARTING:
            self._enter(life, _State.UP)
            life.alive_at, life.ever_up, life.in_vain = self._now, True, 0

    def _kill(self, part: Part) -> None:
        self._enter(self._lives[part], _State.DOWN)
        self._actions.append(Kill(part))

    def _fail(self, part: Part, why: str, for_good: bool = False) -> None:
        life = self._lives[part]
        if life.state is _State.DOWN:
            return  # it has been killed meanwhile
        was, lasted = life.state, self._now - life.since
        self._kill(part)
        if self._exit is not None:
            if was is not _State.STOPPING:
                self._actions.append(Report(f"{_NAMES[part]}: {why}"))
            return
        if was is _State.STARTING:
            life.in_vain += 1
        elif lasted >= SETTLED_S:
            life.failures = 0
        life.failures += 1
        if for_good and not life.ever_up:
            self._end(BAD_INPUT, why)
        elif not self._policy.restart or life.in_vain >= STARTS_IN_VAIN:
            self._end(SERVER_FAILED, f"{_NAMES[part]}: {why}")
        else:
            wait = BACKOFF_S[min(life.failures, len(BACKOFF_S)) - 1]
            life.start_at = self._now + wait
            when = f"in {wait:g} s" if wait else "at once"
            self._actions.append(Report(f"{_NAMES[part]}: {why}; it is started again {when}"))

    def _watch(self) -> None:
        """What time alone brings about."""
        for part, life in self._lives.items():
            if life.state is _State.UP and self._silent_s(life) >= self._policy.stuck_s:
                self._fail(part, f"no sign of life for {self._policy.stuck_s:g} s")
            elif life.state is _State.STARTING:
                limit = self._policy.start_timeout_s
                if self._now - life.since >= limit:
                    self._fail(part, f"not ready within {limit:g} s")
            if life.start_at is not None and life.start_at <= self._now and self._exit is None:
                self._start(part)

    def _silent_s(self, life: _Life) -> float:
        return self._now - life.alive_at

    # The whole

    def _announce(self) -> None:
        why = self._trouble()
        if self._announced != (why is None, why or ""):
            self._announced = (why is None, why or "")
            self._actions.append(Announce(*self._announced))

    def _trouble(self) -> str | None:
        """Why the service is not ready."""
        if self._exit is not None:
            return "the service is stopping"
        for part, life in self._lives.items():
            if life.state is not _State.UP:
                return f"{_NAMES[part]} is starting"
            if self._silent_s(life) >= self._policy.quiet_s:
                return f"{_NAMES[part]} does not answer"
        return None

    def _asked_to_stop(self, delay_s: float) -> None:
        up = any(life.ever_up for part, life in self._lives.items() if part is not Part.FRONT)
        if self._exit is not None:
            self._stop_at_once(Exit(INTERRUPTED, "interrupted while it was stopping"))
        elif not up:
            self._stop_at_once(Exit(INTERRUPTED, "interrupted before the service was ready"))
        else:
            self._end(0, "", delay_s)

    def _stop_at_once(self, exit_: Exit) -> None:
        self._exit, self._stop_at = exit_, self._now
        for part, life in self._lives.items():
            if life.state is not _State.DOWN:
                self._kill(part)

    def _end(self, code: int, why: str, delay_s: float = 0.0) -> None:
        self._exit = Exit(code, why)
        self._stop_at = self._now + delay_s
        self._deadline = self._stop_at + self._policy.drain_timeout_s

    def _go_on_stopping(self) -> None:
        """The last part to have started goes first: it sends requests to the others."""
        if self._exit is None or self._now < self._stop_at:
            return
        grace = self._policy.grace_s
        for part in reversed(self._policy.parts):
            life = self._lives[part]
            if life.state is _State.STARTING:
                self._kill(part)
            elif life.state is _State.UP:
                self._enter(life, _State.STOPPING)
                self._actions.append(Stop(part))
            limit = self._deadline + (grace if part is Part.TRITON else 0.0)
            if life.state is _State.STOPPING and self._now >= limit:
                self._kill(part)
            if life.state is not _State.DOWN:
                return
        self._over = True
