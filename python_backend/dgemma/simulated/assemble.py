"""Puts the parts of a simulated service together: a platform's time, a checkpoint's tokenizer.

Knows what is simulated and says so; every part knows its own business. The geometry is the
published model's, whatever the checkpoint's own.
"""

from __future__ import annotations

import logging
from pathlib import Path

from dgemma.answer import Answer
from dgemma.assemble import Parts, image_tokens
from dgemma.chat import ChatTokenizer
from dgemma.engine.base import Capacity
from dgemma.engine.host_memory import check_fits
from dgemma.engine.simulated_engine import SimulatedEngine
from dgemma.generation import GenerationDefaults
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.profiles.selection import Selection, said
from dgemma.request import Request, RequestParser
from dgemma.roofline.platform import Platform
from dgemma.scheduler.options import Options
from dgemma.scheduler.pace import Pace
from dgemma.scheduler.scheduler import Scheduler
from dgemma.simulated.clock import Timekeeper, WallClock
from dgemma.simulated.device import SimulatedDevice
from dgemma.simulated.simulation import Simulation
from dgemma.simulated.tail import SimulatedTail
from dgemma.simulated.words import words

logger = logging.getLogger(__name__)


def assemble_simulated(
    name: str,
    checkpoint: Path,
    *,
    slots: int,
    max_model_len: int | None = None,
    options: Options | None = None,
    clock: Timekeeper | None = None,
) -> Parts:
    """`name` is a platform's, as `Platform.named` takes it.

    Raises ConfigurationError where there is none of that name, where the slots do not fit into its
    memory, and for a checkpoint whose tokenizer or settings cannot be read.
    """
    geometry, options = named_geometry(DEFAULT), options or Options()
    platform = Platform.named(name, geometry)
    defaults = GenerationDefaults.from_checkpoint(checkpoint)
    tokenizer = ChatTokenizer.from_checkpoint(checkpoint)
    longest = geometry.max_position_embeddings
    context = min(max_model_len or longest, longest)
    needs = platform.needs(slots, context) | {"prefix cache": options.prefix_cache_bytes}
    check_fits(
        {f"simulated {what}": nbytes for what, nbytes in needs.items()},
        platform.gpu.usable_bytes,
        f"the simulated {platform.gpu.name} has no more: set fewer DGEMMA_SLOTS, a shorter "
        "NIM_MAX_MODEL_LEN or less DGEMMA_PREFIX_CACHE_MIB",
    )
    device = SimulatedDevice(clock or WallClock())
    engine = SimulatedEngine(platform, Capacity(slots, context, 2 * slots), device)
    stops, images = frozenset(defaults.eos_token_ids), image_tokens(checkpoint)
    vocabulary = words(tokenizer, stops | images)
    stop, length = defaults.eos_token_ids[0], geometry.canvas_length
    tail = SimulatedTail(vocabulary, stop, length, later=device.meanwhile)

    def answer(request: Request) -> Answer:
        return Answer(tokenizer, request.sampling, stops)

    scheduler = Scheduler(engine, tail, answer, options, Pace(device.clock))
    device.wanted_since = lambda: next(iter(scheduler.open.values())).bill.submitted
    parser = RequestParser(
        defaults,
        tokenizer,
        vocab_size=tokenizer.vocab_size,
        canvas_length=geometry.canvas_length,
        max_model_len=context,
        image_token_ids=images,
    )
    simulation = Simulation(platform, device)
    logger.warning("%s", simulation.describe(slots, context))
    selection = said(_selection(simulation))
    return Parts(parser, scheduler, selection, simulation=simulation)


def _selection(simulation: Simulation) -> Selection:
    name = f"simulated-{simulation.name}"
    return Selection(name, name, "none", None, "simulated", "DGEMMA_SIMULATE asks for it")
