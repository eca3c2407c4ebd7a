from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from dgemma.errors import ConfigurationError
from dgemma_build.compile import CompilationFailed, compile_plan
from dgemma_build.compile_apart import compile_apart
from dgemma_build.envelope import Envelope
from dgemma_build.flavours import FLAVOURS
from dgemma_build.profiles import profiles
from tests.dgemma_build.graphs import GEOMETRY, graph

Stand = Callable[[str], None]
NOTHING = onnx.ModelProto()


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    """Called with the code of a module that stands where TensorRT for RTX is looked for."""

    def stand(code: str) -> None:
        (tmp_path / "tensorrt_rtx.py").write_text(code)

    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return stand


def test_a_compiler_that_dies_is_an_error_with_its_last_words(compiler: Stand) -> None:
    compiler("import os, sys; print('Fatal: myelin', file=sys.stderr, flush=True); os.abort()")
    with pytest.raises(CompilationFailed, match=r"status -6\): Fatal: myelin$") as caught:
        compile_apart(NOTHING, "tensorrt_rtx", "12.1", ())
    assert caught.value.log == "Fatal: myelin\n"


def test_what_the_compiler_refuses_is_refused_here(compiler: Stand) -> None:
    compiler("raise ImportError('libtensorrt_rtx.so: not found')")
    with pytest.raises(ConfigurationError, match=r"libtensorrt_rtx\.so: not found; pip install"):
        compile_apart(NOTHING, "tensorrt_rtx", "12.1", ())


def test_ctrl_c_ends_a_compiler_that_tells_nothing(compiler: Stand, tmp_path: Path) -> None:
    started = tmp_path / "pid"
    compiler(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(started)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )

    def interrupt() -> None:
        while not (started.exists() and started.read_text()):
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        compile_apart(NOTHING, "tensorrt_rtx", "12.1", ())
    assert time.monotonic() - begin < 30
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def test_it_gives_what_compiling_here_gives() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    model = graph(torch.bfloat16)
    shapes = profiles(model.graph, GEOMETRY, Envelope(2, 2, 64))
    parts: list[int] = []
    apart = compile_apart(
        model, "tensorrt_rtx", "12.1", shapes, lambda _, done, __: parts.append(done)
    )
    here = compile_plan(model, FLAVOURS["tensorrt_rtx"], "12.1", shapes)
    assert (apart.bindings, apart.profiles) == (here.bindings, here.profiles)
    assert (apart.version, len(apart.plan)) == (here.version, len(here.plan))
    assert parts == sorted(parts) and len(parts) > 50


class Interrupted(BaseException):
    """As KeyboardInterrupt is, without stopping pytest."""


def test_what_progress_raises_is_raised_at_once() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    model = graph(torch.bfloat16)

    def interrupt(what: str, done: int, total: int) -> None:
        raise Interrupted

    shapes = profiles(model.graph, GEOMETRY, Envelope(2, 2, 64))
    with pytest.raises(Interrupted):
        compile_apart(model, "tensorrt_rtx", "12.1", shapes, interrupt)


def test_a_rejected_graph_keeps_its_log() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    model = graph(torch.bfloat16)
    with pytest.raises(CompilationFailed) as caught:
        compile_apart(model, "tensorrt_rtx", "12.1", ())
    assert "error: " in caught.value.log
