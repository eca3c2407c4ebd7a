"""Clients of a Service who ask all the time, and what became of each of their requests.

Knows how clients differ: over HTTP or gRPC, with a new connection for each request or one that they
keep, with the documented retries or without. Knows nothing of pods.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dgemma.client import Client
from dgemma.client_errors import ClientError, Unavailable

TIMEOUT_S = 120.0
RETRY_FOR_S = 90.0
AFTER_AN_ERROR_S = 0.2
MESSAGES = [{"role": "user", "content": "count from 42"}]
TOKENS = 64


@dataclass(frozen=True)
class Outcome:
    """One request; `error` is empty where it was answered. Moments by `time.monotonic`."""

    began: float
    ended: float
    error: str = ""
    hinted: bool = True  # an error says when to ask again


@dataclass
class Kind:
    """Clients that are alike; `ask` sends one request, `reset` is called at the end."""

    name: str
    ask: Callable[[], None]
    close: Callable[[], None] = lambda: None
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def errors(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error]

    def summary(self) -> str:
        said = Counter(outcome.error for outcome in self.errors)
        lost = "; ".join(f"{count} × {error}" for error, count in said.most_common(3))
        return f"{len(self.outcomes)} requests, {len(self.errors)} lost" + (
            f": {lost}" if lost else ""
        )


class Refused(Exception):
    """An HTTP answer other than 200."""

    def __init__(self, status: int, retry_after: str | None) -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.hinted = status, retry_after is not None


def http_once(address: str) -> Kind:
    """A new connection for each request, no retries."""

    def ask() -> None:
        connection = http.client.HTTPConnection(address, 8000, timeout=TIMEOUT_S)
        try:
            _complete(connection)
        finally:
            connection.close()

    return Kind("HTTP, a connection each", ask)


def http_with_retries(address: str) -> Kind:
    """A connection that is kept; after 503 or a broken connection another one, as documented."""
    kept: list[http.client.HTTPConnection] = []

    def close() -> None:
        while kept:
            kept.pop().close()

    def ask() -> None:
        until = time.monotonic() + RETRY_FOR_S
        while True:
            if not kept:
                kept.append(http.client.HTTPConnection(address, 8000, timeout=TIMEOUT_S))
            try:
                return _complete(kept[0])
            except (OSError, http.client.HTTPException, Refused) as error:
                close()
                if time.monotonic() > until or getattr(error, "status", 503) != 503:
                    raise
            time.sleep(1.0)

    return Kind("HTTP, kept, retries", ask, close)


def grpc_once(address: str) -> Kind:
    """A new channel for each request, no retries."""

    def ask() -> None:
        with Client(f"{address}:8001") as client:
            _generate(client)

    return Kind("gRPC, a channel each", ask)


def grpc_kept(address: str, retry_for_s: float = RETRY_FOR_S) -> Kind:
    """One channel for all requests, with the client's own retries."""
    client = Client(f"{address}:8001", retry_for_s=retry_for_s)
    name = "gRPC, kept, retries" if retry_for_s else "gRPC, kept"
    return Kind(name, lambda: _generate(client), client.close)


def _generate(client: Client) -> None:
    answer = client.generate(messages=MESSAGES, max_new_tokens=TOKENS, seed=7, timeout_s=TIMEOUT_S)
    assert answer.text, "an empty answer"


def _complete(connection: http.client.HTTPConnection) -> None:
    body = {"model": "diffusion_gemma", "messages": MESSAGES, "max_tokens": TOKENS, "seed": 7}
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise Refused(answer.status, answer.headers.get("Retry-After"))
    choice: dict[str, Any] = json.loads(content)["choices"][0]
    assert choice["message"]["content"] and choice["finish_reason"] in ("stop", "length")


class Load:
    """Each kind asks in a thread of its own, one request after another, within the block."""

    def __init__(self, kinds: Sequence[Kind]) -> None:
        self.kinds = kinds
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(kind,)) for kind in kinds]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_answered(self, since: float, each: int = 3) -> None:
        """Until every kind has had so many answers to requests that began since then."""
        deadline = time.monotonic() + TIMEOUT_S
        while not all(len(list(_answered(kind, since))) >= each for kind in self.kinds):
            assert time.monotonic() < deadline, [kind.summary() for kind in self.kinds]
            time.sleep(0.05)

    def _run(self, kind: Kind) -> None:
        try:
            while not self._over.is_set():
                began = time.monotonic()
                error, hinted = "", True
                try:
                    kind.ask()
                except Unavailable as unavailable:
                    error, hinted = "UNAVAILABLE", unavailable.retry_after_s > 0
                except ClientError as other:
                    error = f"{other.code}: {other.message}"
                except Refused as refused:
                    error, hinted = str(refused), refused.hinted
                except (OSError, http.client.HTTPException) as broken:
                    error = type(broken).__name__
                kind.outcomes.append(Outcome(began, time.monotonic(), error, hinted))
                if error:
                    self._over.wait(AFTER_AN_ERROR_S)
        finally:
            kind.close()


def _answered(kind: Kind, since: float) -> Iterator[Outcome]:
    return (o for o in list(kind.outcomes) if not o.error and o.began >= since)
