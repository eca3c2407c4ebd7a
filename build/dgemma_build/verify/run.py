"""A whole verification: what is looked at in which order, and what becomes of the answers.

Knows when an engine can be run and what for; every question is asked in a module of its own.
"""

from __future__ import annotations

import importlib.metadata
import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

from dgemma.bench.passes import passes
from dgemma.bench.report import (
    Check,
    Device,
    EngineFacts,
    HuggingFace,
    Memory,
    Parity,
    Report,
    Software,
    Speed,
)
from dgemma.bench.timing import Stand
from dgemma.compatibility import why_not
from dgemma.engine.base import Capacity, Engine
from dgemma.engine.gpu_engines import gpu_engine
from dgemma.engine.kernel_sources import executed as executed_of
from dgemma.engine.onnx_engine import OnnxEngine
from dgemma.errors import ConfigurationError, DgemmaError
from dgemma.machine import Machine, host_memory
from dgemma.manifest import Manifest
from dgemma.roofline.sizes import Model
from dgemma.targets import Gpu, Target
from dgemma.targets.products import gpu_of
from dgemma_build.buffers import buffers, total
from dgemma_build.envelope import Envelope
from dgemma_build.verify.checks import Subject, static_checks
from dgemma_build.verify.hugging_face import PROMPTS, compare_to_hugging_face
from dgemma_build.verify.parity import compare
from dgemma_build.verify.reference import StreamedReference, weights_of

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What is asked for besides the checks that run nothing."""

    device: bool = False  # run every shape on the device, and time it
    slots: int = 2
    context: int = 2048
    runs: int = 20
    prompts: tuple[str, ...] = PROMPTS


@dataclass(frozen=True)
class _Executed:
    parity: tuple[Parity, ...] = ()
    speed: tuple[Speed, ...] = ()
    memory: Memory | None = None
    hugging_face: HuggingFace | None = None


def verify(
    subject: Subject,
    target: Target,
    machine: Machine,
    wanted: Wanted,
    progress: Progress = lambda what: None,
) -> Report:
    """The report; whatever was found is in it, and only a mistake in asking is raised."""
    manifest = subject.manifest
    checks: list[Check] = []
    for check in static_checks(subject, machine, wanted.device):
        progress(check.name)
        checks.append(check)
    executed = _Executed()
    if any(check.outcome == "failed" for check in checks):
        checks.append(_skipped("passes", "not run, because of what was found before"))
    elif (reason := _cannot_run(subject, machine, wanted)) is not None:
        checks.append(_skipped("passes", reason))
    else:
        executed, check = _execute(subject, target, wanted, progress)
        checks.append(check)
    failed = any(check.outcome == "failed" for check in checks)
    return Report(
        day=date.today(),
        executed=bool(executed.speed),
        passed=not failed,
        engine=EngineFacts(
            target=manifest.target,
            precision=manifest.precision,
            layers=len(manifest.geometry.layers),
            hidden_size=manifest.geometry.hidden_size,
            num_experts=manifest.geometry.num_experts,
            graph_sha256=executed_of(manifest),
            built_with=f"{manifest.runtime.flavour} {manifest.runtime.version}",
        ),
        software=Software(
            dgemma=importlib.metadata.version("dgemma"),
            torch=torch.__version__,
            runtime=manifest.runtime.flavour,
            runtime_version=machine.runtimes.get(manifest.runtime.flavour),
            driver=None if machine.gpu is None else machine.gpu.driver,
        ),
        device=device_facts(manifest, machine),
        checks=tuple(checks),
        **vars(executed),
    )


def device_facts(manifest: Manifest, machine: Machine) -> Device:
    """Of what computes passes of this engine here."""
    if manifest.runtime.flavour != "onnxruntime" and machine.gpu is not None:
        gpu = machine.gpu
        return Device(
            name=gpu.name,
            compute_capability=gpu.compute_capability,
            memory_bytes=gpu.memory_bytes,
            cores=None,
        )
    cores = len(os.sched_getaffinity(0))
    total_bytes = host_memory()[0]
    return Device(name=_cpu(), compute_capability=None, memory_bytes=total_bytes, cores=cores)


def _cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    lines = (line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
    names = [value.strip() for key, value in lines if key.strip() in ("model name", "Model")]
    return names[0] if names else "CPU"


def _cannot_run(subject: Subject, machine: Machine, wanted: Wanted) -> str | None:
    manifest = subject.manifest
    if manifest.runtime.flavour == "onnxruntime":
        return None
    if not wanted.device:
        return "a GPU's engine is run with --device, on that GPU"
    if (reason := why_not(manifest, machine)) is not None:
        return subject.anonymous(reason)
    return None if subject.store else "name the --store that holds the engine's weights"


def _skipped(name: str, why: str) -> Check:
    return Check(name=name, outcome="skipped", detail=why)


def capacity_of(manifest: Manifest, wanted: Wanted) -> Capacity:
    """What is asked for, as far as model and plan go.

    ConfigurationError where not every kind of pass has room: the longest takes four canvases.
    """
    context = min(wanted.context, manifest.geometry.max_position_embeddings)
    slots = wanted.slots
    for most in manifest.profiles[-1:]:  # the one with the most rows
        context = min(context, most["context"][1])
        slots = min(slots, most["slots"][1], most["rows"][1] // 2)
    if context < (least := 4 * manifest.geometry.canvas_length):
        raise ConfigurationError(f"context: got {context}; at least {least}, four canvases")
    return Capacity(slots, context, 2 * slots)


def _execute(
    subject: Subject, target: Target, wanted: Wanted, progress: Progress
) -> tuple[_Executed, Check]:
    manifest = subject.manifest
    capacity = capacity_of(manifest, wanted)
    try:
        engine = _open(subject, capacity, progress)
        parity = tuple(_parity(subject, engine, progress))
        done = _Executed(parity)
        if wanted.device:
            done = _measure(subject, target, wanted, engine, parity, progress)
    except DgemmaError as error:
        detail = subject.anonymous(str(error))
        return _Executed(), Check(name="passes", outcome="failed", detail=detail)
    wrong = [p.kind for p in parity if not p.passed]
    wrong += ["hugging face"] if _disagrees(done.hugging_face) else []
    detail = f"wrong: {', '.join(wrong)}" if wrong else f"{len(parity)} kinds of pass are right"
    return done, Check(name="passes", outcome="failed" if wrong else "passed", detail=detail)


def _disagrees(found: HuggingFace | None) -> bool:
    return found is not None and found.outcome == "failed"


def _open(subject: Subject, capacity: Capacity, progress: Progress) -> Engine:
    progress("load")
    if subject.manifest.runtime.flavour == "onnxruntime":
        return OnnxEngine(subject.directory, capacity)
    assert subject.store is not None, "an engine of GPUs is not run without its store"
    return gpu_engine(subject.manifest.runtime)(
        subject.directory,
        subject.store,
        capacity,
        progress=lambda what, done, total: progress(f"{what} {done}/{total}"),
    )


def _parity(subject: Subject, engine: Engine, progress: Progress) -> Iterator[Parity]:
    parameter = weights_of(subject.directory, subject.manifest, subject.store)
    device = engine.embedding().device
    reference = StreamedReference(engine.geometry, engine.capacity, parameter, device)
    every = passes(engine.geometry, engine.capacity)
    return compare(engine, reference, every, subject.manifest, progress)


def _measure(
    subject: Subject,
    target: Target,
    wanted: Wanted,
    engine: Engine,
    parity: tuple[Parity, ...],
    progress: Progress,
) -> _Executed:
    progress("speed")
    manifest, capacity = subject.manifest, engine.capacity
    model = Model.of(manifest.geometry, manifest.precision, flavour=manifest.runtime.flavour)
    on_gpu = engine.embedding().device.type == "cuda"
    gpu: Gpu | None = gpu_of(target, torch.cuda.get_device_name()) if on_gpu else None
    speed = tuple(Stand(engine, model, gpu).speeds(wanted.runs))
    envelope = Envelope(capacity.slots, capacity.rows, capacity.context)
    memory = Memory(
        peak_bytes=_peak(on_gpu),
        weights_bytes=model.weight_bytes,
        estimated_bytes=total(buffers(model, envelope, manifest.runtime.flavour)),
    )
    theirs = None
    if subject.checkpoint is not None:
        progress("hugging face")
        theirs = compare_to_hugging_face(engine, subject.checkpoint, wanted.prompts)
    return _Executed(parity, speed, memory, theirs)


def _peak(on_gpu: bool) -> int:
    """Of this process on a host; of the whole device on a GPU, for runtimes allocate as well."""
    if on_gpu:
        free, all_ = torch.cuda.mem_get_info()
        return int(all_ - free)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def subject_of(directory: Path, store: Path | None, checkpoint: Path | None) -> Subject:
    """ConfigurationError where there is no engine, or a manifest that cannot be believed."""
    if store is not None and not store.is_dir():
        raise ConfigurationError(f"{store}: no such directory of a weight store")
    return Subject(
        directory.resolve(),
        Manifest.read(directory),
        None if store is None else store.resolve(),
        None if checkpoint is None else checkpoint.resolve(),
    )
