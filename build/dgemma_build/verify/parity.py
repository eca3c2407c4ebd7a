"""An engine's hidden states against the torch modules', pass by pass.

Knows how far two ways of computing may be apart; knows nothing of engines. Where an engine
multiplies what the reference multiplies, in fp32, every element is held to a limit. Where it rounds
activations on the way (fp8, or BF16 on a GPU), a token close to two experts may go to either, so
the typical error is held to one, which a wrong mask, scale or weight exceeds by far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from dgemma.bench.passes import Pass
from dgemma.bench.report import Parity
from dgemma.engine.base import PassRunner, Row
from dgemma.manifest import Manifest

EXACT = 1e-3  # of hidden states, whose elements are of the order of one
# Of elements' mean magnitude. For BF16 and fp8 on GPUs these are bounds on what rounding in 30
# layers can do, not yet measured on a card.
ROUNDED = {"fp8": 0.1}
BF16 = 0.05
NOT_A_NUMBER = 1e9  # as an error, for JSON has no other way to say it


def compare(
    engine: PassRunner,
    reference: PassRunner,
    passes: Iterable[Pass],
    manifest: Manifest,
    progress: Callable[[str], None] = lambda kind: None,
) -> Iterator[Parity]:
    """One result a pass; both engines run all of them, in order."""
    exact = manifest.runtime.flavour == "onnxruntime" and manifest.precision not in ROUNDED
    limit = EXACT if exact else ROUNDED.get(manifest.precision, BF16)
    for each in passes:
        progress(each.kind)
        theirs = reference.forward(each.rows)
        ours = engine.forward(each.rows)
        errors = [_errors(ours[i], theirs[i], row) for i, row in enumerate(each.rows)]
        # Of the worst row: among many that are right a wrong one would not show in a median.
        largest, typical = (max(column) for column in zip(*errors, strict=True))
        measured = largest if exact else typical
        yield Parity(
            kind=each.kind,
            rows=len(each.rows),
            context=each.context,
            max_error=largest,
            typical_error=typical,
            limit=limit,
            exact=exact,
            passed=measured <= limit,
        )


def _errors(ours: Tensor, theirs: Tensor, row: Row) -> tuple[float, float]:
    """Of one row's valid tokens: the largest difference, and the median over the mean magnitude."""
    mine, wanted = ours[: row.valid].cpu().float(), theirs[: row.valid].cpu().float()
    error = (mine - wanted).abs()
    if not error.isfinite().all():
        return NOT_A_NUMBER, NOT_A_NUMBER
    return float(error.max()), float(error.median() / wanted.abs().mean())
