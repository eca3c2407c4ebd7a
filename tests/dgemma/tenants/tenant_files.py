"""Tenants' files for tests, and the keys in them."""

from __future__ import annotations

import base64
import hashlib

from dgemma.tenants.keys import KeyHash


def key_of(name: str) -> str:
    """The same in every process, because keys are in the names of tests."""
    digest = hashlib.sha256(name.encode()).digest()
    return "dgk_" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


ACME, OTHER, THIRD = map(key_of, ("acme", "other", "third"))


def hashed(key: str) -> str:
    return str(KeyHash.of(key))


def tenant(name: str, key: str, more: str = "") -> str:
    """An entry of the list, with lines of its own such as `weight: 2`."""
    lines = [f"  - name: {name}", f"    keys: [{hashed(key)}]", *more.splitlines()]
    return "\n".join([*lines[:2], *(f"    {line}" for line in lines[2:])]) + "\n"


def file_of(*entries: str, more: str = "") -> str:
    return "tenants:\n" + "".join(entries) + more
