"""An answer as phases of equal passes, for both kinds of model.

Knows what each pass of a request brings into a pass that many share; knows nothing of time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SAID_TOKENS = 32  # tokens of an autoregressive answer that are booked as one message
PROMPT_TOKENS = 2048  # of a prompt in one autoregressive pass


@dataclass(frozen=True)
class Phase:
    """`passes` alike, and what the client gets at their end."""

    passes: int
    context: float  # tokens before it
    rows: float = 0.0  # diffusion: canvases in each pass, those that are encoded among them
    denoising: float = 0.0
    sequences: float = 0.0  # autoregressive: tokens that each pass brings
    prompt_tokens: float = 0.0
    useful: int = 0  # tokens that the client gets at the end
    ends_block: bool = False

    @property
    def units(self) -> float:
        """What a tenant is charged for each pass: rows, or tokens."""
        return self.rows + self.sequences + self.prompt_tokens


def diffusion(prompt: int, answer: int, steps: Sequence[int], canvas: int) -> Iterator[Phase]:
    """Prompt chunks, then canvases, of which each commits the one before beside its first step."""
    for chunk in range(-(-prompt // canvas)):
        yield Phase(1, chunk * canvas, rows=1)
    for block, count in enumerate(steps):
        context = prompt + block * canvas
        first = 1 if block == 0 else 2
        useful = min(canvas, answer - block * canvas)
        if count > 1:
            yield Phase(1, context, rows=first, denoising=1)
            yield Phase(count - 1, context, 1, 1, useful=useful, ends_block=True)
        else:
            yield Phase(1, context, rows=first, denoising=1, useful=useful, ends_block=True)


def autoregressive(prompt: int, answer: int) -> Iterator[Phase]:
    """Chunks of the prompt, of which the last brings a token, then a token a pass."""
    for begins in range(0, prompt, PROMPT_TOKENS):
        size = min(PROMPT_TOKENS, prompt - begins)
        last = begins + size == prompt
        yield Phase(
            1,
            begins,
            sequences=float(last),
            prompt_tokens=size,
            useful=int(last),
            ends_block=last,
        )
    for begins in range(1, answer, SAID_TOKENS):
        size = min(SAID_TOKENS, answer - begins)
        yield Phase(size, prompt + begins, sequences=1, useful=size, ends_block=True)
