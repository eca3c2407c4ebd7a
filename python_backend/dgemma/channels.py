"""gRPC channels to one address, the newest of which is used.

Knows when a connection is given up: behind a balancer a new one may lead to another server. Knows
nothing of requests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from dgemma.kserve import CHANNEL_OPTIONS, STREAM_INFER

# Else a new channel would take over the connection of the one that it replaces.
_OPTIONS = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))


class Channel:
    """One connection, and how many requests are on it."""

    def __init__(self, url: str, credentials: grpc.ChannelCredentials | None) -> None:
        self._channel = (
            grpc.secure_channel(url, credentials, options=_OPTIONS)
            if credentials
            else grpc.insecure_channel(url, options=_OPTIONS)
        )
        # Declared as a stream in both directions; one request ends its half, which is on the wire
        # what a unary request is, and needs no thread that feeds requests.
        self.infer: Callable[..., Any] = self._channel.unary_stream(
            STREAM_INFER,
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )
        self.users, self.retired = 0, False

    def close(self) -> None:
        self._channel.close()


class Channels:
    """For any number of threads. Nothing is connected before the first request."""

    def __init__(self, url: str, credentials: grpc.ChannelCredentials | None) -> None:
        self._url, self._credentials = url, credentials
        self._lock = threading.Lock()
        self._current = Channel(url, credentials)

    @contextmanager
    def one(self) -> Iterator[Channel]:
        """The newest, which stays open within the block."""
        with self._lock:
            channel = self._current
            channel.users += 1
        try:
            yield channel
        finally:
            with self._lock:
                channel.users -= 1
                over = channel.retired and not channel.users
            if over:
                channel.close()

    def renew(self, failed: Channel) -> None:
        """Use another connection from now on; requests that are on this one go on."""
        with self._lock:
            if self._current is failed:
                failed.retired = True
                self._current = Channel(self._url, self._credentials)

    def close(self) -> None:
        """Requests still running on the newest are cancelled."""
        self._current.close()
