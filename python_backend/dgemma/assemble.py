"""Puts the parts of the service together from directories and settings.

Knows which engine a manifest asks for; every part knows its own business.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dgemma.answer import Answer
from dgemma.chat import ChatTokenizer
from dgemma.checkpoint_manifest import content_of
from dgemma.compatibility import why_not
from dgemma.engine.base import Capacity, Engine
from dgemma.engine.contexts import Contexts
from dgemma.engine.gpu_engines import gpu_engine
from dgemma.engine.host_memory import check_fits, free_bytes
from dgemma.engine.kv_pool import KVPool
from dgemma.engine.onnx_engine import OnnxEngine
from dgemma.errors import ConfigurationError
from dgemma.generation import GenerationDefaults
from dgemma.geometry import Geometry, read_config
from dgemma.machine import Machine
from dgemma.manifest import FILE_NAME, Manifest
from dgemma.profiles.locks import InUse
from dgemma.profiles.profile import Profile
from dgemma.profiles.selection import Selection
from dgemma.profiles.serving import Wanted, open_wanted
from dgemma.request import Request, RequestParser
from dgemma.scheduler.options import Options
from dgemma.scheduler.scheduler import Scheduler
from dgemma.simulated.simulation import Simulation
from dgemma.tail.bound_step import Graphs
from dgemma.tail.compiled import CompiledTail
from dgemma.tail.draws import SeededDraws
from dgemma.tail.statistics import Head
from dgemma.tail.sweep import sweep_for
from dgemma.tail.tail import Tail

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What a service needs: one to understand requests, one to run them; and what runs them."""

    parser: RequestParser
    scheduler: Scheduler
    selection: Selection | None = None  # None: nothing was chosen, an engine was given
    in_use: InUse = field(default_factory=InUse)  # as long as the engine is
    simulation: Simulation | None = None  # of an engine that there is not


def assemble(
    models: Path,
    checkpoint: Path,
    *,
    profile: str | None = None,
    preferred: str | None = None,
    slots: int,
    max_model_len: int | None = None,
    threads: int = 0,
    store: Path | None = None,
    options: Options | None = None,
) -> Parts:
    """Load everything; ConfigurationError says which file or setting is at fault.

    `models` is an engine directory, or a model store of which `profile` is loaded, or else the
    `preferred` one, or else the best.
    `store` is where an engine without weights gets them from, if not from the store beside it.
    """
    defaults = GenerationDefaults.from_checkpoint(checkpoint)
    tokenizer = ChatTokenizer.from_checkpoint(checkpoint)
    geometry = Geometry.from_checkpoint(checkpoint)
    context = min(
        max_model_len or geometry.max_position_embeddings, geometry.max_position_embeddings
    )
    capacity = Capacity(slots, context, 2 * slots)
    options = options or Options()
    in_use = InUse()

    def load(profile: Profile) -> Engine:
        found = None if profile.weights is None else profile.weights.directory
        return open_engine(
            *(profile.engine.directory, geometry, checkpoint, capacity, threads),
            store=store or found,
            prefix_cache_bytes=options.prefix_cache_bytes,
        )

    wanted = Wanted(models, profile, geometry, content_of(checkpoint), preferred)
    engine, selection = open_wanted(wanted, load, in_use)
    in_use.add(checkpoint)
    # What torch does on the host is too small to share, and more threads of its own would fight
    # the engine's for the cores.
    torch.set_num_threads(1)
    tail = _open_tail(Path(selection.directory), engine, geometry)
    stops = frozenset(defaults.eos_token_ids)

    def answer(request: Request) -> Answer:
        return Answer(tokenizer, request.sampling, stops)

    parser = RequestParser(
        defaults,
        tokenizer,
        vocab_size=geometry.vocab_size,
        canvas_length=geometry.canvas_length,
        max_model_len=context,
        image_token_ids=image_tokens(checkpoint),
    )
    return Parts(parser, Scheduler(engine, tail, answer, options), selection, in_use)


def open_engine(
    directory: Path,
    geometry: Geometry,
    checkpoint: Path,
    capacity: Capacity,
    threads: int = 0,
    store: Path | None = None,
    prefix_cache_bytes: int = 0,
) -> Engine:
    """The engine that the manifest's runtime asks for, if it was built for `geometry`.

    `store` holds the weights of an engine that has none of its own. Raises ConfigurationError where
    they do not belong together, cannot be run here, or have not the memory for the slots and for
    what is kept of them.
    """
    manifest = Manifest.read(directory)
    if manifest.geometry != geometry:
        raise ConfigurationError(
            f"{directory}: was built for another geometry than {checkpoint}/config.json; "
            "point both at the same model or build the engine again"
        )
    if manifest.runtime.flavour == "onnxruntime":
        slots, context = capacity.slots, capacity.context
        check_fits(
            {
                f"K/V of {slots} slots × {context} tokens": KVPool.bytes_for(
                    geometry, slots, context
                ),
                f"copies of them that {capacity.rows} rows attend to": Contexts.bytes_for(
                    geometry, capacity
                ),
                "prefix cache": prefix_cache_bytes,
            },
            free_bytes(),
            "set fewer DGEMMA_SLOTS, a shorter NIM_MAX_MODEL_LEN or less DGEMMA_PREFIX_CACHE_MIB",
        )
        return OnnxEngine(directory, capacity, threads)
    machine = Machine.here()
    if (reason := why_not(manifest, machine)) is not None:
        raise ConfigurationError(f"{directory / FILE_NAME}: {reason}")
    if store is None:
        raise ConfigurationError(
            f"{directory}: holds {'a plan' if manifest.graph else 'an engine'} without weights; "
            "set DGEMMA_WEIGHT_STORE to the store that "
            f"`dgemma-build quantize --precision {manifest.precision}` wrote"
        )
    return gpu_engine(manifest.runtime)(
        *(directory, store, capacity),
        machine=machine,
        snapshot_bytes=prefix_cache_bytes,
        progress=_told,
    )


def _told(what: str, done: int, total: int) -> None:
    """Loading takes minutes where a disk is slow or kernels are new; each tenth is a line."""
    tenth = max(1, total // 10)
    if done == total or done // tenth > (done - 1) // tenth:
        logger.info("%s: %d of %d", what, done, total)


def _open_tail(directory: Path, engine: Engine, geometry: Geometry) -> Tail:
    """The tail that the engine was built with."""
    tail = tail_of(engine.embedding(), geometry)
    if Manifest.read(directory).tail:
        assert isinstance(tail.draws, SeededDraws) and isinstance(engine, OnnxEngine)
        graphs = Graphs.load(directory, geometry, engine.crew)
        return CompiledTail(tail.head, tail.draws, graphs=graphs)
    return tail


def tail_of(embedding: Tensor, geometry: Geometry) -> Tail:
    """The tail of an engine with this embedding, where it is."""
    head = Head(embedding, geometry.final_logit_softcapping)
    draws = SeededDraws(geometry.canvas_length, geometry.vocab_size, embedding.device)
    return Tail(head, draws, sweep_for(embedding))


def image_tokens(checkpoint: Path) -> frozenset[int]:
    """Ids that stand for images, which are not served."""
    config = read_config(checkpoint)
    keys = ("image_token_id", "boi_token_id", "eoi_token_id")
    return frozenset(value for key in keys if isinstance(value := config.get(key), int))
