"""One pod of `cpu-demo`, from an empty store to its end, and the pods of `helm test`.

Knows what the chart promises of a pod; knows nothing of load.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from dgemma.client import Client, Update
from tests.accept.chaos_service import within
from tests.accept.main_job import Line
from tests.helm.cluster.pod import Pod
from tests.helm.cluster.release import Release, run_test
from tests.helm.cluster.service import Service

PAIR = "cpu-demo single-tenant"


def one_pod(engine: Path, checkpoint: Path, rounds: int) -> Iterator[Line]:
    """Lines about its start, its probes, `helm test` and its end."""
    release, pods = Release.of(PAIR, {}), []
    with tempfile.TemporaryDirectory() as scratch, Service(lambda: pods) as service:
        root = Path(scratch)
        objects = release.objects(service.address)
        pod = Pod("rel-1", release.deployment["spec"]["template"], root, objects)
        pods.append(pod)
        try:
            yield from _started(pod)
            for test in release.test_pods:
                code, said = run_test(test, root / "tests", objects)
                name = test["metadata"]["name"].rpartition("-")[2]
                last = said.strip().rpartition("\n")[2]
                yield Line(f"helm test: {name}", last, "exit code 0", code == 0)
            yield from _probed(pod)
            yield from _drained(pod, service)
        finally:
            pod.close()


def _started(pod: Pod) -> Iterator[Line]:
    began = time.monotonic()
    pod.start()
    took = pod.wait_ready()
    built = pod.seen.started[0] - began
    exits = pod.seen.init_exits
    yield Line("init container: engine", f"exit {exits}, {built:.0f} s", "exit [0]", exits == [0])
    budget = pod.spec["containers"][0]["startupProbe"]
    allowed = budget["periodSeconds"] * budget["failureThreshold"]
    yield Line("start to ready", f"{took:.1f} s", f"below {allowed} s", took < allowed)
    yield Line("restarts", str(len(pod.seen.exits)), "0", not pod.seen.exits)


def _probed(pod: Pod) -> Iterator[Line]:
    """Its Triton is killed: the pod leaves the endpoints, comes back, and is not restarted."""
    children = Path(f"/proc/{pod.pid}/task/{pod.pid}/children").read_text().split()
    [triton] = [
        int(child)
        for child in children
        if b"tritonserver" in Path(f"/proc/{child}/cmdline").read_bytes().partition(b"\0")[0]
    ]
    killed = time.monotonic()
    os.kill(triton, signal.SIGKILL)
    left = within(10, lambda: not pod.ready)
    away = pod.seen.ready[-1][0] - killed
    back = within(60, lambda: pod.ready)
    after = pod.seen.ready[-1][0] - killed
    yield Line("Triton killed: not ready after", f"{away:.1f} s", "5 s", left and away < 5)
    yield Line("  ready again after", f"{after:.1f} s", "60 s", back and after < 60)
    calm = not pod.seen.exits and not pod.seen.liveness_failures
    yield Line("  restarted by the liveness probe", str(not calm), "False", calm)


def _drained(pod: Pod, service: Service) -> Iterator[Line]:
    updates: list[Update] = []
    begun = threading.Event()

    def listen() -> None:
        with Client(f"{service.address}:8001") as client:
            for update in client.stream(
                messages=[{"role": "user", "content": "count from 1"}],
                stream="draft",
                max_new_tokens=768,
                ignore_eos=True,
            ):
                updates.append(update)
                begun.set()

    listener = threading.Thread(target=listen)
    listener.start()
    begun.wait(30)
    began = time.monotonic()
    pod.delete()
    code = pod.wait_gone()
    took = time.monotonic() - began
    listener.join(60)
    reason = updates[-1].finish_reason if updates else None
    grace = pod.spec["terminationGracePeriodSeconds"]
    yield Line("deleted: what ran ended with", str(reason), "length", reason == "length")
    yield Line("  preStop, exit codes", f"{pod.seen.pre_stop}, {code}", "0, 0", code == 0)
    in_time = took < grace and not pod.seen.killed
    yield Line("  gone after", f"{took:.1f} s", f"below {grace} s, no SIGKILL", in_time)
