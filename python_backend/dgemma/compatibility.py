"""Whether an engine, its weights and a machine belong together, before anything is loaded.

Knows what each of them says of itself; runs nothing. Every refusal names a file and what to do.
"""

from __future__ import annotations

from pathlib import Path

from dgemma.engine.kernels.chip import CAPABILITIES, Chip
from dgemma.engine.weight_bindings import check_weights
from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.machine import TORCH, Machine
from dgemma.manifest import FILE_NAME, Manifest
from dgemma.store_manifest import StoreManifest

_INSTALL = {
    "onnxruntime": "pip install onnxruntime",
    "tensorrt_rtx": "pip install tensorrt-rtx",
    "tensorrt": "serve in NVIDIA's Triton container, which has it",
}
_NEEDS_E4M3 = {"fp8": "multiplies in fp8", "nvfp4": "scales its weights in fp8"}
CPU = "cpu"
ANY_GPU = "gpu"  # the target of engines whose kernels are compiled where they run


def check_engine(
    directory: Path,
    machine: Machine,
    *,
    store: Path | None = None,
    geometry: Geometry | None = None,
    deep: bool = True,
) -> Manifest:
    """Raise ConfigurationError unless the engine in `directory` can be loaded on `machine`.

    `store` holds the weights of an engine that has none of its own, `geometry` is what a checkpoint
    asks for; what is not given is not checked. Without `deep`, files are held to their sizes only.
    """
    manifest = Manifest.read(directory)
    path = directory / FILE_NAME
    if geometry is not None and geometry != manifest.geometry:
        mine, other = manifest.geometry.to_dict(), geometry.to_dict()
        keys = ", ".join(key for key in mine if mine[key] != other[key])
        raise ConfigurationError(
            f"{path}: was built for another geometry, it differs in {keys}; point engine and "
            "checkpoint at the same model or build the engine again"
        )
    if (reason := why_not(manifest, machine)) is not None:
        raise ConfigurationError(f"{path}: {reason}")
    manifest.verify(directory, deep)
    if store is not None and not manifest.weights:
        check_store(directory, manifest, store, deep)
    return manifest


def why_not(made: Manifest, machine: Machine) -> str | None:
    """What keeps an engine from running on `machine`, and what to do; None: nothing.

    A TensorRT plan runs on the compute capability and in the version that it was compiled for.
    """
    runtime = made.runtime
    flavour = runtime.flavour
    if flavour == TORCH:
        return why_no_kernels(machine, made.precision)
    if flavour not in _INSTALL:
        return f"runtime {flavour!r} is not known; update this software"
    here = machine.runtimes.get(flavour)
    rebuild = f"build it again here with `dgemma-build engine --target {target_of(machine)}`"
    if flavour != "onnxruntime":
        if machine.gpu is None:
            return (
                f"was compiled for a GPU of compute capability {runtime.compute_capability}, and "
                "this machine has no GPU that its driver shows; select an engine for target cpu"
            )
        if runtime.compute_capability != machine.gpu.compute_capability:
            return (
                f"was compiled for compute capability {runtime.compute_capability}, "
                f"{machine.gpu.name} has {machine.gpu.compute_capability}; {rebuild}"
            )
    if here is None:
        why = machine.broken.get(flavour, "not installed")
        return f"needs {flavour}, which does not import ({why}); {_INSTALL[flavour]}"
    if flavour != "onnxruntime" and runtime.version != here:
        return f"was compiled by {flavour} {runtime.version}, here is {here}; {rebuild}"
    return None


def why_no_kernels(machine: Machine, precision: str) -> str | None:
    """What keeps kernels for weights of `precision` from running on `machine`; None: nothing."""
    gpu = machine.gpu
    if gpu is None:
        return (
            "has kernels for GPUs, and this machine has no GPU that its driver shows; select an "
            "engine for target cpu"
        )
    if gpu.compute_capability not in CAPABILITIES:
        known = ", ".join(map(str, CAPABILITIES))
        return (
            f"has kernels for compute capabilities {known}; {gpu.name} has "
            f"{gpu.compute_capability}; select an engine for target {target_of(machine)} or cpu"
        )
    if not Chip.of(gpu.compute_capability).takes(precision):
        return (
            f"{_NEEDS_E4M3[precision]}, for which {gpu.name} of compute capability "
            f"{gpu.compute_capability} has no units; select int4 or bf16, or build it with "
            f"`dgemma-build engine --target {ANY_GPU} --precision int4`"
        )
    if TORCH not in machine.runtimes:
        why = machine.broken.get(TORCH, "not installed; pip install torch")
        return f"needs torch that runs kernels, which it cannot here: {why}"
    return None


def target_of(machine: Machine) -> str:
    """The name that targets of a GPU like this machine's have."""
    return CPU if machine.gpu is None else f"sm{machine.gpu.compute_capability}"


def check_store(directory: Path, manifest: Manifest, store: Path, deep: bool = True) -> None:
    """Raise ConfigurationError unless `store` holds, whole, the weights that the engine takes."""
    held = StoreManifest.read(store)
    held.expect(
        store,
        precision=manifest.precision,
        geometry=manifest.geometry,
        policy=manifest.policy,
    )
    if manifest.constants not in (None, held.content):
        raise ConfigurationError(
            f"{store}: not the weights that the plan in {directory} holds itself; select the store "
            "that it was built of, or build the plan again"
        )
    check_weights(directory / FILE_NAME, manifest, store, held)
    held.verify(store, deep)
