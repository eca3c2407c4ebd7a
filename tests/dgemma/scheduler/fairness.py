"""What tenants get from a whole scheduler, and the bounds that are worked out beforehand.

Knows what is measured and how; on which engine, and in what time, is the ground's business.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from dgemma.request import Request
from dgemma.scheduler.options import Options
from dgemma.scheduler.tenancy import Tenant
from tests.dgemma.scheduler.dice import Client, Stage, asked, keep_busy

FAIR, PLAIN = Options(), Options(fair=False)
WEIGHTS = (1.0, 2.0, 4.0)
SHARE_ERROR, FLOOD_FACTOR, TENANTS_FACTOR = 0.05, 1.25, 1.1
STEPS_TIMED = 25


@dataclass(frozen=True)
class Ground:
    """Where tenants compete, with requests of one to `canvases` canvases and as many chunks."""

    stage: Callable[[int, Options], Stage]
    length: int  # of a canvas
    steps: int  # of a canvas, at most
    longest_pass_s: Callable[[int], float]  # of one with so many rows
    slots: int = 4
    chunks: int = 5
    canvases: int = 4

    def mixed(self, name: str, tenant: Tenant, number: int) -> Request:
        """One to four canvases, with prompts of one to five chunks."""
        return asked(
            name,
            tenant,
            seed=number,
            max_new_tokens=self.length * (1 + number % self.canvases),
            max_denoising_steps=self.steps,
            prompt=(1,) * (1 + (self.length - 1) * (number % self.chunks)),
        )

    @property
    def turn_rows(self) -> int:
        """Of a turn, at most: all that is known is encoded, then a canvas."""
        return self.chunks + self.canvases + self.steps


def p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


def shares(ground: Ground, options: Options, passes: int) -> dict[float, float]:
    """Rows of each tenant by its weight, all backlogged, relative to the first's."""
    stage = ground.stage(ground.slots, options)
    clients = [Client(Tenant(str(w), w), 8, ground.mixed) for w in WEIGHTS]
    keep_busy(stage, clients, passes)
    return {w: stage.served[str(w)] / stage.served[str(WEIGHTS[0])] for w in WEIGHTS}


def share_error(found: dict[float, float]) -> float:
    """The largest deviation from the weights, relative to them."""
    return max(abs(share / weight - 1) for weight, share in found.items())


def victim_p99_s(ground: Ground, options: Options, flood: int, passes: int) -> float:
    """What a steady tenant's requests take beside three others, one of which may flood."""
    stage = ground.stage(ground.slots, options)
    victim = Client(Tenant("victim"), 2, ground.mixed)
    neighbours = [Client(Tenant(f"n{i}"), 2, ground.mixed) for i in range(2)]
    flooding = Client(Tenant("flood"), flood, ground.mixed)
    keep_busy(stage, [flooding, *neighbours, victim], passes)
    return p99(victim.takes_s)


def longest_wait_s(ground: Ground, weights: Sequence[float], own: float) -> float:
    """Until a tenant of weight `own` that has no other request has a slot, beside such `weights`.

    When its last request had its last turn, nobody who waited was owed one: its tag was at most a
    turn above the lowest, and then its own turn was charged. It gets a slot at the next block
    border when all that run have tags above its own by a turn of its own and by what it costs them
    to make room. By then each of the others has been charged for as much, and one turn more; what
    their slots had begun was charged before. In a pass every slot that is taken has a row, and a
    border comes with every turn's end.
    """
    turn, context = ground.turn_rows, ground.chunks + ground.canvases
    above = turn / min(weights) + 2 * turn / own
    rows = sum(weight * above + context + turn for weight in weights) + ground.slots * turn
    passes = rows / ground.slots + turn
    return passes * ground.longest_pass_s(2 * ground.slots)


def worst_wait_s(ground: Ground, options: Options, passes: int) -> float:
    """Of a tenant with one request at a time, beside others that always have more waiting."""
    stage = ground.stage(ground.slots, options)
    steady = Client(Tenant("steady", 1.0), 1, ground.mixed)
    crowd = [Client(Tenant(f"w{w}", w), 40, ground.mixed) for w in WEIGHTS]
    keep_busy(stage, [*crowd, steady], passes)
    return max(steady.waits_s)


def thousand_to_one(ground: Ground, pairs: int = 40) -> float:
    """The time of steps with a thousand tenants over that with one, measured in turns."""

    def backlogged(tenants: int) -> Stage:
        stage = ground.stage(2 * ground.slots, FAIR)
        names = [Tenant(str(number), 1.0 + number % 3) for number in range(tenants)]
        for number in range(1500):
            stage.submit(ground.mixed(str(number), names[number % tenants], number))
        return stage

    one, thousand = backlogged(1), backlogged(1000)
    gc.collect()
    gc.freeze()  # as the service does with all that is there when it begins
    try:
        return median(_steps_s(thousand) / _steps_s(one) for _ in range(pairs))
    finally:
        gc.unfreeze()


def _steps_s(stage: Stage) -> float:
    began = time.perf_counter()
    for _ in range(STEPS_TIMED):  # as many as have block borders among them
        stage.scheduler.step()
    return time.perf_counter() - began
