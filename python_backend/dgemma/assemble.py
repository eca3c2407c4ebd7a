"""Puts the parts of the service together from directories and settings.

Knows which engine a manifest asks for; every part knows its own business.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dgemma.answer import Answer
from dgemma.chat import ChatTokenizer
from dgemma.engine.base import Capacity, Engine
from dgemma.engine.host_memory import check_fits, free_bytes
from dgemma.engine.kv_pool import KVPool
from dgemma.engine.onnx_engine import OnnxEngine
from dgemma.errors import ConfigurationError
from dgemma.generation import GenerationDefaults
from dgemma.geometry import Geometry, read_config
from dgemma.manifest import Manifest
from dgemma.request import Request, RequestParser
from dgemma.scheduler.options import Options
from dgemma.scheduler.scheduler import Scheduler
from dgemma.tail.draws import SeededDraws
from dgemma.tail.statistics import Head
from dgemma.tail.tail import Tail


@dataclass(frozen=True)
class Parts:
    """What a service needs: one to understand requests, one to run them."""

    parser: RequestParser
    scheduler: Scheduler


def assemble(
    engine_directory: Path,
    checkpoint: Path,
    *,
    slots: int,
    max_model_len: int | None = None,
    threads: int = 0,
    options: Options | None = None,
) -> Parts:
    """Load everything; ConfigurationError says which file or setting is at fault."""
    defaults = GenerationDefaults.from_checkpoint(checkpoint)
    tokenizer = ChatTokenizer.from_checkpoint(checkpoint)
    geometry = Geometry.from_checkpoint(checkpoint)
    context = min(
        max_model_len or geometry.max_position_embeddings, geometry.max_position_embeddings
    )
    capacity = Capacity(slots, context, 2 * slots)
    options = options or Options()
    engine = open_engine(
        engine_directory, geometry, checkpoint, capacity, threads, options.prefix_cache_bytes
    )
    # What torch does on the host is too small to share, and more threads of its own would fight
    # the engine's for the cores.
    torch.set_num_threads(1)
    tail = Tail(
        Head(engine.embedding(), geometry.final_logit_softcapping),
        SeededDraws(geometry.canvas_length, geometry.vocab_size),
    )
    stops = frozenset(defaults.eos_token_ids)

    def answer(request: Request) -> Answer:
        return Answer(tokenizer, request.sampling, stops)

    parser = RequestParser(
        defaults,
        tokenizer,
        vocab_size=geometry.vocab_size,
        canvas_length=geometry.canvas_length,
        max_model_len=context,
        image_token_ids=_image_tokens(checkpoint),
    )
    return Parts(parser, Scheduler(engine, tail, answer, options))


def open_engine(
    directory: Path,
    geometry: Geometry,
    checkpoint: Path,
    capacity: Capacity,
    threads: int = 0,
    prefix_cache_bytes: int = 0,
) -> Engine:
    """The engine that the manifest's target asks for, if it was built for `geometry`.

    Raises ConfigurationError where it was not, cannot be run here, or has not the memory for the
    slots and for what is kept of them.
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
                "prefix cache": prefix_cache_bytes,
            },
            free_bytes(),
            "set fewer DGEMMA_SLOTS, a shorter NIM_MAX_MODEL_LEN or less DGEMMA_PREFIX_CACHE_MIB",
        )
        return OnnxEngine(directory, capacity, threads)
    raise ConfigurationError(
        f"{directory}: built for target {manifest.target}, which this installation cannot run; "
        "select an engine for this machine"
    )


def _image_tokens(checkpoint: Path) -> frozenset[int]:
    config = read_config(checkpoint)
    keys = ("image_token_id", "boi_token_id", "eoi_token_id")
    return frozenset(value for key in keys if isinstance(value := config.get(key), int))
