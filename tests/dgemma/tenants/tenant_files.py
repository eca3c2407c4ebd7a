"""Tenants' files for tests, and the keys in them."""

from __future__ import annotations

from dgemma.tenants.keys import KeyHash, generate_key

# The keys of the tests are made anew in each run; nothing depends on what they are.
ACME, OTHER, THIRD = (generate_key() for _ in range(3))


def hashed(key: str) -> str:
    return str(KeyHash.of(key))


def tenant(name: str, key: str, more: str = "") -> str:
    """An entry of the list, with lines of its own such as `weight: 2`."""
    lines = [f"  - name: {name}", f"    keys: [{hashed(key)}]", *more.splitlines()]
    return "\n".join([*lines[:2], *(f"    {line}" for line in lines[2:])]) + "\n"


def file_of(*entries: str, more: str = "") -> str:
    return "tenants:\n" + "".join(entries) + more
