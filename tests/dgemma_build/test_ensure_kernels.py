"""`dgemma-build ensure` with the engine for any GPU: asked for, or for want of a GPU's own.

What runs an engine is replaced, for a GPU would be needed; weights and builds are real.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dgemma.engine.kernel_sources import sources_digest
from dgemma.errors import ConfigurationError
from dgemma.machine import Machine
from dgemma.manifest import Manifest
from dgemma.profiles.inventory import Inventory
from dgemma_build.engine import Built, build_from_store
from dgemma_build.ensure import run as steps
from dgemma_build.ensure.order import Order, planned
from dgemma_build.ensure.run import Ensured, Told, ensure, others_that_fit
from dgemma_build.ensure.verification import Engine
from tests.dgemma.profiles.stores import (
    KERNELS_ALONE,
    NO_GPU,
    SPARK,
    WITH_KERNELS,
    write_engine,
)
from tests.model_store import SMALLEST
from tests.oracle.checkpoints import write_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", **SMALLEST)


def on(capability: int) -> Machine:
    return replace(KERNELS_ALONE, gpu=replace(SPARK, compute_capability=capability))


class Steps:
    """Runs `ensure`; plans are as stores have them in tests, and wrong or refused if asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, order: Order) -> None:
        self.order, self.lines, self.verified = order, list[str](), list[Engine]()
        self.wrong: tuple[str, ...] = ()
        self.refuses = False
        monkeypatch.setattr(steps, "build_from_store", self._build)
        monkeypatch.setattr(steps, "verify", self._verify)
        monkeypatch.setattr(steps, "verified_before", lambda engine: None)

    def run(self, machine: Machine, **changes: object) -> Ensured:
        self.order = replace(self.order, **changes)  # type: ignore[arg-type]
        return ensure(self.order, machine, Told(self.lines.append, lambda *_: None))

    def _build(
        self, store: Path, target: str, precision: str, out: Path, *_: object, **options: object
    ) -> Built:
        if target == "gpu":
            assert options["max_rows"] is options["max_context"] is None
            return build_from_store(store, target, precision, out)
        if self.refuses:
            raise ConfigurationError("the graph is not accepted")
        geometry = planned(self.order, WITH_KERNELS).geometry
        write_engine(out, precision, target, geometry=geometry)
        return Built(Manifest.read(out), up_to_date=False)

    def _verify(self, engine: Engine, say: object) -> str | None:
        self.verified.append(engine)
        target = Manifest.read(engine.directory).target
        return "passes: wrong: denoise" if target in self.wrong else None


@pytest.fixture
def ensuring(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Steps:
    root = tmp_path / "store"
    root.mkdir()
    return Steps(monkeypatch, Order(root, checkpoint, precision="int4"))


def engines(ensuring: Steps) -> list[str]:
    return sorted(e.manifest.target for e in Inventory.of(ensuring.order.root).engines)


def test_it_is_made_for_another_machine_where_it_is_asked_for(ensuring: Steps) -> None:
    made = ensuring.run(NO_GPU, target="gpu")
    assert made.done == ("weights", "engine", "verification") and made.aside is None
    assert made.directory.name.startswith("gpu-int4-torch-")
    assert Manifest.read(made.directory).source == sources_digest()
    [engine] = ensuring.verified
    assert not engine.runs_here and engine.store is not None
    assert "3 of 3, verify: without running it, for this machine cannot" in ensuring.lines


def test_on_a_gpu_it_is_verified_by_its_passes(ensuring: Steps) -> None:
    ensuring.run(KERNELS_ALONE, target="gpu")
    [engine] = ensuring.verified
    assert engine.runs_here


def test_without_a_compiler_it_is_made_instead(ensuring: Steps) -> None:
    made = ensuring.run(KERNELS_ALONE)
    assert engines(ensuring) == ["gpu"] and made.aside is None
    assert any(
        "sm121: needs tensorrt_rtx, which does not import" in line
        and line.endswith("making the engine for any GPU instead")
        for line in ensuring.lines
    )


def test_it_is_made_in_a_precision_that_no_plan_of_the_gpu_has(ensuring: Steps) -> None:
    made = ensuring.run(on(90), precision="nvfp4")
    assert made.directory.name.startswith("gpu-nvfp4-torch-") and made.aside is None
    assert any(
        line.startswith("precision 'nvfp4' is not built for sm90; known: bf16, fp8, int4; making")
        for line in ensuring.lines
    )


def test_where_the_plan_cannot_be_built_it_is_made_instead(ensuring: Steps) -> None:
    ensuring.refuses = True
    assert ensuring.run(WITH_KERNELS).aside is None
    assert engines(ensuring) == ["gpu"]
    assert any(line.startswith("the graph is not accepted; making") for line in ensuring.lines)


def test_where_the_plan_is_wrong_it_is_made_as_well(ensuring: Steps) -> None:
    ensuring.wrong = ("sm121",)
    made = ensuring.run(WITH_KERNELS)
    assert made.aside is not None and "sm121-int4" in made.directory.name
    assert made.done.count("engine") == 2
    assert engines(ensuring) == ["gpu"]
    assert others_that_fit(made, ensuring.order, WITH_KERNELS) == ["torch-gpu-int4-tp1-pp1"]


def test_where_both_are_wrong_nothing_fits(ensuring: Steps) -> None:
    ensuring.wrong = ("sm121", "gpu")
    made = ensuring.run(WITH_KERNELS)
    assert made.aside is not None and engines(ensuring) == []
    assert others_that_fit(made, ensuring.order, WITH_KERNELS) == []
    assert len(Inventory.of(ensuring.order.root).set_aside) == 2


def test_where_the_plan_is_right_there_is_no_other(ensuring: Steps) -> None:
    assert ensuring.run(WITH_KERNELS).aside is None
    assert engines(ensuring) == ["sm121"]


@pytest.mark.parametrize(
    ("machine", "target", "precision", "message"),
    [
        # What was asked for is never replaced.
        (KERNELS_ALONE, "sm121", "int4", "sm121: needs tensorrt_rtx, which does not imp"),
        # It would not run.
        (replace(KERNELS_ALONE, runtimes={}), "auto", "int4", "sm121: needs tensorrt_rtx, which"),
        # There are no kernels for that, or none for this GPU.
        (KERNELS_ALONE, "auto", "fp32", "'fp32' is not built for sm121"),
        (on(80), "auto", "nvfp4", "'nvfp4' is not built for sm80"),
    ],
)
def test_it_replaces_nothing_that_was_asked_for_or_that_it_cannot(
    ensuring: Steps, machine: Machine, target: str, precision: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ensuring.run(machine, target=target, precision=precision)
    assert list(ensuring.order.root.iterdir()) == []


@pytest.mark.parametrize(
    ("capability", "precision"), [(80, "int4"), (89, "int4"), (90, "fp8"), (121, "nvfp4")]
)
def test_its_precision_is_what_this_gpu_runs_and_prefers(
    ensuring: Steps, capability: int, precision: str
) -> None:
    plan = planned(replace(ensuring.order, target="gpu", precision="auto"), on(capability))
    assert (plan.precision, plan.rows, plan.context) == (precision, None, None)
