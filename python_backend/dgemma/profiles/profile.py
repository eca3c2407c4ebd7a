"""A profile: an engine with the weights that it runs on, and why it can or cannot run here.

Knows which weights belong to which engine, and which of several profiles is to be preferred: what
was compiled for a machine, then what its GPU can compile, then what any machine runs. Loads
nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dgemma.compatibility import CPU, check_engine, target_of
from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.machine import TORCH, Machine
from dgemma.manifest import Manifest
from dgemma.profiles.inventory import FoundEngine, FoundWeights, Inventory, profile_name

# Target -> its precisions, the preferred one first: the most bits a weight that leave room for
# requests and that the GPU's memory feeds at the speed people buy it for. Desktops and Spark are
# bound by it and have units for FP4; older desktop GPUs have no room for more than four bits.
PREFERRED: Mapping[str, tuple[str, ...]] = {
    "cpu": ("fp32", "fp8", "int4", "nvfp4"),
    "sm80": ("int4", "bf16"),
    "sm89": ("int4", "nvfp4", "fp8", "bf16"),
    "sm120": ("nvfp4", "int4", "fp8", "bf16"),
    "sm121": ("nvfp4", "fp8", "int4", "bf16"),
}
OTHERWISE = ("fp8", "bf16", "nvfp4", "int4")
NATIVE, KERNELS, OTHER = range(3)  # how near an engine is to a machine
_MOST_SHARE = 0.98  # of a GPU's memory that weights may take; no pass would fit beside more


@dataclass(frozen=True)
class Profile:
    """`weights` is None where the engine has its own; `refusal` says why it cannot run here."""

    engine: FoundEngine
    weights: FoundWeights | None
    refusal: str | None

    @property
    def name(self) -> str:
        return profile_name(self.engine.manifest)

    @property
    def id(self) -> str:
        """Of exactly these bytes, wherever they stand."""
        parts = self.engine.id + (self.weights.id if self.weights else "")
        return hashlib.sha256(parts.encode()).hexdigest()

    @property
    def revision(self) -> str:
        """Tells one content of the weights from another."""
        manifest = self.weights.manifest if self.weights else self.engine.manifest
        return manifest.source[:12]

    @property
    def content(self) -> str | None:
        """Of the checkpoint whose weights it runs on; None where that was not kept."""
        return self.weights.manifest.source if self.weights else self.engine.manifest.checkpoint

    @property
    def written(self) -> tuple[float, float]:
        """When the weights were, and the engine."""
        return (self.weights or self.engine).written, self.engine.written


def profiles(
    inventory: Inventory,
    machine: Machine,
    geometry: Geometry | None = None,
    content: str | None = None,
) -> list[Profile]:
    """Every engine with each of the weight stores it could run on, the preferred one first.

    `geometry` and `content` are those of the checkpoint to be served; None: any.
    """
    found = [
        Profile(engine, weights, _refusal(engine, weights, inventory, machine, geometry))
        for engine in inventory.engines
        for weights in weights_of(engine, inventory.weights)
    ]
    return ranked([_of_revision(profile, content) for profile in found], target_of(machine))


def ranked(found: Sequence[Profile], here: str) -> list[Profile]:
    """What is nearest to a machine of target `here`, first; then by precision; then the newest."""

    def key(profile: Profile) -> tuple[int, str, int, tuple[float, ...], str]:
        made = profile.engine.manifest
        newest = tuple(-time for time in profile.written)
        return distance(made, here), made.target, liking(made, here), newest, profile.id

    return sorted(found, key=key)


def distance(made: Manifest, here: str) -> int:
    """Of an engine from a machine of target `here`: NATIVE, KERNELS or OTHER."""
    if made.target == here:
        return NATIVE
    return KERNELS if made.runtime.flavour == TORCH and here != CPU else OTHER


def liking(made: Manifest, here: str) -> int:
    """`preference` among the engines of a target; of those for any GPU it is that of the GPU."""
    mine = distance(made, here) == KERNELS
    return preference(here if mine else made.target, made.precision)


def preference(target: str, precision: str) -> int:
    order = PREFERRED.get(target, OTHERWISE)
    return order.index(precision) if precision in order else len(order)


def weights_of(
    engine: FoundEngine, stores: Sequence[FoundWeights]
) -> Sequence[FoundWeights] | Sequence[None]:
    """The stores of an engine without weights; [None] where it has its own, or there are none."""
    made = engine.manifest
    if made.weights:
        return [None]
    return [
        store
        for store in stores
        if (store.manifest.geometry, store.manifest.precision, store.manifest.policy)
        == (made.geometry, made.precision, made.policy)
        and made.constants in (None, store.manifest.content)
    ] or [None]


def _of_revision(profile: Profile, content: str | None) -> Profile:
    """Weights and tokenizer of two revisions are never served together."""
    if profile.refusal or content is None or profile.content in (None, content):
        return profile
    where = (profile.weights or profile.engine).directory
    refusal = f"{where}: holds the weights of another revision than the checkpoint to be served"
    return replace(profile, refusal=refusal)


def _refusal(
    engine: FoundEngine,
    weights: FoundWeights | None,
    inventory: Inventory,
    machine: Machine,
    geometry: Geometry | None,
) -> str | None:
    made = engine.manifest
    store = None if weights is None else weights.directory
    try:
        check_engine(engine.directory, machine, store=store, geometry=geometry, deep=False)
    except ConfigurationError as error:
        return str(error)
    if made.weights:
        return None
    if weights is None:
        return (
            f"{engine.directory}: {inventory.root} has no {made.precision} weights for it; write "
            f"them there with `dgemma-build quantize --precision {made.precision}`"
        )
    if machine.gpu and weights.manifest.size > _MOST_SHARE * machine.gpu.memory_bytes:
        return (
            f"{weights.directory}: {weights.manifest.size / 1e9:.1f} GB of weights do not fit into "
            f"the {machine.gpu.memory_bytes / 1e9:.1f} GB of {machine.gpu.name}; "
            "choose a precision of fewer bits"
        )
    return None
