"""The parts of the service that its settings ask for: an engine, or a simulation of one.

Knows which settings go where; how parts are put together is `dgemma.assemble`'s.
"""

from __future__ import annotations

from dgemma.assemble import Parts, assemble
from dgemma.scheduler.options import Options
from dgemma.settings import Settings
from dgemma.simulated.assemble import assemble_simulated


def load(settings: Settings) -> Parts:
    """Raises ConfigurationError where a file or a setting is at fault."""
    options = Options(
        fair=settings.scheduler == "fair",
        prefix_cache_bytes=settings.prefix_cache_mib << 20,
        prefill_rows=settings.prefill_rows,
        max_queued=settings.max_queued,
    )
    if settings.simulate is not None:
        return assemble_simulated(
            settings.simulate,
            settings.checkpoint,
            slots=settings.slots,
            max_model_len=settings.max_model_len,
            options=options,
        )
    return assemble(
        settings.models,
        settings.checkpoint,
        profile=settings.profile,
        preferred=settings.preferred,
        slots=settings.slots,
        max_model_len=settings.max_model_len,
        threads=settings.threads or 0,
        store=settings.store,
        options=options,
    )
