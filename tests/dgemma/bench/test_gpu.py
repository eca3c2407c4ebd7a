"""The benchmark of the torch engine, rehearsed on the host: all of it but the kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from dgemma.bench.__main__ import app
from dgemma.bench.gpu import Subject, measure
from dgemma.bench.parts import WatchedOperations, parts_of
from dgemma.bench.peer import _real
from dgemma.bench.random_weights import random_weights
from dgemma.bench.report import Ceilings, read_report
from dgemma.bench.stand import Plan, Timed
from dgemma.engine import reference
from dgemma.engine.device import HostDevice
from dgemma.geometry import Geometry
from dgemma.model.checkpoint import parameter_shapes
from dgemma.precision import policy_of
from tests.oracle.checkpoints import WHOLE_GROUPS, write_tiny_checkpoint

TEXT = WHOLE_GROUPS | {"num_experts": 4, "top_k_experts": 2, "max_position_embeddings": 256}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("bench") / "checkpoint", **TEXT)


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["gpu", "--host", "--config", str(config), *arguments])


def test_a_rehearsal_writes_a_report_of_each_precision(config: Path, tmp_path: Path) -> None:
    sizes = ("--rows", "1", "--rows", "2", "--context", "64", "--steps", "16", "--runs", "2")
    done = run(config, *sizes, "--precision", "fp8", "--precision", "int4", "--out", str(tmp_path))
    assert done.exit_code == 0, done.output
    fp8, int4 = (read_report(tmp_path / f"gpu-{name}.json") for name in ("fp8", "int4"))
    for report, precision in ((fp8, "fp8"), (int4, "int4")):
        assert report.executed and report.passed and report.engine.precision == precision
        assert report.ceilings is not None and report.ceilings.bandwidth_bytes_per_s > 0
        assert [(s.rows, s.context, s.runs) for s in report.speed] == [(1, 64, 2), (2, 64, 2)]
        assert all(s.pass_ms > 0 and s.read_bytes and s.operations for s in report.speed)
        assert {(t.steps, t.fused) for t in report.throughput} == {(16, False), (16, True)}
        assert {"attend", "gate_up", "down", "tail"} <= {part.name for part in report.parts}
        assert len(report.parity) > 10 and all(p.max_error == 0 for p in report.parity)
    # Experts are one product of a layer each, and there are two layers.
    assert {p.calls for p in fp8.parts if p.name in ("gate_up", "down", "route")} == {2}
    # Hugging Face's run stands beside the first.
    assert fp8.peer is not None and fp8.peer.ms_per_step and int4.peer is None
    for title in ("ceiling, measured", "kernels against plain torch", "tokens/s", "Hugging Face"):
        assert title in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--precision", "fp5"), "precision 'fp5' is not known; known: fp32, bf16, fp8"),
        (("--context", "200"), "--context: 200 and two canvases are 264 tokens, the model has 256"),
    ],
)
def test_what_cannot_be_measured(config: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run(config, *arguments)
    assert done.exit_code == 2 and said in " ".join(done.output.split())


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int4", "nvfp4"])
def test_random_weights_keep_activations_of_size_one(config: Path, precision: str) -> None:
    geometry = Geometry.from_checkpoint(config)
    weights = random_weights(geometry, policy_of(precision), HostDevice())
    for name, shape in parameter_shapes(geometry).items():
        real = _real(weights, name).float()
        assert real.isfinite().all()
        if real.numel() > 1000 and len(shape) > 1 and not name.startswith("embed"):
            assert float(real.std()) * shape[-1] ** 0.5 == pytest.approx(1.0, rel=0.1)


class Captured(HostDevice):
    """As on a GPU: what was captured shows none of its operations when it is run again."""

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


def test_parts_are_those_of_a_pass_that_is_no_graph(config: Path) -> None:
    subject = Subject(config, Geometry.from_checkpoint(config), "bf16")
    plan = Plan(rows=(1,), contexts=(64,), steps=(16,), runs=2)
    ceilings = Ceilings(bandwidth_bytes_per_s=1, bf16_flops_per_s=1, fp8_flops_per_s=None)
    report = measure(subject, plan, Captured(), ceilings, lambda what: None)
    assert {"attend", "keep", "route", "tail"} <= {part.name for part in report.parts}


def test_parts_are_counted_only_while_they_are_watched() -> None:
    watched = WatchedOperations(reference, torch.device("cpu"))
    x = torch.randn(4, 8)

    def two() -> None:
        watched.quantize_rows(x)
        watched.quantize_rows(x)

    two()
    [part] = parts_of(two, watched, runs=3)
    assert (part.name, part.calls) == ("quantize_rows", 2) and part.ms > 0


def test_tokens_per_second_of_the_passes_of_a_canvas() -> None:
    timed = Timed(rows=2, context=0, engine=8.0, denoise=10.0, commit=5.0, fused=12.0)
    apart, fused = timed.throughput(256, steps=16)
    assert apart.tokens_per_s == pytest.approx(1e3 * 2 * 256 / (16 * 10 + 5))
    assert fused.tokens_per_s == pytest.approx(1e3 * 2 * 256 / (15 * 10 + 12))
    assert (apart.fused, fused.fused) == (False, True)
