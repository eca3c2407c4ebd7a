from __future__ import annotations

import socket
from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError
from dgemma.triton_server.tls import Tls
from tests.dgemma import tls
from tests.dgemma.fake_triton import FakeTriton


@pytest.fixture
def pair(tmp_path: Path) -> Tls:
    made = Tls(tmp_path / "server.pem", tmp_path / "server.key")
    made.certificate.write_bytes(tls.CERTIFICATE)
    made.key.write_bytes(tls.KEY)
    return made


def test_a_certificate_and_its_key_are_taken_and_named_to_triton(pair: Tls) -> None:
    pair.check()
    assert pair.options == (
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={pair.certificate}",
        f"--grpc-server-key={pair.key}",
    )


@pytest.mark.parametrize("content", [tls.UNRELATED, b"no PEM at all", b""])
def test_a_certificate_of_another_key_is_refused(pair: Tls, content: bytes) -> None:
    pair.certificate.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"server\.pem, .*not a certificate and its"):
        pair.check()


def test_a_file_that_is_not_there_is_named(pair: Tls) -> None:
    pair.key.unlink()
    with pytest.raises(ConfigurationError, match=r"server\.key: the TLS private key cannot be"):
        pair.check()


def test_the_name_comes_from_the_certificate_that_is_shown(pair: Tls) -> None:
    with FakeTriton(lambda *_: iter(()), tls=(tls.KEY, tls.CERTIFICATE)) as fake:
        port = int(fake.url.rpartition(":")[2])
        assert pair.name("127.0.0.1", port) == "localhost"
        pair.certificate.write_bytes(tls.UNRELATED)
        with pytest.raises(ConfigurationError, match=r"server\.pem: "):
            pair.name("127.0.0.1", port)


def test_nobody_who_listens_is_an_operating_systems_error(pair: Tls) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="refused"):
            pair.name("127.0.0.1", taken.getsockname()[1])
