"""What a server can take, asked before a run: the length of its context, characters of a token.

Knows what servers say when they are asked for too much; knows nothing of scenarios.
"""

from __future__ import annotations

import re
from contextlib import suppress

from dgemma_loadtest.errors import TargetError
from dgemma_loadtest.fit import Fit
from dgemma_loadtest.jobs import Job
from dgemma_loadtest.prompts import CHARACTERS_PER_TOKEN, Prompt
from dgemma_loadtest.targets.base import Connection, End, Target

_CONTEXT = re.compile(r"(?:max_model_len|maximum context length)\D{0,40}(\d+)")
_TEXT = "The quick brown fox jumps over the lazy dog, then counts from 1 to 42 and stops. " * 3
_TOO_MANY = 1 << 30
_TIMEOUT_S = 120.0


async def fitted(target: Target, tenant: str, context: int | None = None) -> Fit:
    """`context` where it is known already. What is not told is left open; raises TargetError where
    the server answers nothing at all.
    """
    (connection,) = await target.connect(1)
    try:
        if context is None:
            context = await _context(connection, tenant)
        return Fit(context, await _characters(connection, tenant))
    finally:
        await connection.close()


async def _context(connection: Connection, tenant: str) -> int | None:
    """From the refusal of an answer that no context holds."""
    try:
        async for _ in connection.ask(_job("context", tenant, _TOO_MANY)):
            return None  # it does not mind
    except TargetError as error:
        found = _CONTEXT.search(error.message)
        return int(found[1]) if found else None
    except TimeoutError:
        pass
    return None


async def _characters(connection: Connection, tenant: str) -> float:
    """Of a token, in plain English; a chat template's own tokens make it a little less."""
    with suppress(TimeoutError):
        async for part in connection.ask(_job("characters", tenant, 1)):
            if isinstance(part, End) and part.usage and part.usage.prompt_tokens:
                return max(1.0, len(_TEXT) / part.usage.prompt_tokens)
    return CHARACTERS_PER_TOKEN


def _job(name: str, tenant: str, tokens: int) -> Job:
    prompt = Prompt("probe", name, _TEXT)
    return Job(f"probe-{name}", 0, prompt, "generate", tokens, _TIMEOUT_S, 0, tenant)
