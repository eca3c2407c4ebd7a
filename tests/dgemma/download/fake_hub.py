"""The part of Hugging Face's HTTP interface that a download needs, for one repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REPOSITORY = "org/tiny"
COMMIT, BRANCH = "0123456789abcdef" * 2 + "01234567", "main"


@dataclass
class FakeHub:
    """`files` of one commit; what a test changes in the others decides how they are served."""

    files: dict[str, bytes]
    url: str = ""
    large: tuple[str, ...] = ("model.safetensors",)  # with a SHA-256, as of LFS
    damaged: dict[str, bytes] = field(default_factory=dict)  # sent in the place of a file
    stalled: str | None = None  # half of it is sent, and the rest when `go_on` is set
    refusal: tuple[int, str] | None = None  # status and error code of every answer
    go_on: threading.Event = field(default_factory=threading.Event)
    is_stalled: threading.Event = field(default_factory=threading.Event)
    sent: list[str] = field(default_factory=list)  # files, in the order of their requests

    def tree(self) -> list[dict[str, Any]]:
        return [self._entry(name, content) for name, content in self.files.items()]

    def _entry(self, name: str, content: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        entry = {"type": "file", "path": name, "size": len(content), "oid": blob}
        if name in self.large:
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return entry


@contextmanager
def serving(checkpoint: Path) -> Iterator[FakeHub]:
    hub = FakeHub({path.name: path.read_bytes() for path in sorted(checkpoint.iterdir())})
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, *arguments: object) -> None:
            """Tests look at `sent`."""

        def _answer(self, with_body: bool) -> None:
            path = urlsplit(self.path).path
            if hub.refusal is not None:
                self._refuse(*hub.refusal)
            elif path.startswith(f"/api/models/{REPOSITORY}/tree/"):
                self._send(json.dumps(hub.tree()).encode())
            elif path in (f"/api/models/{REPOSITORY}", f"/api/models/{REPOSITORY}/revision/v1"):
                info = {"id": REPOSITORY, "sha": COMMIT, "siblings": [], "tags": []}
                self._send(json.dumps(info).encode())
            elif path.startswith(f"/api/models/{REPOSITORY}/revision/"):
                self._refuse(404, "RevisionNotFound")
            elif path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/"):
                self._file(path.rpartition("/")[2], with_body)
            else:
                self._refuse(404, "RepoNotFound")

        def _file(self, name: str, with_body: bool) -> None:
            content = hub.damaged.get(name, hub.files[name])
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            if not with_body:
                self._send(content, headers, with_body=False)
                return
            hub.sent.append(name)
            if name != hub.stalled:
                self._send(content, headers)
                return
            self._head(len(content), headers)
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            hub.is_stalled.set()
            hub.go_on.wait()
            self.close_connection = True

        def _refuse(self, status: int, code: str) -> None:
            self._head(0, {"X-Error-Code": code}, status)

        def _send(
            self, body: bytes, headers: dict[str, str] | None = None, with_body: bool = True
        ) -> None:
            self._head(len(body), headers or {})
            if with_body:
                self.wfile.write(body)

        def _head(self, length: int, headers: dict[str, str], status: int = 200) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(length)}.items():
                self.send_header(name, value)
            self.end_headers()

    return Handler
