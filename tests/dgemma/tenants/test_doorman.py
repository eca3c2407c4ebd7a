from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError, InvalidRequest, Unauthenticated
from dgemma.request import RawRequest
from dgemma.tenants import doorman as module
from dgemma.tenants.doorman import Doorman
from tests.dgemma.hand_made import request
from tests.dgemma.tenants.tenant_files import ACME, OTHER, THIRD, file_of, tenant

PATIENCE_S = 20.0
BOTH = file_of(tenant("acme", ACME), tenant("other-one", OTHER))
MORE = file_of(tenant("acme", ACME), tenant("third", THIRD))
BAD = BOTH + "    weight: 0\n"


def tokens(raw: RawRequest) -> tuple[int, ...]:
    """One for each byte; there are 256."""
    ids = tuple(raw.text_input or ()) or tuple(raw.input_ids or ())
    if max(ids) > 255:
        raise InvalidRequest("input_ids[0]", f"got {max(ids)}; allowed: 0 to 255")
    return ids


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.002)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "tenants.yaml"
    file.write_text(BOTH)
    return file


@pytest.fixture
def door(path: Path) -> Iterator[Doorman]:
    opened = Doorman(path, tokens)
    yield opened
    opened.close()


def knows(door: Doorman, key: str) -> bool:
    try:
        door.identify(f"Bearer {key}")
    except Unauthenticated:
        return False
    return True


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


# Who is let in


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  ", " Bearer "])
def test_a_key_is_its_tenant_s(door: Doorman, scheme: str) -> None:
    assert door.identify(scheme + ACME).tenant.name == "acme"
    assert door.identify(scheme + OTHER).tenant.name == "other-one"


@pytest.mark.parametrize(
    ("authorization", "says"),
    [
        (None, "no API key came with the request"),
        ("", "not of the form `Bearer KEY`"),
        (ACME, "not of the form `Bearer KEY`"),
        ("Bearer", "not of the form `Bearer KEY`"),
        (f"Basic {ACME}", "not of the form `Bearer KEY`"),
        (f"Bearer {THIRD}", "the API key is not known here"),
        (f"Bearer {ACME} {ACME}", "the API key is not known here"),
        ("Bearer \udcff" + ACME, "the API key is not known here"),
    ],
)
def test_others_are_not_and_hear_what_to_do(
    door: Doorman, authorization: str | None, says: str
) -> None:
    with pytest.raises(Unauthenticated) as refused:
        door.identify(authorization)
    assert says in str(refused.value)
    assert ACME not in str(refused.value) and THIRD not in str(refused.value)


def test_tenants_have_salts_of_their_own_that_last_as_long_as_the_server(path: Path) -> None:
    salts = []
    for _ in range(2):
        door = Doorman(path, tokens)
        salts += [door.identify(f"Bearer {key}").cache_salt for key in (ACME, OTHER, ACME)]
        door.close()
    assert salts[0] == salts[2] and salts[3] == salts[5]
    assert len(set(salts)) == 4


def test_shared_prefixes_are_token_ids_for_every_tenant(path: Path) -> None:
    path.write_text(BOTH + 'shared_prefixes:\n  - text: "AB"\n  - token_ids: [2, 70, 9]\n')
    door = Doorman(path, tokens)
    for key in (ACME, OTHER):
        caller = door.identify(f"Bearer {key}")
        assert caller.shared_prefixes == ((65, 66), (2, 70, 9))
        assert caller.claim(request()).shared_tokens == 2
    door.close()


# A file that cannot be used at the start


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (BAD, "tenants[1].weight"),
        (BOTH + "shared_prefixes: [{token_ids: [300]}]", "shared_prefixes[0]: input_ids[0]: got"),
        (None, "cannot be read: No such file"),
    ],
)
def test_it_refuses_the_start(path: Path, content: str | None, says: str) -> None:
    path.unlink()
    if content is not None:
        path.write_text(content)
    before = set(threading.enumerate())
    with pytest.raises(ConfigurationError) as refused:
        Doorman(path, tokens)
    assert str(path) in str(refused.value) and says in str(refused.value)
    assert set(threading.enumerate()) == before


# A file that changes


def in_place(path: Path, content: str) -> None:
    path.write_text(content)


def renamed_over(path: Path, content: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(content)
    new.rename(path)


def same_date(path: Path, content: str) -> None:
    before = path.stat()
    path.write_text(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [in_place, renamed_over, same_date])
def test_a_change_is_seen_without_a_restart(
    door: Doorman, path: Path, change: Callable[[Path, str], None]
) -> None:
    old = door.identify(f"Bearer {OTHER}")
    running = old.claim(request())
    change(path, MORE)
    assert eventually(lambda: knows(door, THIRD))
    assert not knows(door, OTHER)
    assert knows(door, ACME)
    assert running.tenant.name == "other-one"  # what runs keeps what it had


def test_the_symbolic_links_of_a_mounted_secret_are_followed(tmp_path: Path) -> None:
    """Kubernetes puts a new directory beside the old and renames a link to it over `..data`."""

    def publish(version: str, content: str) -> None:
        (tmp_path / version).mkdir()
        (tmp_path / version / "tenants.yaml").write_text(content)
        (tmp_path / "..new").symlink_to(version)
        (tmp_path / "..new").rename(tmp_path / "..data")

    publish("..1", BOTH)
    link = tmp_path / "tenants.yaml"
    link.symlink_to("..data/tenants.yaml")
    door = Doorman(link, tokens)
    publish("..2", MORE)
    assert eventually(lambda: knows(door, THIRD) and not knows(door, OTHER))
    door.close()


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]


def test_a_bad_file_is_refused_once_and_the_old_one_stays_in_force(
    door: Doorman, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(BAD)
    assert eventually(lambda: bool(refusals(caplog)))
    time.sleep(0.02)  # ten looks
    [message] = refusals(caplog)
    assert "stay in force" in message and f"{path}:6: tenants[1].weight" in message
    assert knows(door, ACME) and knows(door, OTHER)
    path.write_text(MORE)
    assert eventually(lambda: knows(door, THIRD))


def test_a_file_that_is_gone_leaves_the_old_tenants(
    door: Doorman, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path.unlink()
    assert eventually(lambda: any("cannot be read" in text for text in refusals(caplog)))
    assert knows(door, ACME) and knows(door, OTHER)
    path.write_text(BOTH)
    assert eventually(lambda: any("2 tenants are in force" in text for text in caplog.messages))
    assert knows(door, OTHER)


def test_a_file_that_is_being_written_is_not_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 3600.0)
    door = Doorman(path, tokens)
    half = file_of(tenant("third", THIRD))
    path.write_text(half)
    door._look()
    assert not knows(door, THIRD)
    path.write_text(half + tenant("acme", ACME))
    door._look()
    assert not knows(door, THIRD)
    door._look()
    assert knows(door, THIRD) and knows(door, ACME)
    door.close()


def test_a_bug_in_reading_does_not_end_the_thread(
    door: Doorman, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(module.Roster, "parse", lambda *_: {}["odd"])
        path.write_text(MORE)
        assert eventually(lambda: bool(refusals(caplog)))
    path.write_text(MORE + "# again\n")
    assert eventually(lambda: knows(door, THIRD))


def test_close_ends_the_thread(path: Path) -> None:
    before = set(threading.enumerate())
    door = Doorman(path, tokens)
    assert set(threading.enumerate()) > before
    door.close()
    assert set(threading.enumerate()) == before
