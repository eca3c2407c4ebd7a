from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from dgemma.supervisor.machine import STARTS_IN_VAIN, Machine, Policy

TRITON, FRONT = Part.TRITON, Part.FRONT
POLICY = Policy(start_timeout_s=60.0, drain_timeout_s=30.0, grace_s=15.0)
TICK_S = 0.125  # exact in binary


class World:
    """A machine, a clock, and parts that show signs of life unless they are `silent`."""

    def __init__(self, policy: Policy = POLICY) -> None:
        self.machine, self.now = Machine(policy), 1000.0
        self.silent: set[Part] = set()
        self.up: set[Part] = set()
        self.ready: bool | None = None
        self.why = ""
        self.exit: Exit | None = None

    def tell(self, event: Event) -> list[Action]:
        """What was done about it, but for announcements and reports."""
        actions = self.machine.handle(event, self.now)
        for action in actions:
            match action:
                case Announce(ready, why):
                    self.ready, self.why = ready, why
                case Kill(part) | Stop(part):
                    self.up.discard(part)
                case Exit():
                    self.exit = action
        return [a for a in actions if not isinstance(a, Announce | Report)]

    def begin(self) -> None:
        assert self.tell(Began()) == [Start(TRITON), Start(FRONT)]
        assert self.ready is False
        self.bring_up(FRONT)
        assert (self.ready, self.why) == (False, "the model server is starting")
        self.bring_up(TRITON)
        assert self.ready is True

    def bring_up(self, part: Part) -> None:
        self.up.add(part)
        assert self.tell(Up(part)) == []

    def spend(self, seconds: float) -> list[Action]:
        done = []
        for _ in range(int(seconds / TICK_S)):
            self.now += TICK_S
            for part in sorted(self.up - self.silent):
                done += self.tell(Alive(part))
            done += self.tell(Tick())
        return done


@pytest.fixture
def world() -> World:
    world = World()
    world.begin()
    return world


# Faults


@pytest.mark.parametrize("part", Part)
def test_a_dead_part_is_cleared_away_and_started_again_at_once(world: World, part: Part) -> None:
    assert world.tell(Failed(part, "it has died")) == [Kill(part), Start(part)]
    assert world.ready is False
    assert world.spend(5) == []
    world.bring_up(part)
    assert world.ready is True


@pytest.mark.parametrize("part", Part)
def test_a_silent_part_is_not_ready_within_two_seconds_and_killed_within_five(
    world: World, part: Part
) -> None:
    world.silent.add(part)
    assert world.spend(1.375) == []
    assert world.ready is True
    assert world.spend(0.25) == []
    assert (world.ready, world.why.endswith("does not answer")) == (False, True)
    assert world.spend(2.5) == [Kill(part), Start(part)]


def test_a_part_that_answers_in_time_is_ready_again(world: World) -> None:
    world.silent.add(TRITON)
    world.spend(3)
    assert world.ready is False
    world.silent.clear()
    assert world.spend(TICK_S) == []
    assert world.ready is True


def test_starts_of_a_part_that_fails_again_and_again_come_more_and_more_slowly(
    world: World,
) -> None:
    waits = []
    for _ in range(9):
        before = world.now
        done = world.tell(Failed(TRITON, "it has died"))
        while Start(TRITON) not in done:
            done = world.spend(TICK_S)
        waits.append(world.now - before)
        world.bring_up(TRITON)
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    world.spend(60)
    assert world.tell(Failed(TRITON, "it has died")) == [Kill(TRITON), Start(TRITON)]


def test_one_part_waits_for_its_start_while_the_other_goes_on(world: World) -> None:
    for _ in range(4):
        world.tell(Failed(TRITON, "it has died"))
        world.spend(3)
        if TRITON not in world.up:
            world.bring_up(TRITON)
    world.tell(Failed(TRITON, "it has died"))
    assert world.tell(Failed(FRONT, "it has died")) == [Kill(FRONT), Start(FRONT)]


def test_a_part_that_never_comes_up_again_ends_the_service(world: World) -> None:
    world.tell(Failed(TRITON, "it has died"))
    for _ in range(STARTS_IN_VAIN):
        world.spend(31)
        assert world.exit is None
        world.tell(Failed(TRITON, "no GPU"))
    assert world.tell(Ended(FRONT)) == [Exit(1, "the model server: no GPU")]


def test_a_start_that_takes_too_long_has_failed(world: World) -> None:
    world.tell(Failed(TRITON, "it has died"))
    assert world.spend(60) == [Kill(TRITON)]
    assert world.spend(0.5) == [Start(TRITON)]


def test_what_is_learnt_of_a_part_that_was_killed_changes_nothing(world: World) -> None:
    world.tell(Failed(TRITON, "it has died"))
    world.tell(Failed(TRITON, "it has died"))
    assert world.tell(Failed(TRITON, "late news")) == []
    assert world.tell(Alive(TRITON)) == []
    assert world.tell(Up(TRITON)) == []
    assert world.ready is False


# Where a failure is to end the service


def test_a_failure_may_end_the_service_when_the_rest_is_finished() -> None:
    world = World(replace(POLICY, restart=False))
    world.begin()
    assert world.tell(Failed(TRITON, "it has died")) == [Kill(TRITON), Stop(FRONT)]
    assert (world.ready, world.why) == (False, "the service is stopping")
    assert world.tell(Ended(FRONT)) == [Exit(1, "the model server: it has died")]


def test_a_dead_front_lets_what_is_in_flight_finish_before_the_service_ends() -> None:
    world = World(replace(POLICY, restart=False))
    world.begin()
    assert world.tell(Failed(FRONT, "it has died")) == [Kill(FRONT), Stop(TRITON)]
    assert world.tell(Ended(TRITON)) == [Exit(1, "the HTTP front: it has died")]


