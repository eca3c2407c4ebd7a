"""How the tests reach the service: addresses, certificates and API key are in the environment.

Knows HTTP and gRPC credentials; knows nothing of what a right answer is.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import sys
from typing import Any, NoReturn
from urllib.parse import urlsplit

TIMEOUT_S = 120.0
HTTP, GRPC = os.environ.get("TEST_HTTP", ""), os.environ.get("TEST_GRPC", "")
API_KEY = os.environ.get("TEST_API_KEY") or None
AUTHORITIES = os.environ.get("TEST_CA") or None
CERTIFICATE, KEY = os.environ.get("TEST_CERT") or None, os.environ.get("TEST_KEY") or None


def failed(why: str) -> NoReturn:
    """End this test."""
    sys.exit(f"failed: {why}")


def ask(path: str, body: Any = None) -> http.client.HTTPResponse:
    """The answer to a GET, or to a POST of `body` as JSON; it is still to be read."""
    method, content = ("GET", None) if body is None else ("POST", json.dumps(body))
    headers = {"Content-Type": "application/json"}
    if API_KEY:
        headers["Authorization"] = f"Bearer {API_KEY}"
    connection = _connection()
    try:
        connection.request(method, path, content, headers)
        return connection.getresponse()
    except OSError as error:
        failed(f"{HTTP}{path}: {error}")


def text(path: str, body: Any = None) -> str:
    """The body of an answer that has to be 200."""
    answer = ask(path, body)
    content = answer.read().decode(errors="replace")
    if answer.status != 200:
        failed(f"{HTTP}{path} answered {answer.status}: {content[:500]}")
    return content


def _connection() -> http.client.HTTPConnection:
    url = urlsplit(HTTP)
    if url.scheme != "https":
        return http.client.HTTPConnection(url.hostname or "", url.port, timeout=TIMEOUT_S)
    trust = ssl.create_default_context(cafile=AUTHORITIES)
    if CERTIFICATE:
        trust.load_cert_chain(CERTIFICATE, KEY)
    return http.client.HTTPSConnection(
        url.hostname or "", url.port, timeout=TIMEOUT_S, context=trust
    )
