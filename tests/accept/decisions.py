"""What a tail decided at every denoise step: recorded, compared, and forced on another run.

Knows canvases and their margins; knows nothing of requests or of what shares a pass.
Shapes: L canvas length, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from dgemma.sampling import Sampling
from dgemma.tail.acceptance import temperature
from dgemma.tail.draws import Moment
from dgemma.tail.tail import Canvas, Tail
from dgemma.template import FREE


@dataclass(frozen=True)
class Decision:
    """One denoise step of one canvas."""

    hidden: Tensor  # [L, D]
    argmax: Tensor  # int64 [L]
    accepted: Tensor  # bool [L]
    entropy: Tensor  # fp32 [L]
    pinned: Tensor | None  # int64 [L]
    ids: Tensor  # int64 [L]; stale where the canvas is done, and so is `soft`
    soft: Tensor | None  # [L, D]
    repeats: int
    mean_entropy: float
    converged: bool
    done: bool

    @classmethod
    def of(cls, hidden: Tensor, canvas: Canvas, sampling: Sampling) -> Decision:
        assert canvas.argmax is not None
        assert canvas.accepted is not None and canvas.entropy is not None
        return cls(
            *(hidden, canvas.argmax, canvas.accepted, canvas.entropy, canvas.pinned),
            *(
                canvas.ids,
                _kept(canvas.soft),
                canvas.repeats,
                canvas.mean_entropy,
                canvas.converged,
            ),
            canvas.is_done(sampling),
        )

    def agrees(self, other: Decision) -> bool:
        """Whether both led to the same tokens; soft embeddings may differ."""
        return (
            torch.equal(self.argmax, other.argmax)
            and self.done == other.done
            and (self.done or torch.equal(self.ids, other.ids))
            and torch.equal(self.accepted, other.accepted)
        )

    def distance(self, other: Decision) -> float:
        return float((self.hidden - other.hidden).abs().max())


def force(canvas: Canvas, decision: Decision) -> None:
    """Have a canvas that has just made this step go on with the tokens decided there."""
    if canvas.converged and not decision.converged:  # it has no soft embedding of its own
        canvas.soft = decision.soft
    canvas.ids, canvas.argmax, canvas.accepted = decision.ids, decision.argmax, decision.accepted
    canvas.repeats, canvas.converged = decision.repeats, decision.converged


Decisions = dict[Moment, Decision]
Forced = Mapping[Moment, Decision]


@dataclass(frozen=True)
class RecordingTail(Tail):
    """Keeps every decision of another tail, which goes on along those of another run."""

    inner: Tail = field(kw_only=True)
    seen: Decisions = field(kw_only=True)
    along: Forced = field(kw_only=True)

    @classmethod
    def around(cls, inner: Tail, seen: Decisions, along: Forced) -> Tail:
        return cls(inner.head, inner.draws, inner=inner, seen=seen, along=along)

    def step(self, hidden: Tensor, rows: Sequence[tuple[Canvas, Sampling]]) -> None:
        moments = [Moment(sampling.seed, canvas.block, canvas.step) for canvas, sampling in rows]
        kept = hidden.clone()
        self.inner.step(hidden, rows)
        for moment, row, (canvas, sampling) in zip(moments, kept, rows, strict=True):
            self.seen[moment] = Decision.of(row, canvas, sampling)
            if (decision := self.along.get(moment)) is not None:
                force(canvas, decision)


def _kept(soft: Tensor | None) -> Tensor | None:
    """A copy: a canvas writes its next one where this stands."""
    return None if soft is None else soft.clone()


class Divergence(NamedTuple):
    """Where two runs first decided differently, and how close the reference's decision was."""

    moment: Moment
    what: str
    margin: float  # of logits at their temperature, or of entropies in nats
    apart: float  # the hidden states that were decided on


def divergence(
    tail: Tail, moment: Moment, sampling: Sampling, reference: Decision, other: Decision
) -> Divergence:
    """Of decisions that do not agree: the widest of the margins that were overcome."""
    found: list[tuple[float, str]] = []
    warmth = temperature(moment.step, sampling.max_denoising_steps, sampling.t_min, sampling.t_max)
    size = len(tail.head.embedding)
    scores = tail.head.scores(reference.hidden[None], torch.tensor(warmth), 0, size)[0]  # [L, V]
    if not torch.equal(reference.argmax, other.argmax):
        found.append((_lead(scores, reference.argmax, other.argmax), "argmax"))
    differ = reference.accepted != other.accepted
    if differ.any():
        found.append((_acceptance(reference, differ, sampling.entropy_bound), "acceptance"))
    both = reference.accepted & other.accepted
    if not (reference.done or other.done) and not torch.equal(reference.ids[both], other.ids[both]):
        _, race = tail.draws.step([moment])
        assert race is not None, "seeded draws race"
        raced = scores - race(0, size)[0].log()
        found.append((_lead(raced[both], reference.ids[both], other.ids[both]), "sampling"))
    if not found:
        found.append((abs(reference.mean_entropy - sampling.confidence_threshold), "confidence"))
    margin, what = max(found)
    return Divergence(moment, what, margin, other.distance(reference))


def _lead(scores: Tensor, mine: Tensor, others: Tensor) -> float:
    """By how much the chosen tokens led those that another run chose, at most."""
    lead = scores.gather(-1, mine[:, None]) - scores.gather(-1, others[:, None])
    return float(lead.max())


def _acceptance(reference: Decision, differ: Tensor, bound: float) -> float:
    """The distance of sums from the bound, or of entropies that changed places."""
    free = reference.pinned == FREE if reference.pinned is not None else None
    entropy = reference.entropy
    ordered = (entropy if free is None else entropy.masked_fill(~free, torch.inf)).sort()
    before = torch.empty_like(entropy)
    before[ordered.indices] = ordered.values.cumsum(0) - ordered.values
    gap = float((before[differ] - bound).abs().max())
    return min(gap, float(entropy[differ].max() - entropy[differ].min()) or gap)
