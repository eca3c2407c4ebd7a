"""Lets in who has a key, by a file that may change while the service runs.

Knows the metadata that a key comes in and when the file is read again; knows nothing of Triton.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dgemma.errors import ConfigurationError, DgemmaError, InvalidRequest, Unauthenticated
from dgemma.request import RawRequest
from dgemma.scheduler.tenancy import Tenant
from dgemma.tenants.caller import Caller, cache_salt
from dgemma.tenants.roster import Roster
from dgemma.tenants.schema import PrefixEntry

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
_HOW = (
    "send the metadata `authorization: Bearer KEY` (dgemma generate: --api-key, or DGEMMA_API_KEY)"
)


class Doorman:
    """Knows the tenants of a file, which it looks at all the time.

    Its content is compared, not its date: that sees an edit in place as well as the symbolic link
    that Kubernetes swaps under a mounted Secret. A change counts once two looks in a row have found
    the same, so that a file that is being written is not taken for one that has fewer tenants.
    """

    def __init__(self, path: Path, tokens: Callable[[RawRequest], tuple[int, ...]]) -> None:
        """`tokens` are those of a prompt, or InvalidRequest, as `RequestParser.tokens` gives them.

        Raises ConfigurationError where the file cannot be used.
        """
        self._path, self._tokens = path, tokens
        # What it protects lives in this process's memory and ends with it.
        self._secret = secrets.token_bytes(32)
        self._seen = self._judged = _read(path)
        self._in_force = self._admit(self._seen)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tenants", daemon=True)
        self._thread.start()

    @property
    def tenants(self) -> Sequence[Tenant]:
        """Those of the file that is in force."""
        return self._in_force[0].tenants

    def identify(self, authorization: str | None) -> Caller:
        if authorization is None:
            raise Unauthenticated(f"no API key came with the request; {_HOW}")
        scheme, _, key = authorization.strip().partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthenticated(f"authorization: not of the form `Bearer KEY`; {_HOW}")
        roster, callers = self._in_force  # at once: the thread may put others in their place
        tenant = roster.owner(key.strip())
        if tenant is None:
            raise Unauthenticated(
                "authorization: the API key is not known here; check it, or ask the operator for "
                "a new one"
            )
        return callers[tenant.name]

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(LOOK_EVERY_S):
            self._look()

    def _look(self) -> None:
        content = _read(self._path)
        settled, self._seen = content == self._seen, content
        if not settled or content == self._judged:
            return
        self._judged = content
        try:
            self._in_force = self._admit(content)
        except Exception as error:
            logger.error(
                "the tenants that were read before stay in force, the file is refused:\n%s",
                error,
                exc_info=None if isinstance(error, DgemmaError) else error,
            )
        else:
            logger.info("%s: %d tenants are in force now", self._path, len(self._in_force[1]))

    def _admit(self, content: bytes | str) -> tuple[Roster, Mapping[str, Caller]]:
        """The tenants of the file, and each as a caller, by name."""
        if isinstance(content, str):
            raise ConfigurationError(content)
        roster = Roster.parse(content, self._path)
        shared = tuple(
            self._prefix(index, entry) for index, entry in enumerate(roster.shared_prefixes)
        )
        return roster, {
            tenant.name: Caller(tenant, cache_salt(self._secret, tenant.name), shared)
            for tenant in roster.tenants
        }

    def _prefix(self, index: int, entry: PrefixEntry) -> tuple[int, ...]:
        text = entry.text
        try:
            return self._tokens(
                RawRequest(
                    text_input=None if text is None else text.encode(errors="surrogatepass"),
                    input_ids=entry.token_ids,
                )
            )
        except InvalidRequest as error:
            raise ConfigurationError(f"{self._path}: shared_prefixes[{index}]: {error}") from None


def _read(path: Path) -> bytes | str:
    """The content, or why there is none."""
    try:
        return path.read_bytes()
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
