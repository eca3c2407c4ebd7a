"""A Deployment: so many pods of a template, and how one template takes the place of another.

Knows RollingUpdate and Recreate; knows nothing of what a pod does.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.helm.cluster.machine import Objects
from tests.helm.cluster.pod import PATIENCE_S, Pod

_LOOK_S = 0.02


class Deployment:
    """Its pods are there within the block."""

    def __init__(self, manifest: Mapping[str, Any], root: Path, objects: Objects) -> None:
        self.manifest, self._root, self._objects = manifest, root, objects
        self.pods: list[Pod] = []
        self.past: list[Pod] = []
        self._numbers = itertools.count(1)

    def __enter__(self) -> Deployment:
        for _ in range(self.manifest["spec"].get("replicas", 1)):
            self._add()
        return self

    def __exit__(self, *_: object) -> None:
        for pod in (*self.pods, *self.past):
            pod.delete()
        for pod in (*self.pods, *self.past):
            pod.close()

    def wait_ready(self) -> None:
        for pod in self.pods:
            pod.wait_ready()

    def roll(self, manifest: Mapping[str, Any]) -> None:
        """Until every pod is of the new manifest and ready, and every old one gone."""
        self.manifest = manifest
        old, strategy = list(self.pods), manifest["spec"]["strategy"]
        if strategy["type"] == "Recreate":
            for pod in old:
                self._remove(pod)
            self._wait_gone(old)
            for _ in old:
                self._add()
            self.wait_ready()
            return
        surge = strategy["rollingUpdate"]["maxSurge"]
        for pod in old:
            if surge:
                self._add().wait_ready()
                self._remove(pod)
            else:
                self._remove(pod)
                self._wait_gone([pod])
                self._add().wait_ready()
        self._wait_gone(old)

    def _add(self) -> Pod:
        name = f"{self.manifest['metadata']['name']}-{next(self._numbers)}"
        pod = Pod(name, self.manifest["spec"]["template"], self._root, self._objects)
        self.pods.append(pod.start())
        return pod

    def _remove(self, pod: Pod) -> None:
        self.pods.remove(pod)
        self.past.append(pod)
        pod.delete()

    def _wait_gone(self, pods: list[Pod]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not all(pod.gone.is_set() for pod in pods):
            assert time.monotonic() < deadline
            time.sleep(_LOOK_S)
