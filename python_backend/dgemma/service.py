"""The service: the one thread that owns scheduler and device, and the thread-safe way to it.

Knows threads, start-up and shut-down; knows nothing of Triton or of what a pass does.
"""

from __future__ import annotations

import hmac
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol

from dgemma.answer import annotate
from dgemma.chat import ChatTokenizer
from dgemma.errors import DgemmaError, EngineFailure, Unavailable
from dgemma.profiles.locks import InUse
from dgemma.profiles.selection import Selection
from dgemma.request import RawRequest, Request
from dgemma.scheduler.events import Block, Draft, Event, Finished, Sink, Usage
from dgemma.scheduler.stats import SchedulerStats
from dgemma.scheduler.tenancy import PROBE
from dgemma.settings import Settings
from dgemma.tenants.caller import Caller, Door, OpenDoor
from dgemma.tenants.ledger import Ledger

if TYPE_CHECKING:
    from dgemma.simulated.simulation import Simulation

logger = logging.getLogger(__name__)

Meanwhile = Callable[[Callable[[], object]], object]
Tell = Callable[[Request, Block | Finished], None]
# Token ids and states [L] of a draft to its text and one state per character.
Annotate = Callable[[Sequence[int], Sequence[int]], tuple[str, list[int]]]


class Parser(Protocol):
    """`dgemma.request.RequestParser`, as far as it is needed here; safe from several threads."""

    def parse(self, raw: RawRequest, request_id: str) -> Request: ...


class PassScheduler(Protocol):
    """`dgemma.scheduler.scheduler.Scheduler`, as far as it is needed here; for one thread.

    `step` raises what the engine raises, after it has ended the requests of that pass.
    """

    @property
    def busy(self) -> bool: ...
    @property
    def stats(self) -> SchedulerStats: ...
    def submit(self, request: Request, sink: Sink) -> None: ...
    def cancel(self, request_id: str) -> None: ...
    def step(self) -> bool: ...


