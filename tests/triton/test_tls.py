"""`dgemma serve` with a certificate, and `dgemma generate` with its authority."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest

from dgemma.client import Client, Unavailable
from tests.dgemma import tls
from tests.triton.servers import PATIENCE_S, serving

ANSWER: dict[str, Any] = {"seed": 1, "max_new_tokens": 8, "max_denoising_steps": 2}


@pytest.mark.parametrize("mode", ["TLS", "mtls"])
def test_nothing_is_spoken_without_tls(
    demo_environment: dict[str, str], model_repository: Path, tmp_path: Path, mode: str
) -> None:
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    certificate.write_bytes(tls.CERTIFICATE)
    key.write_bytes(tls.KEY)
    (tmp_path / "other.pem").write_bytes(tls.UNRELATED)
    env = {
        **demo_environment,
        "DGEMMA_HTTP": "1",
        "NIM_SSL_MODE": mode,
        "NIM_SSL_CERTS_PATH": str(certificate),
        "NIM_SSL_KEY_PATH": str(key),
        "NIM_SSL_CA_CERTS_PATH": str(certificate),
    }
    pair = (tls.KEY, tls.CERTIFICATE) if mode == "mtls" else ()
    known = grpc.ssl_channel_credentials(tls.CERTIFICATE, *pair)
    trust = ssl.create_default_context(cafile=str(certificate))
    if mode == "mtls":
        trust.load_cert_chain(certificate, key)
    with serving(model_repository, env, tmp_path / "log") as serve:
        port = serve.wait_until_ready().rpartition(":")[2]
        assert ", TLS, " in serve.output
        with Client(f"localhost:{port}", credentials=known) as client:
            usage = client.generate("x", timeout_s=PATIENCE_S, **ANSWER).usage
            assert usage["completion_tokens"] == 8
        strangers = [None, tmp_path / "other.pem", *([certificate] if mode == "mtls" else [])]
        for authority in strangers:
            with (
                Client(f"localhost:{port}", tls_ca=authority) as client,
                pytest.raises(Unavailable),
            ):
                client.generate("x", timeout_s=PATIENCE_S, **ANSWER)
        url = (
            serve.output.partition(", HTTP ")[2].partition(",")[0].replace("127.0.0.1", "localhost")
        )
        with httpx2.Client(base_url=url, verify=trust, timeout=PATIENCE_S) as http:
            assert http.get("/v1/health/ready").json()["status"] == "ready"
            answer = http.post("/v1/completions", json={"prompt": "x", "max_tokens": 8}).json()
            assert answer["usage"]["completion_tokens"] <= 8
        with pytest.raises(httpx2.TransportError):
            httpx2.get(url.replace("https", "http") + "/v1/health/ready")
