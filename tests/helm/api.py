"""A Kubernetes API as Helm sees one: it stores what is applied, and refuses what cannot be changed.

Knows paths, verbs and which fields are immutable; nothing runs, and no controller acts.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.helm.sdk import Object, documents

_KINDS = {
    "v1": ("ConfigMap", "Secret", "Service", "PersistentVolumeClaim", "Pod"),
    "apps/v1": ("Deployment",),
    "autoscaling/v2": ("HorizontalPodAutoscaler",),
    "batch/v1": ("Job",),
    "networking.k8s.io/v1": ("Ingress", "NetworkPolicy"),
    "policy/v1": ("PodDisruptionBudget",),
    "scheduling.k8s.io/v1": ("PriorityClass",),
    "gateway.networking.k8s.io/v1": ("HTTPRoute", "GRPCRoute"),
    "monitoring.coreos.com/v1": ("ServiceMonitor", "PrometheusRule"),
}
_CLUSTER_WIDE = ("PriorityClass",)
# Fields that the real API refuses to change, as paths from the object.
_IMMUTABLE: dict[str, tuple[tuple[str, ...], ...]] = {
    "Deployment": (("spec", "selector"),),
    "Job": (("spec", "template"), ("spec", "selector"), ("spec", "completionMode")),
    "Service": (("spec", "clusterIP"),),
    "PriorityClass": (("value",), ("preemptionPolicy",)),
    "PersistentVolumeClaim": (
        ("spec", "accessModes"),
        ("spec", "storageClassName"),
        ("spec", "volumeMode"),
        ("spec", "selector"),
    ),
}


def plural(kind: str) -> str:
    name = kind.lower()
    if name.endswith("y"):
        return name[:-1] + "ies"
    return name + ("es" if name.endswith("s") else "s")


def root_of(version: str) -> str:
    return "/api/v1" if version == "v1" else f"/apis/{version}"


def at(found: Object, path: tuple[str, ...]) -> Any:
    value: Any = found
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def size(claim: Object) -> int:
    """GiB."""
    return int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi"))


def refusal(before: Object, after: Object) -> str | None:
    """Why an object cannot be changed like this."""
    kind = before["kind"]
    for path in _IMMUTABLE.get(kind, ()):
        if at(before, path) != at(after, path):
            return f"{kind} {before['metadata']['name']}: {'.'.join(path)}: field is immutable"
    if kind == "PersistentVolumeClaim" and size(after) < size(before):
        return "spec.resources.requests.storage: field can not be less than previous value"
    return None


class Api:
    """What was applied, `objects` by their paths."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.url = ""

    def names(self) -> set[tuple[str, str]]:
        return {(each["kind"], each["metadata"]["name"]) for each in self.objects.values()}

    def answer(self, verb: str, path: str, body: bytes) -> tuple[int, Object]:
        if verb == "GET":
            found = self._about(path) or self.objects.get(path)
            return (200, found) if found else _failure(404, "NotFound", path)
        if verb == "DELETE":
            found = self.objects.pop(path, None)
            return (200, found) if found else _failure(404, "NotFound", path)
        [given] = documents(body.decode())
        if verb == "POST":
            path = f"{path}/{given['metadata']['name']}"
        before = self.objects.get(path)
        why = refusal(before, given) if before else None
        if why:
            return _failure(422, "Invalid", why)
        self.objects[path] = given
        return 200, given

    def _about(self, path: str) -> Object | None:
        """What a client asks before it begins."""
        if path == "/version":
            return {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = [_group(version) for version in _KINDS if version != "v1"]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        if path == "/openapi/v3":
            roots = [root_of(version) for version in _KINDS]
            return {"paths": {r[1:]: {"serverRelativeURL": f"/openapi/v3{r}"} for r in roots}}
        for version, kinds in _KINDS.items():
            if path == root_of(version):
                return _resources(version, kinds)
            if path == f"/openapi/v3{root_of(version)}":
                return _openapi(version, kinds)
        return None


def _failure(code: int, reason: str, message: str) -> tuple[int, Object]:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return code, {**status, "code": code, "reason": reason, "message": message}


def _group(version: str) -> Object:
    group, _, short = version.partition("/")
    known = {"groupVersion": version, "version": short}
    return {"name": group, "versions": [known], "preferredVersion": known}


def _resources(version: str, kinds: tuple[str, ...]) -> Object:
    verbs = ["create", "delete", "get", "list", "patch", "update"]
    found = [
        {
            "name": plural(kind),
            "kind": kind,
            "namespaced": kind not in _CLUSTER_WIDE,
            "verbs": verbs,
        }
        for kind in kinds
    ]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": found}


def _openapi(version: str, kinds: tuple[str, ...]) -> Object:
    """Enough to tell a client that fields are checked here: tests do that with the real schemas."""
    group, _, short = version.rpartition("/")
    paths = {}
    for kind in kinds:
        scope = "" if kind in _CLUSTER_WIDE else "/namespaces/{namespace}"
        paths[f"{root_of(version)}{scope}/{plural(kind)}/{{name}}"] = {
            "patch": {
                "parameters": [{"name": "fieldValidation", "in": "query"}],
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-group-version-kind": {
                    "group": group,
                    "version": short,
                    "kind": kind,
                },
            }
        }
    return {"openapi": "3.0.0", "info": {"title": "", "version": short}, "paths": paths}


@contextmanager
def serving() -> Iterator[Api]:
    """An API without objects, on a free port of the loopback interface."""
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # an answer in one piece
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, found = api.answer(self.command, self.path.partition("?")[0], body)
            content = json.dumps(found).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
