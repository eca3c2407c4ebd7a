"""One generation over gRPC, with the client that the image has."""

from __future__ import annotations

from pathlib import Path

import grpc

import asking
from dgemma.client import Client, ClientError


def credentials() -> grpc.ChannelCredentials | None:
    """None without TLS."""
    if asking.AUTHORITIES is None:
        return None
    trusted = Path(asking.AUTHORITIES).read_bytes()
    if asking.CERTIFICATE is None or asking.KEY is None:
        return grpc.ssl_channel_credentials(trusted)
    key, certificate = Path(asking.KEY), Path(asking.CERTIFICATE)
    return grpc.ssl_channel_credentials(trusted, key.read_bytes(), certificate.read_bytes())


messages = [{"role": "user", "content": "count from 42"}]
try:
    with Client(asking.GRPC, api_key=asking.API_KEY, credentials=credentials()) as client:
        answer = client.generate(
            messages=messages, max_new_tokens=64, seed=7, timeout_s=asking.TIMEOUT_S
        )
except ClientError as error:
    asking.failed(f"{asking.GRPC}: {error}")
if not answer.text or not answer.usage["completion_tokens"]:
    asking.failed(f"an empty answer: {answer}")
print(f"{answer.usage['completion_tokens']} tokens, {answer.usage['passes']} passes")
