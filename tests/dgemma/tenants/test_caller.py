from __future__ import annotations

import pytest

from dgemma.scheduler.tenancy import EVERYONE, Tenant
from dgemma.tenants.caller import Caller, OpenDoor, cache_salt
from tests.dgemma.hand_made import request

ACME = Tenant("acme", 2.0)


def test_a_request_becomes_its_caller_s_and_stays_what_it_was() -> None:
    asked = request()
    claimed = Caller(ACME, b"salt").claim(asked)
    assert (claimed.tenant, claimed.cache_salt) == (ACME, b"salt")
    assert (claimed.id, claimed.prompt, claimed.sampling) == (
        asked.id,
        asked.prompt,
        asked.sampling,
    )


@pytest.mark.parametrize("authorization", [None, "Bearer whatever"])
def test_without_tenants_everybody_is_one(authorization: str | None) -> None:
    assert OpenDoor().identify(authorization).claim(request()) == request()
    assert request().tenant is EVERYONE


@pytest.mark.parametrize(
    ("prefixes", "shared"),
    [
        ([], 0),
        ([(9,)], 0),
        ([(2, 9)], 1),
        ([(2, 70)], 2),
        ([(2, 70, 71)], 3),
        ([(2, 70, 71, 72)], 3),
        ([(70, 71)], 0),
        ([(2, 9), (2, 70), (3,)], 2),
    ],
)
def test_shared_is_what_the_prompt_begins_with_as_a_prefix_does(
    prefixes: list[tuple[int, ...]], shared: int
) -> None:
    claimed = Caller(ACME, b"", tuple(prefixes)).claim(request())  # 2, 70, 71
    assert claimed.shared_tokens == shared


def test_a_salt_is_its_tenant_s_alone_and_nobody_s_without_the_secret() -> None:
    salts = {cache_salt(secret, name) for secret in (b"x", b"y") for name in ("a", "b", "ab")}
    assert len(salts) == 6
    assert cache_salt(b"x", "a") == cache_salt(b"x", "a")
    assert {len(salt) for salt in salts} == {32}
