from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
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


def mutual(pair: Tls, authorities: bytes) -> Tls:
    path = pair.certificate.with_name("authorities.pem")
    path.write_bytes(authorities)
    return Tls(pair.certificate, pair.key, path)


def test_a_certificate_and_its_key_are_taken_and_named_to_triton(pair: Tls) -> None:
    pair.check()
    assert pair.options == (
        "--grpc-use-ssl=true",
        f"--grpc-server-cert={pair.certificate}",
        f"--grpc-server-key={pair.key}",
    )


def test_authorities_of_clients_are_named_to_triton(pair: Tls) -> None:
    both = mutual(pair, tls.CERTIFICATE)
    both.check()
    assert both.options == (
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={pair.certificate}",
        f"--grpc-server-key={pair.key}",
        f"--grpc-root-cert={both.authorities}",
    )


@pytest.mark.parametrize("content", [tls.UNRELATED, b"no PEM at all", b""])
def test_a_certificate_of_another_key_is_refused(pair: Tls, content: bytes) -> None:
    pair.certificate.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"server\.pem, .*not a certificate and its"):
        pair.check()


@pytest.mark.parametrize("content", [b"no PEM at all", b""])
def test_authorities_that_are_none_are_refused(pair: Tls, content: bytes) -> None:
    with pytest.raises(ConfigurationError, match=r"authorities\.pem: no certificates in PEM form"):
        mutual(pair, content).check()


def test_a_certificate_that_the_authorities_do_not_vouch_for_is_refused(pair: Tls) -> None:
    with pytest.raises(ConfigurationError, match=r"server\.pem: .*name an authority that vouches"):
        mutual(pair, tls.UNRELATED).check()


@pytest.mark.parametrize(
    ("field", "what"), [("key", "private key"), ("authorities", "authorities' file")]
)
def test_a_file_that_is_not_there_is_named(pair: Tls, field: str, what: str) -> None:
    both = mutual(pair, tls.CERTIFICATE)
    getattr(both, field).unlink()
    with pytest.raises(ConfigurationError, match=f"the TLS {what} cannot be read: No such file"):
        both.check()


def test_the_name_is_one_of_the_certificate_s(pair: Tls) -> None:
    assert pair.name == "localhost"
    assert mutual(pair, tls.CERTIFICATE).name == "localhost"


def test_a_channel_reaches_the_server_at_an_address_that_the_certificate_does_not_name(
    pair: Tls,
) -> None:
    with FakeTriton(lambda *_: iter(()), tls=(tls.KEY, tls.CERTIFICATE)) as fake:
        address = f"127.0.0.1:{fake.url.rpartition(':')[2]}"
        options: Any = pair.channel_options
        with grpc.secure_channel(address, pair.credentials(), options) as channel:
            grpc.channel_ready_future(channel).result(timeout=20)
