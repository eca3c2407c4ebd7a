"""Compiles a graph in a process of its own, which ends at once at Ctrl-C and takes nobody along.

Knows how the two processes talk; knows nothing of TensorRT. TensorRT tells nothing during the
longest step of a build, and an internal error of its compiler may end the process it runs in.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import onnx

from dgemma.errors import ConfigurationError
from dgemma.triton_server import with_parent
from dgemma_build.compile import CompilationFailed, CompiledPlan, Progress, compile_plan
from dgemma_build.flavours import FLAVOURS
from dgemma_build.profiles import Profile

# A compiler takes and gives back small blocks by the million, and glibc's own settings spend more
# than a quarter of a build on joining and dividing them; other C libraries ignore these.
_TUNABLES = {
    "tcache_count": 65535,
    "mxfast": 0,
    "trim_threshold": 2**32,
    "top_pad": 2**26,
    "mmap_threshold": 2**30,
    "hugetlb": 1,  # ask for large pages
}
_ALLOCATOR = ":".join(f"glibc.malloc.{name}={value}" for name, value in _TUNABLES.items())


def compile_apart(
    model: onnx.ModelProto,
    flavour: str,
    compute_capability: str,
    profiles: Sequence[Profile],
    progress: Progress = lambda what, done, total: None,
    weights: Path | None = None,
) -> CompiledPlan:
    """`compile_plan` in another process; whatever `progress` raises here ends that process."""
    ours, theirs = Pipe()
    command = [sys.executable, "-m", __name__, str(theirs.fileno())]
    command = [sys.executable, with_parent.__file__, str(os.getpid()), *command]
    with ours, tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            command,
            env={"GLIBC_TUNABLES": _ALLOCATOR} | os.environ,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
        theirs.close()
        try:
            task = (flavour, compute_capability, profiles, weights, model.SerializeToString())
            result = _result(ours, task, progress)
        finally:
            child.kill()
            status = child.wait()
        if result is not None:
            return result
        said.seek(0)
        text = said.read().decode(errors="replace")
    last = next((line for line in reversed(text.splitlines()) if line.strip()), "without a word")
    raise CompilationFailed(f"the compiler ended (status {status}): {last}", text)


def _result(
    connection: Connection, task: tuple[object, ...], progress: Progress
) -> CompiledPlan | None:
    """None where the other process ended before it had one."""
    try:
        connection.send(task)
    except OSError:
        return None
    while True:
        try:
            kind, *content = connection.recv()
        except (EOFError, OSError):
            return None
        if kind == "progress":
            progress(*content)
        elif kind == "plan":
            (plan,) = content
            assert isinstance(plan, CompiledPlan)
            return plan
        elif kind == "failed":
            raise CompilationFailed(*content)
        else:
            raise ConfigurationError(*content)


def _serve(connection: Connection) -> None:
    flavour, compute_capability, profiles, weights, model = connection.recv()

    def progress(what: str, done: int, total: int) -> None:
        connection.send(("progress", what, done, total))

    try:
        graph = onnx.ModelProto.FromString(model)
        plan = compile_plan(
            graph, FLAVOURS[flavour], compute_capability, profiles, progress, weights
        )
        connection.send(("plan", plan))
    except CompilationFailed as error:
        connection.send(("failed", str(error), error.log))
    except ConfigurationError as error:
        connection.send(("refused", str(error)))


if __name__ == "__main__":
    # Ctrl-C reaches both processes; the other one ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _serve(Connection(int(sys.argv[1])))
