"""What a pod of the chart finds on this machine in the place of its image, volumes and network.

Knows where the image's files are here and how paths of a container become paths of this machine;
starts nothing.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
BIN = Path(sys.executable).parent
# Files of the image, by their path in it.
IMAGE = {
    "/opt/nim/demo": REPOSITORY / "build" / "demo",
    "/opt/nim/model_repository": REPOSITORY / "model_repository",
}
# As the Dockerfile sets it; the model repository's default is its place in the image.
IMAGE_ENV = {
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "LOGNAME": "dgemma",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "DGEMMA_MODEL_REPOSITORY": str(IMAGE["/opt/nim/model_repository"]),
}
_ADDRESSES = itertools.count(2)
_VARIABLE = re.compile(r"\$\((\w+)\)")


def new_address(ports: tuple[int, ...] = (8000, 8001, 8002)) -> str:
    """An address of the loopback of a pod's own, on which its ports are free."""
    base = os.getpid() % 200 + 20
    for number in _ADDRESSES:
        address = f"127.{base}.{number // 250 % 250}.{number % 250 + 1}"
        if all(_is_free(address, port) for port in ports):
            return address
    raise AssertionError("the count never ends")


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


@dataclass(frozen=True)
class Objects:
    """ConfigMaps and Secrets of a release and beside it, by name; and addresses by host name."""

    config_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)
    claims: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Mounted:
    """The directories that a container sees, by their path in it."""

    places: Mapping[str, Path]

    @classmethod
    def of(
        cls, pod: Mapping[str, Any], container: Mapping[str, Any], root: Path, objects: Objects
    ) -> Mounted:
        """Volumes that every container of the pod shares are made below `root`, once."""
        volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
        places = dict(IMAGE)
        for mount in container.get("volumeMounts", ()):
            assert "subPath" not in mount, "a mounted Secret would never be updated"
            places[mount["mountPath"]] = _directory(volumes[mount["name"]], root, objects)
        return cls(places)

    def here(self, text: str) -> str:
        """`text` with each path of the container as it is on this machine."""
        known = sorted(self.places, key=len, reverse=True)
        pattern = "|".join(re.escape(place) for place in known)
        return re.sub(rf"({pattern})(?![\w.-])", lambda match: str(self.places[match[1]]), text)


def environment(
    container: Mapping[str, Any], mounted: Mounted, objects: Objects, fields: Mapping[str, str]
) -> dict[str, str]:
    """The image's variables and the container's, paths and host names as they are here."""
    declared: dict[str, str] = {}
    for entry in container.get("env", ()):
        value = _value(entry, objects, fields)
        declared[entry["name"]] = _VARIABLE.sub(lambda match: declared[match[1]], value)
    temporary = str(mounted.places.get("/tmp", ""))
    given = {**IMAGE_ENV, "HOME": temporary, "TMPDIR": temporary}
    given["XDG_CACHE_HOME"] = mounted.here("/opt/nim/.cache")
    for name, value in declared.items():
        for host, address in objects.hosts.items():
            value = value.replace(host, address)
        given[name] = mounted.here(value)
    # A user's own limits of threads hold for containers of his machine as well.
    return given | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def _value(entry: Mapping[str, Any], objects: Objects, fields: Mapping[str, str]) -> str:
    if "value" in entry:
        return str(entry["value"])
    source = entry["valueFrom"]
    if (reference := source.get("secretKeyRef")) is not None:
        return objects.secrets[reference["name"]][reference["key"]]
    if (reference := source.get("configMapKeyRef")) is not None:
        return objects.config_maps[reference["name"]][reference["key"]]
    return fields[source["fieldRef"]["fieldPath"]]


def _directory(volume: Mapping[str, Any], root: Path, objects: Objects) -> Path:
    place = root / "volumes" / volume["name"]
    if "hostPath" in volume:
        return Path(volume["hostPath"]["path"])
    if "persistentVolumeClaim" in volume:
        return objects.claims[volume["persistentVolumeClaim"]["claimName"]]
    place.mkdir(parents=True, exist_ok=True)
    if "emptyDir" in volume:
        return place
    if "secret" in volume:
        content = objects.secrets[volume["secret"]["secretName"]]
        items = volume["secret"].get("items")
    else:
        content = objects.config_maps[volume["configMap"]["name"]]
        items = volume["configMap"].get("items")
    names = {i["key"]: i["path"] for i in items} if items else {key: key for key in content}
    for key, path in names.items():
        (place / path).write_text(content[key])
    return place
