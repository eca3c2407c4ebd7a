"""The few shapes that passes on a GPU have, and which of them a pass is run in.

Knows how passes are padded to shapes for which kernels were chosen and graphs captured; knows
nothing of a runtime. Shapes are doubled from the smallest to the largest, so that a pass is padded
to at most twice its size and their number grows with the logarithm of what is served.
Shapes: R rows, P pairs, N context positions read, W sliding window, C expert capacity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dgemma.engine.base import NO_PARTNER, Capacity, Row
from dgemma.errors import ConfigurationError, EngineFailure
from dgemma.geometry import Geometry

LEAST_CONTEXT = 256

Limits = Mapping[str, tuple[int, int]]  # size -> least and most that a profile was built for


@dataclass(frozen=True)
class Bucket:
    """Every size that varies from pass to pass."""

    rows: int  # R
    pairs: int  # P
    context: int  # N of full layers
    ring: int  # N of sliding layers
    room: int  # C


@dataclass(frozen=True)
class Buckets:
    """Of an engine that serves `capacity` with a plan of these optimisation profiles."""

    geometry: Geometry
    capacity: Capacity
    profiles: tuple[Limits, ...]

    def check(self, plan: str, setting: str = "the service's slots and max_model_len") -> None:
        """ConfigurationError where the plan was not built for all that `capacity` promises."""
        if not self.profiles:
            raise ConfigurationError(
                f"{plan}: does not say for which shapes it was built; build it again"
            )
        for size in ("slots", "rows", "context"):
            most = self._most(size)
            if (wanted := getattr(self.capacity, size)) > most:
                raise ConfigurationError(
                    f"{plan}: was built for at most {most} {size}, {wanted} are asked for; lower "
                    f"{setting}, or build it again with larger --max-rows and --max-context"
                )
        for bucket in self.all():
            self.profile(bucket)

    def all(self) -> Iterator[Bucket]:
        """Each with its regular room, the largest first: it decides the memory of all."""
        for rows in reversed(doubling(1, self.capacity.rows)):
            for context in reversed(doubling(LEAST_CONTEXT, self.capacity.context)):
                for pairs in sorted({rows // 2, 0}, reverse=True):
                    yield self._bucket(rows, pairs, context)

    @property
    def largest(self) -> Bucket:
        """The most of every size that any pass can have, room for all tokens on one expert."""
        first = next(self.all())
        return replace(first, room=min(self._most("capacity"), self._tokens(first.rows)))

    def of(self, rows: Sequence[Row]) -> Bucket:
        """The smallest that holds a pass, with its regular room."""
        paired = any(row.partner != NO_PARTNER for row in rows)
        longest = max(1, *(row.start for row in rows))
        count = first_of(doubling(1, self.capacity.rows), len(rows))
        context = first_of(doubling(LEAST_CONTEXT, self.capacity.context), longest)
        return self._bucket(count, count // 2 if paired else 0, context)

    def roomier(self, bucket: Bucket, load: int) -> Bucket:
        """The same with room for `load` tokens on one expert.

        Raises EngineFailure where the plan was not built for so many.
        """
        room = first_of(doubling(bucket.room, self._tokens(bucket.rows)), load)
        most = self._most("capacity")
        if load > most:
            raise EngineFailure(f"one expert got {load} tokens, the plan takes at most {most}")
        return replace(bucket, room=min(room, most))

    def profile(self, bucket: Bucket) -> int:
        """The first that covers `bucket`; ConfigurationError where none does."""
        sizes = {
            "rows": bucket.rows,
            "pairs": bucket.pairs,
            "context": bucket.context,
            "ring": bucket.ring,
            "capacity": bucket.room,
        }
        for index, profile in enumerate(self.profiles):
            ranges = {name: profile.get(name, (size, size)) for name, size in sizes.items()}
            if all(low <= sizes[name] <= high for name, (low, high) in ranges.items()):
                return index
        raise ConfigurationError(f"no profile of the plan covers {bucket}; build it again")

    def _most(self, size: str) -> int:
        """That any profile covers; what no input of the plan has is not limited."""
        return max(profile[size][1] if size in profile else 2**62 for profile in self.profiles)

    def _tokens(self, rows: int) -> int:
        return rows * self.geometry.canvas_length

    def _bucket(self, rows: int, pairs: int, context: int) -> Bucket:
        g, tokens = self.geometry, self._tokens(rows)
        # An even spread, and half as much again; most passes need less.
        even = -(-tokens * g.top_k_experts // g.num_experts)
        room = min(tokens, self._most("capacity"), max(8, even + even // 2))
        return Bucket(rows, pairs, context, min(context, g.sliding_window), room)


def padded(rows: Sequence[Row], count: int) -> list[Row]:
    """`rows` and, up to `count`, copies of them, of which nothing is kept.

    Copies and not blanks: alike tokens would crowd into the same experts, and the pass overflow.
    """
    copies = [rows[i % len(rows)]._replace(partner=NO_PARTNER) for i in range(len(rows), count)]
    return [*rows, *copies]


def pairs_of(rows: Sequence[Row], count: int) -> tuple[list[int], list[int]]:
    """Encode rows and the denoise rows behind them; the first pair is repeated up to `count`."""
    to = [index for index, row in enumerate(rows) if row.partner != NO_PARTNER]
    to += to[:1] * (count - len(to))
    return [rows[index].partner for index in to], to


def doubling(least: int, most: int) -> list[int]:
    """least, twice that, … and `most`."""
    sizes = [min(least, most)]
    while sizes[-1] < most:
        sizes.append(min(2 * sizes[-1], most))
    return sizes


def first_of(sizes: Sequence[int], wanted: int) -> int:
    return next((size for size in sizes if size >= wanted), sizes[-1])
