"""API keys: how one is made, what of it may be written down, and how it is recognised.

Knows nothing of tenants. A key is random and long, so that nobody can try all of them whatever the
hash costs; a slow hash would protect no key of that kind, and would make every request, also one
with a false key, cost what a pass costs. So the hash is one SHA-256, salted, and weak keys are
refused instead. A key's first characters are kept in clear: by them its hash is found at once.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

SCHEME = "sha256"
ID_LENGTH = 12  # characters of a key that are no secret
MIN_LENGTH, MAX_LENGTH = 40, 512
_MIN_DISTINCT = 8  # characters; 40 random hex digits have fewer once in 10**12 keys
_PREFIX = "dgk_"  # lets scanners for leaked secrets know it

_ALPHABET = r"[A-Za-z0-9._~+/=-]"  # what a bearer token may consist of
_KEY = re.compile(rf"{_ALPHABET}+")
_HASH = re.compile(
    rf"{SCHEME}:(?P<id>{_ALPHABET}{{{ID_LENGTH}}}):(?P<salt>[0-9a-f]{{32}}):(?P<digest>[0-9a-f]{{64}})"
)


def generate_key() -> str:
    """A new key: 256 random bits, of which about 48 are in the part that is no secret."""
    return _PREFIX + secrets.token_urlsafe(32)


@dataclass(frozen=True)
class KeyHash:
    """What may be known of a key; its text stands in the tenants' file."""

    id: str
    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, key: str) -> KeyHash:
        """With a new salt; ValueError where the key is none, or could be guessed."""
        if not _KEY.fullmatch(key):
            raise ValueError(
                "the key may consist of letters, digits and . _ ~ + / = - alone, as bearer tokens "
                "do; no spaces or line breaks"
            )
        if not MIN_LENGTH <= len(key) <= MAX_LENGTH:
            raise ValueError(
                f"the key has {len(key)} characters; allowed: {MIN_LENGTH} to {MAX_LENGTH}, random "
                "ones; --generate makes such a key"
            )
        if len(set(key)) < _MIN_DISTINCT:
            raise ValueError("the key is not random; --generate makes one that is")
        salt = secrets.token_bytes(16)
        return cls(key[:ID_LENGTH], salt, _digest(salt, key))

    @classmethod
    def parse(cls, text: str) -> KeyHash:
        """ValueError, which does not repeat the text, where it is no hash: it may be a key."""
        found = _HASH.fullmatch(text)
        if found is None:
            raise ValueError(
                f"not a hash of a key, which looks like {SCHEME}:dgk_Ab3dEf9h:5f…:c0…; a plain key "
                "must not stand here: hash it with `dgemma tenants hash-key`, and replace it by a "
                "new one if others could read this file"
            )
        salt, digest = bytes.fromhex(found["salt"]), bytes.fromhex(found["digest"])
        return cls(found["id"], salt, digest)

    def __str__(self) -> str:
        return f"{SCHEME}:{self.id}:{self.salt.hex()}:{self.digest.hex()}"

    def matches(self, key: str) -> bool:
        """Takes the same time wherever the first difference is."""
        return hmac.compare_digest(_digest(self.salt, key), self.digest)


def _digest(salt: bytes, key: str) -> bytes:
    return hashlib.sha256(salt + key.encode(errors="replace")).digest()
