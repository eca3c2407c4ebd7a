"""A probe as the kubelet asks it: when, how, and when it has failed too often.

Knows what a manifest declares of one; what follows from an answer is the pod's business.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Mapping
from typing import Any


class Probe:
    """One probe of a container; the first time it is asked at once."""

    def __init__(self, container: Mapping[str, Any], name: str, address: str) -> None:
        """`name` as the container has it, such as readinessProbe."""
        declared = container.get(name)
        self._declared, self._address = declared or {}, address
        self._ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        self.absent = declared is None
        self._next = time.monotonic() + self._declared.get("initialDelaySeconds", 0)
        self.failures = self._in_a_row = 0

    @property
    def exhausted(self) -> bool:
        return self._in_a_row >= self._declared.get("failureThreshold", 3)

    def due(self) -> bool:
        return not self.absent and time.monotonic() >= self._next

    def ask(self) -> bool:
        self._next = time.monotonic() + self._declared.get("periodSeconds", 10)
        well = self._answered()
        self._in_a_row = 0 if well else self._in_a_row + 1
        self.failures += not well
        return well

    def _answered(self) -> bool:
        timeout = self._declared.get("timeoutSeconds", 1)
        try:
            if (socket_of := self._declared.get("tcpSocket")) is not None:
                port = self._port(socket_of["port"])
                socket.create_connection((self._address, port), timeout).close()
                return True
            asked = self._declared["httpGet"]
            connection = http.client.HTTPConnection(
                self._address, self._port(asked["port"]), timeout=timeout
            )
            try:
                connection.request("GET", asked["path"], headers={"User-Agent": "kube-probe/1.34"})
                return 200 <= connection.getresponse().status < 400
            finally:
                connection.close()
        except (OSError, http.client.HTTPException):
            return False

    def _port(self, port: int | str) -> int:
        return self._ports[port] if isinstance(port, str) else port