@pytest.mark.parametrize("restart", [True, False])
def test_a_configuration_that_cannot_work_ends_the_first_start(restart: bool) -> None:
    world = World(replace(POLICY, restart=restart))
    world.tell(Began())
    world.bring_up(FRONT)
    failed = Failed(TRITON, "NIM_MODEL_PATH: no such engine", for_good=True)
    assert world.tell(failed) == [Kill(TRITON), Stop(FRONT)]
    assert world.tell(Ended(FRONT)) == [Exit(2, "NIM_MODEL_PATH: no such engine")]


def test_a_configuration_that_worked_is_tried_again(world: World) -> None:
    failed = Failed(TRITON, "weights: input/output error", for_good=True)
    world.tell(failed)
    assert world.tell(failed) == [Kill(TRITON)]
    assert world.spend(0.5) == [Start(TRITON)]


# The end


def test_a_stop_is_announced_first_and_ends_the_front_before_triton(world: World) -> None:
    assert world.tell(StopAsked(delay_s=2.0)) == []
    assert world.ready is False
    assert world.spend(1.875) == []
    assert world.spend(TICK_S) == [Stop(FRONT)]
    assert world.spend(5) == []
    assert world.tell(Ended(FRONT)) == [Stop(TRITON)]
    assert world.spend(5) == []
    assert world.tell(Ended(TRITON)) == [Exit(0)]
    assert world.spend(100) == []


def test_a_stop_without_end_is_cut_short(world: World) -> None:
    assert world.tell(StopAsked()) == [Stop(FRONT)]
    assert world.spend(29.875) == []
    assert world.spend(TICK_S) == [Kill(FRONT), Stop(TRITON)]
    assert world.spend(14.875) == []
    assert world.spend(TICK_S) == [Kill(TRITON), Exit(0)]


def test_a_second_signal_stops_at_once(world: World) -> None:
    world.tell(StopAsked(delay_s=9))
    done = world.tell(StopAsked())
    assert done == [Kill(TRITON), Kill(FRONT), Exit(130, "interrupted while it was stopping")]


def test_a_signal_before_anything_was_ready_stops_at_once() -> None:
    world = World()
    world.tell(Began())
    world.bring_up(FRONT)
    done = world.tell(StopAsked(delay_s=9))
    assert done[:2] == [Kill(TRITON), Kill(FRONT)]
    assert world.exit == Exit(130, "interrupted before the service was ready")


def test_a_stop_does_not_wait_for_what_is_starting(world: World) -> None:
    world.tell(Failed(TRITON, "it has died"))
    assert world.tell(StopAsked()) == [Stop(FRONT)]
    assert world.tell(Ended(FRONT)) == [Kill(TRITON), Exit(0)]


@pytest.mark.parametrize("part", Part)
def test_a_part_that_dies_while_the_service_stops_is_not_started_again(
    world: World, part: Part
) -> None:
    world.tell(StopAsked())
    assert Start(part) not in world.tell(Failed(part, "it has died"))
    world.tell(Ended(FRONT))
    world.tell(Ended(TRITON))
    assert world.exit is not None and world.exit.code == 0


def test_a_stuck_engine_does_not_keep_the_front_from_ending(world: World) -> None:
    world.tell(StopAsked())
    world.silent.add(TRITON)
    world.up.add(TRITON)
    assert world.spend(4.125) == [Kill(TRITON)]
    assert world.tell(Ended(FRONT)) == [Exit(0)]


def test_without_a_front_triton_is_all() -> None:
    world = World(replace(POLICY, parts=(TRITON,)))
    assert world.tell(Began()) == [Start(TRITON)]
    world.bring_up(TRITON)
    assert world.ready is True
    assert world.tell(StopAsked()) == [Stop(TRITON)]
    assert world.tell(Ended(TRITON)) == [Exit(0)]


# Whatever happens

_parts = st.sampled_from(list(Part))
_events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Up, _parts),
    st.builds(Alive, _parts),
    st.builds(Failed, _parts, st.just("why"), st.booleans()),
    st.builds(Ended, _parts),
    st.builds(StopAsked, st.sampled_from([0.0, 2.0])),
    st.just(Tick()),
)


@given(
    st.lists(st.tuples(_events, st.sampled_from([0.0, 0.1, 1.0, 5.0, 70.0])), max_size=40),
    st.booleans(),
)
def test_a_part_is_started_once_at_a_time_and_everything_ends(
    story: list[tuple[Event, float]], restart: bool
) -> None:
    machine, now = Machine(replace(POLICY, restart=restart)), 0.0
    standing: set[Part] = set()
    stopping: set[Part] = set()
    ended = False

    def tell(event: Event) -> None:
        nonlocal ended
        if isinstance(event, Ended):
            if event.part not in stopping:
                return  # nobody has asked it to
            standing.discard(event.part)
        for action in machine.handle(event, now):
            assert not ended
            match action:
                case Start(part):
                    assert part not in standing
                    standing.add(part)
                    stopping.discard(part)
                case Kill(part):
                    assert part in standing
                    standing.discard(part)
                case Stop(part):
                    assert part in standing
                    stopping.add(part)
                case Exit():
                    assert standing == set()
                    ended = True

    tell(Began())
    for event, seconds in story:
        now += seconds
        tell(event)
    tell(StopAsked())
    for _ in range(int(POLICY.drain_timeout_s + POLICY.grace_s) + 3):
        now += 1.0
        tell(Tick())
    assert ended
