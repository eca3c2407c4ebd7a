"""`dgemma-build ensure` against a local model store: once, twice, two at once, and killed half-way.

Knows the command as the chart's init container and Job call it, and what is in a store afterwards;
knows nothing of pods.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dgemma.bench.report import read_report
from dgemma.profiles.inventory import Inventory
from dgemma.profiles.layout import REPORT
from tests.accept.main_job import Line
from tests.triton.servers import without_settings

PATIENCE_S = 900.0
PROMISED = "0, 0"


def builds(engine: Path, checkpoint: Path, rounds: int) -> Iterator[Line]:
    """Lines about each engine; a Spark's is left out where its compiler is not installed."""
    for target, precision in (("cpu", "fp32"), ("cpu", "fp8"), ("sm121", "nvfp4")):
        what = f"{target} {precision}"
        if target != "cpu" and importlib.util.find_spec("tensorrt_rtx") is None:
            yield Line(what, "skipped: tensorrt-rtx is not installed", "")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            yield from _target(what, Path(scratch), checkpoint, target, precision)


def _target(
    what: str, scratch: Path, checkpoint: Path, target: str, precision: str
) -> Iterator[Line]:
    store = scratch / "store"

    @contextmanager
    def begun(log: str) -> Iterator[Run]:
        run = Run(store, checkpoint, target, precision, scratch / log)
        try:
            yield run
        finally:
            run.end()

    with begun("killed") as killed:
        half_way = killed.wait_until(lambda: list(store.glob("engines/*.partial")))
        killed.process.kill()
        killed.process.wait()
    left = Inventory.of(store)
    yield Line(
        f"{what}: killed half-way",
        f"{len(left.engines)} engines, {len(left.weights)} weights",
        "no engine",
        half_way and not left.engines,
    )
    with begun("first") as first, begun("second") as second:
        codes = [first.wait(), second.wait()]
    said = sorted((first.output, second.output), key=lambda output: "nothing to do" in output)
    ready = re.search(r"is ready: (.*)", said[0])
    yield Line("  two at once: exit codes", ", ".join(map(str, codes)), PROMISED, codes == [0, 0])
    yield Line(
        "  … one builds on what was there",
        ready[1] if ready else said[0][-200:],
        "engine, verification",
        ready is not None and ready[1].startswith("engine, verification"),
    )
    waited = "waiting for process" in said[1] and "nothing to do" in said[1]
    yield Line("  … the other waits and finds it", str(waited), "True", waited)
    steps = len(re.findall(r"\d+ %, \d+ s to go", said[0]))
    yield Line("  … lines with the time to go", str(steps), "5 or more", steps >= 5)
    before = _stamps(store)
    with begun("again") as again:
        code = again.wait()
    unchanged = code == 0 and before == _stamps(store)
    yield Line(
        "  again: files that have changed",
        "0" if unchanged else again.output[-200:],
        "0",
        unchanged and "nothing to do" in again.output,
    )
    [found] = Inventory.of(store).engines
    report = read_report(found.directory / REPORT)
    yield Line(
        "  verified",
        f"passed {report.passed}, executed {report.executed}",
        "passed" + (", executed" if target == "cpu" else "; there is no such GPU here"),
        report.passed and report.executed == (target == "cpu"),
    )
    rest = [path.name for path in store.rglob("*") if path.suffix in (".lock", ".partial")]
    yield Line("  left behind", ", ".join(rest) or "nothing", "nothing", not rest)


class Run:
    """One process; its lines go to a file."""

    def __init__(
        self, store: Path, checkpoint: Path, target: str, precision: str, log: Path
    ) -> None:
        self._log = log
        options = {"store": store, "checkpoint": checkpoint}
        words = [f"--{name}={value}" for name, value in options.items()]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("dgemma-build")),
                    "ensure",
                    *words,
                    f"--target={target}",
                    f"--precision={precision}",
                ],
                env={**without_settings(os.environ), "CUDA_VISIBLE_DEVICES": "-1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self) -> int:
        return self.process.wait(PATIENCE_S)

    def wait_until(self, condition: Callable[[], object]) -> bool:
        """Whether it holds before the process has ended."""
        until = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < until:
            if condition():
                return True
            time.sleep(0.01)
        return False

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _stamps(root: Path) -> dict[str, int]:
    """Of files: the lock's comes and goes, which changes its directory."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in files}
