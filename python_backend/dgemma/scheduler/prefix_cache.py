"""K/V of what has been encoded before, block by block of L tokens, for prompts that begin alike.

Knows keys, copies and how much memory they may take; knows nothing of who runs when. A copy is
taken out of a slot and put into another one, so that forgetting it touches nothing that runs. A
block's key depends on all tokens up to its end and on the salt that the tenant has from the server:
nobody finds what another tenant's requests have left, except for what the operator has published.
"""

from __future__ import annotations

import itertools
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from hashlib import sha256

from dgemma.engine.base import Engine, Snapshot
from dgemma.request import Request
from dgemma.scheduler.stats import CacheStats

_PUBLISHED = sha256(b"published").digest()


class KeyChain:
    """The keys of a request's complete blocks, one after another as its context grows."""

    def __init__(self, request: Request, length: int) -> None:
        self._length, self._published = length, request.shared_tokens
        self._salt = sha256(b"tenant" + request.cache_salt).digest()
        self._tail: list[int] = []  # behind the last complete block
        self.keys: list[bytes] = []
        self.kept = 0  # of them, whose blocks have been looked at
        self.begun: Snapshot | None = None  # of the next block, what a ring may forget
        self.extend(request.prompt)

    def extend(self, tokens: Iterable[int]) -> None:
        known, length = array("q", [*self._tail, *tokens]), self._length
        complete = len(known) // length * length
        for start in range(0, complete, length):
            end = (len(self.keys) + 1) * length
            salt = _PUBLISHED if end <= self._published else self._salt
            before = self.keys[-1] if self.keys else b""
            block = known[start : start + length].tobytes()
            self.keys.append(sha256(before + salt + block).digest())
        self._tail = known[complete:].tolist()


class PrefixCache:
    """Copies of blocks, those forgotten first that were used longest ago."""

    def __init__(self, engine: Engine, max_bytes: int) -> None:
        self._engine, self._max_bytes = engine, max_bytes
        self._length = engine.geometry.canvas_length
        self._blocks: OrderedDict[bytes, tuple[Snapshot, ...]] = OrderedDict()
        self.nbytes = self.evicted = 0  # bytes of blocks; blocks forgotten for want of room
        self.lookups = self.hits = 0  # blocks that slots wanted; of these, those that were here

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def stats(self) -> CacheStats:
        return CacheStats(self.lookups, self.hits, self.evicted, self.nbytes)

    def known(self, chain: KeyChain) -> int:
        """Blocks of a context that are here, up to the first that is not."""
        return sum(1 for _ in self._find(chain.keys))

    def restore(self, chain: KeyChain, slot: int, blocks: int) -> int:
        """Put what is known of the first `blocks` blocks into a slot; how many that were."""
        found = list(self._find(chain.keys[:blocks]))
        self.lookups += blocks
        self.hits += len(found)
        for snapshot in itertools.chain.from_iterable(found):
            self._engine.restore(slot, snapshot)
        # The last one first: what is used least is then the end of a context, not its beginning.
        for key in reversed(chain.keys[: len(found)]):
            self._blocks.move_to_end(key)
        chain.kept, chain.begun = len(found), None
        return len(found)

    def keep(self, chain: KeyChain, slot: int, encoded: int) -> None:
        """Copy the blocks that have been completed in a slot that holds `encoded` tokens."""
        for index in range(chain.kept, encoded // self._length):
            chain.kept += 1
            reachable = index == 0 or chain.keys[index - 1] in self._blocks
            if reachable and chain.keys[index] not in self._blocks:
                copies = self._copies(chain, slot, index * self._length, encoded)
                if copies:
                    self._put(chain.keys[index], copies)
        rest = encoded % self._length
        if rest and self._engine.geometry.sliding_window < 2 * self._length - 1:
            chain.begun = self._engine.snapshot(slot, encoded - rest, encoded)

    def _copies(self, chain: KeyChain, slot: int, start: int, encoded: int) -> tuple[Snapshot, ...]:
        """Of the block at `start`, in the order to restore them; none if it cannot be had whole."""
        stop, window = start + self._length, self._engine.geometry.sliding_window
        # A ring forgets; what it has forgotten of a block only matters behind its end.
        if encoded == stop or encoded - start <= window:
            return (self._engine.snapshot(slot, start, stop),)
        begun = chain.begun
        if begun is not None and begun.start == start and encoded - begun.stop <= window:
            return begun, self._engine.snapshot(slot, begun.stop, stop)
        return ()

    def _find(self, keys: Iterable[bytes]) -> Iterator[tuple[Snapshot, ...]]:
        for key in keys:
            if key not in self._blocks:
                return
            yield self._blocks[key]

    def _put(self, key: bytes, copies: tuple[Snapshot, ...]) -> None:
        self._blocks[key] = copies
        self.nbytes += _nbytes(copies)
        while self.nbytes > self._max_bytes:
            self.nbytes -= _nbytes(self._blocks.popitem(last=False)[1])
            self.evicted += 1


def _nbytes(copies: Iterable[Snapshot]) -> int:
    return sum(copy.nbytes for copy in copies)
