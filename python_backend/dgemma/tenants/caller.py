"""One who asks: their tenant, and what of their prompts others may share.

Knows salts and shared prefixes; knows nothing of keys or files.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from dgemma.request import Request
from dgemma.scheduler.tenancy import EVERYONE, Tenant


@dataclass(frozen=True)
class Caller:
    """`shared_prefixes` are token ids, the same for every tenant."""

    tenant: Tenant = EVERYONE
    cache_salt: bytes = b""
    shared_prefixes: tuple[tuple[int, ...], ...] = ()

    def claim(self, request: Request) -> Request:
        """The request as this caller's."""
        shared = max((_common(p, request.prompt) for p in self.shared_prefixes), default=0)
        return replace(
            request, tenant=self.tenant, cache_salt=self.cache_salt, shared_tokens=shared
        )


class Door(Protocol):
    """Finds out who asks. Safe to use from several threads."""

    def identify(self, authorization: str | None) -> Caller:
        """The caller, by the metadata of that name; raises Unauthenticated."""
        ...

    def close(self) -> None: ...


class OpenDoor:
    """Where no tenants are configured: everybody is one, whatever they send."""

    def identify(self, authorization: str | None) -> Caller:
        return Caller()

    def close(self) -> None:
        pass


def cache_salt(secret: bytes, tenant: str) -> bytes:
    """Cannot be computed, and so no entry of the tenant's be asked for, without the secret.

    It belongs to the name: a tenant that is given other keys or limits finds its entries again.
    """
    return hmac.digest(secret, tenant.encode(), "sha256")


def _common(prefix: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for index, (a, b) in enumerate(zip(prefix, prompt, strict=False)):
        if a != b:
            return index
    return min(len(prefix), len(prompt))
