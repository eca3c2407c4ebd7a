"""`dgemma serve` with a certificate, and `dgemma generate` with its authority."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dgemma.client import Client, Unavailable
from tests.dgemma import tls
from tests.triton.servers import PATIENCE_S, serving

ANSWER: dict[str, Any] = {"seed": 1, "max_new_tokens": 8, "max_denoising_steps": 2}


def test_grpc_is_spoken_over_tls_alone(
    demo_environment: dict[str, str], model_repository: Path, tmp_path: Path
) -> None:
    certificate, key = tmp_path / "server.pem", tmp_path / "server.key"
    certificate.write_bytes(tls.CERTIFICATE)
    key.write_bytes(tls.KEY)
    (tmp_path / "other.pem").write_bytes(tls.UNRELATED)
    env = {
        **demo_environment,
        "NIM_SSL_MODE": "TLS",
        "NIM_SSL_CERTS_PATH": str(certificate),
        "NIM_SSL_KEY_PATH": str(key),
    }
    with serving(model_repository, env, tmp_path / "log") as serve:
        port = serve.wait_until_ready().rpartition(":")[2]
        assert ", TLS, " in serve.output
        with Client(f"localhost:{port}", tls_ca=certificate) as client:
            usage = client.generate("x", timeout_s=PATIENCE_S, **ANSWER).usage
            assert usage["completion_tokens"] == 8
        for authority in (None, tmp_path / "other.pem"):
            with (
                Client(f"localhost:{port}", tls_ca=authority) as client,
                pytest.raises(Unavailable),
            ):
                client.generate("x", timeout_s=PATIENCE_S, **ANSWER)
