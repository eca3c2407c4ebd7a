from __future__ import annotations

import pytest

from dgemma.tenants import keys
from dgemma.tenants.keys import ID_LENGTH, KeyHash, generate_key
from tests.dgemma.tenants.tenant_files import key_of

KEY = key_of("a tenant")


def test_a_generated_key_is_new_each_time_and_can_be_hashed() -> None:
    made = {generate_key() for _ in range(100)}
    assert len({key[:ID_LENGTH] for key in made}) == 100
    assert all(KeyHash.of(key).matches(key) for key in made)


def test_the_text_of_a_hash_is_all_that_is_needed_to_recognise_the_key() -> None:
    known = KeyHash.parse(str(KeyHash.of(KEY)))
    assert known.matches(KEY)
    assert known.id == KEY[:ID_LENGTH]


@pytest.mark.parametrize("other", [KEY[:-1], KEY + "x", KEY[:-1] + "\udcff", "", key_of("another")])
def test_no_other_key_matches(other: str) -> None:
    assert not KeyHash.of(KEY).matches(other)


def test_the_text_holds_the_id_and_nothing_else_of_the_key() -> None:
    text = str(KeyHash.of(KEY))
    assert KEY[:ID_LENGTH] in text
    assert not any(KEY[start : start + 6] in text for start in range(ID_LENGTH, len(KEY) - 6))


def test_a_key_s_hash_is_salted() -> None:
    first, second = KeyHash.of(KEY), KeyHash.of(KEY)
    assert first.salt != second.salt
    assert first.digest != second.digest


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("", "letters, digits and"),
        ("x" * 20 + " " + "y" * 20, "no spaces or line breaks"),
        (KEY + "\n", "no spaces or line breaks"),
        ("ké" + KEY, "letters, digits and"),
        (KEY[:39], "39 characters; allowed: 40 to 512"),
        (KEY * 12, "564 characters; allowed: 40 to 512"),
        ("changeme" * 6, "not random"),
    ],
)
def test_a_key_that_is_none_or_can_be_guessed_is_refused(key: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        KeyHash.of(key)
    assert not key or key not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [KEY, "", "sha256:", str(KeyHash.of(KEY))[:-1], str(KeyHash.of(KEY)) + "0", "md5:a:b:c"],
)
def test_what_is_no_hash_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="a plain key must not stand here") as refused:
        KeyHash.parse(text)
    assert len(text) < 10 or text not in str(refused.value)


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(
        keys.hmac, "compare_digest", lambda a, b: compared.append((a, b)) is not None
    )
    KeyHash.of(KEY).matches(KEY)
    assert [len(side) for side in compared[0]] == [32, 32]