class Service:
    """Takes requests from any thread and gives their events to sinks, on the device thread.

    A sink must neither block nor raise. Its last event is a `Finished`, whatever happens.
    """

    def __init__(
        self,
        parser: Parser,
        scheduler: PassScheduler,
        annotate: Annotate,
        *,
        selection: Selection | None = None,
        in_use: InUse | None = None,
        door: Door | None = None,
        ledger: Ledger | None = None,
        simulation: Simulation | None = None,
        probe_key: str | None = None,
        meanwhile: Meanwhile = lambda call: call(),
    ) -> None:
        """Without a door everybody is one tenant; without a ledger no usage is kept.

        `selection` says what runs; `in_use` is what nobody may remove until `close`. Door and
        ledger are closed with the service. What a `simulation` answers is marked as such.
        `meanwhile` is the engine's. Whoever has the `probe_key` asks as PROBE.
        """
        self.annotate, self.selection, self.simulation = annotate, selection, simulation
        self._in_use = in_use or InUse()
        self._parser, self._scheduler = parser, scheduler
        self._door, self._ledger = door or OpenDoor(), ledger
        self._probe_header = probe_key and f"Bearer {probe_key}"
        self._probes: list[str] = []  # that wait for a pass of others; the device thread's own
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Condition()  # guards the next two
        self._open: dict[str, tuple[Request, Sink]] = {}
        self._refusal: str | None = None  # why no more requests are taken
        self._ended = 0  # requests; this and the next are the device thread's own
        self._stopping = False
        self._after_pass: Callable[[], None] = lambda: None
        self._tell: Tell = lambda request, event: None
        self._meanwhile = meanwhile
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    @classmethod
    def from_settings(cls, settings: Settings) -> Service:
        """Load tokenizer, configuration and engine.

        Raises ConfigurationError where a file or a setting is at fault.
        """
        from dgemma.loading import load  # brings torch, which is not needed to test threads

        parts = load(settings)
        tokenizer = ChatTokenizer.from_checkpoint(settings.checkpoint)
        ledger = None if settings.ledger is None else Ledger(settings.ledger)
        door, key = None, settings.probe_key
        if settings.tenants is not None:
            from dgemma.tenants.doorman import Doorman  # brings YAML

            door = Doorman(settings.tenants, parts.parser.tokens)
            used = {} if ledger is None else ledger.used_lately()
            for tenant in door.tenants:
                parts.scheduler.admission.charge(tenant, used.get(tenant.name, 0.0))
        return cls(
            *(parts.parser, parts.scheduler, partial(annotate, tokenizer)),
            selection=parts.selection,
            in_use=parts.in_use,
            door=door,
            ledger=ledger,
            simulation=parts.simulation,
            probe_key=None if key is None else key.get_secret_value(),
            meanwhile=parts.scheduler.engine.meanwhile,
        )

    def identify(self, authorization: str | None) -> Caller:
        """Who asks, by the metadata of that name; raises Unauthenticated."""
        if self._probe_header is not None and authorization is not None:
            sent, known = authorization.encode(errors="replace"), self._probe_header.encode()
            if hmac.compare_digest(sent, known):
                return Caller(PROBE)
        return self._door.identify(authorization)

    def parse(self, raw: RawRequest, request_id: str) -> Request:
        """Check a request, on the caller's thread; raises InvalidRequest naming the field."""
        return self._parser.parse(raw, request_id)

    def submit(self, request: Request, sink: Sink) -> None:
        """Queue a request; it joins at the next pass. No open request may have the same id.

        Raises Unavailable while the service stops and once the device thread is dead.
        """
        with self._lock:
            if self._refusal is not None:
                raise Unavailable(self._refusal)
            if request.id in self._open:
                raise ValueError(f"request id {request.id!r} is in use")
            self._open[request.id] = (request, sink)
            self._inbox.put(partial(self._begin, request))

    def cancel(self, request_id: str) -> None:
        """End a request before the next pass; one that is not open has already ended."""
        self._inbox.put(partial(self._scheduler.cancel, request_id))

    def after_passes(self, call: Callable[[], None]) -> None:
        """Have `call` called on the device thread after every pass; it may not block or raise.

        Where another pass follows at once, that is when the device has begun it.
        """
        self._after_pass = call

    def tell(self, call: Tell) -> None:
        """Have `call` told of every block and end, on the device thread: it may not block or raise.

        To be asked for before the first request.
        """
        self._tell = call

    @property
    def stats(self) -> SchedulerStats:
        """A look at the scheduler, from any thread."""
        return self._scheduler.stats

    def drain(self, timeout_s: float) -> bool:
        """Take no more requests and wait for the open ones; False if some are left."""
        self._refuse("the service is stopping; send the request to another one, or later")
        with self._lock:
            return self._lock.wait_for(lambda: not self._open, timeout_s)

    def close(self) -> None:
        """Cancel what is open and end the device thread, after the pass that it is in."""
        self._refuse("the service has stopped; start it again")
        self._inbox.put(self._stop)
        self._thread.join()
        self._in_use.close()
        self._door.close()
        if self._ledger is not None:
            self._ledger.close()
        if self.simulation is not None:
            logger.warning("%s", self.simulation.report())

    def _refuse(self, why: str) -> None:
        with self._lock:
            self._refusal = self._refusal or why

    # Everything below runs on the device thread.

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._read_inbox(wait=not self._scheduler.busy)
                self._step()
        except BaseException as error:
            logger.critical("the device thread died", exc_info=True)
            self._refuse(f"the service is dead ({error!r}); restart it")
        finally:
            self._abandon()

    def _read_inbox(self, wait: bool) -> None:
        """Do all that was asked for; `wait` for something to do."""
        try:
            self._inbox.get(block=wait)()
            while True:
                self._inbox.get_nowait()()
        except Empty:
            return

    def _begin(self, request: Request) -> None:
        # A probe takes no slot from others: their next pass answers it as well as one of its own.
        if request.tenant is PROBE and self._scheduler.busy:
            self._probes.append(request.id)
            return
        self._submit(request)

    def _submit(self, request: Request) -> None:
        try:
            self._scheduler.submit(request, partial(self._deliver, request.id))
        except DgemmaError as error:
            self._deliver(request.id, _failure(request, error))
        except Exception as error:
            logger.exception(
                "request %s cannot begin", request.id, extra={"request_id": request.id}
            )
            self._deliver(request.id, _failure(request, error))

    def _step(self) -> None:
        ended = self._ended
        ran = False
        try:
            ran = self._scheduler.step()
        except Exception:
            # The requests of the pass have ended with this error and the others go on. A scheduler
            # that ended none would fail in the same way for ever.
            if self._ended == ended:
                raise
            logger.exception("a pass failed")
        if self._probes:
            self._answer_probes(ran)
        if ran and self._scheduler.busy:  # there will be another pass
            self._meanwhile(self._after_pass)
        else:
            self._after_pass()

    def _answer_probes(self, ran: bool) -> None:
        """After a pass; where none ran and none will, they are run themselves."""
        if not ran and self._scheduler.busy:
            return
        probes, self._probes = self._probes, []
        for request_id in probes:
            request, _ = self._open[request_id]
            if ran:
                self._deliver(request_id, Finished("length", _no_usage(request)))
            else:
                self._submit(request)

    def _deliver(self, request_id: str, event: Event) -> None:
        if request_id not in self._open:
            return  # it has had its last event
        request, sink = self._open[request_id]
        if self.simulation is not None and isinstance(event, Finished):
            event = replace(event, usage=replace(event.usage, simulated=self.simulation.name))
        sink(event)
        if not isinstance(event, Draft) and request.tenant is not PROBE:
            self._tell(request, event)
        if isinstance(event, Finished):
            self._ended += 1
            if self._ledger is not None and request.tenant is not PROBE:
                self._ledger.record(request.tenant.name, event)
            with self._lock:
                del self._open[request_id]
                self._lock.notify_all()

    def _stop(self) -> None:
        self._stopping = True
        for request_id in list(self._open):
            self._scheduler.cancel(request_id)

    def _abandon(self) -> None:
        """End whatever is still open, so that nobody waits for a thread that is gone."""
        with self._lock:
            abandoned = list(self._open.values())
        for request, _ in abandoned:
            self._deliver(request.id, _failure(request, Unavailable(str(self._refusal))))


def _failure(request: Request, error: Exception) -> Finished:
    """The end of a request that no scheduler accounts for."""
    if not isinstance(error, DgemmaError):
        error = EngineFailure(f"the request could not be run: {error!r}")
    return Finished("error", _no_usage(request), error)


def _no_usage(request: Request) -> Usage:
    return Usage(
        prompt_tokens=len(request.prompt),
        completion_tokens=0,
        committed_tokens=0,
        denoising_steps=(),
        cap_hits=0,
        mean_entropy=(),
        passes=0,
        seed=request.sampling.seed,
        queue_ms=0.0,
        first_block_ms=0.0,
        total_ms=0.0,
    )
