"""One request with every random draw taken from a tape, recorded step by step.

Knows the tape's and the record's file format; runs the same loop, tail and engines as the service.
Shapes: P prompt tokens, C canvases, N denoise steps, L canvas length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dgemma.answer import Delta
from dgemma.engine.base import Capacity, Engine
from dgemma.engine.torch_reference import TorchReference
from dgemma.errors import InvalidRequest
from dgemma.generation import GenerationDefaults
from dgemma.geometry import Geometry
from dgemma.model.checkpoint import Checkpoint
from dgemma.request import Request, StreamMode
from dgemma.sampling import Sampling
from dgemma.scheduler.events import Event, Finished
from dgemma.scheduler.scheduler import Scheduler
from dgemma.tail.draws import TapeDraws
from dgemma.tail.statistics import Head
from dgemma.tail.tail import Canvas, Tail

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tape:
    """A request and its draws; `tape.md` beside this package says what each array means."""

    input_ids: IntArray  # [P]
    max_new_tokens: int
    init: IntArray  # [C, L]
    uniform: npt.NDArray[np.float64]  # [C, N, L]
    renoise: IntArray  # [C, N, L]

    @classmethod
    def load(cls, path: Path, geometry: Geometry, steps: int) -> Tape:
        """InvalidRequest names the array that is missing, misshapen or out of range."""
        arrays = _read(path)
        names = ("input_ids", "max_new_tokens", "init", "uniform", "renoise")
        if missing := [name for name in names if name not in arrays]:
            raise InvalidRequest("tape", f"{path} lacks {', '.join(missing)}")
        for name in names:
            wanted = "iuf" if name == "uniform" else "iu"
            if (kind := arrays[name].dtype).kind not in wanted:
                what = "numbers" if name == "uniform" else "integers"
                raise InvalidRequest(f"tape.{name}", f"holds {kind}; it must hold {what}")
        if arrays["max_new_tokens"].size != 1:
            raise InvalidRequest("tape.max_new_tokens", "must be one number")
        tape = cls(
            arrays["input_ids"].astype(np.int64),
            int(arrays["max_new_tokens"].item()),
            arrays["init"].astype(np.int64),
            arrays["uniform"].astype(np.float64),
            arrays["renoise"].astype(np.int64),
        )
        tape.check(geometry, steps)
        return tape

    def check(self, geometry: Geometry, steps: int) -> None:
        length = geometry.canvas_length
        if self.max_new_tokens < 1:
            raise InvalidRequest("tape.max_new_tokens", f"{self.max_new_tokens}; must be >= 1")
        canvases = -(-self.max_new_tokens // length)
        if self.input_ids.ndim != 1 or not self.input_ids.size:
            raise InvalidRequest("tape.input_ids", "must be one row of at least one token id")
        for name, shape in (
            ("init", (canvases, length)),
            ("uniform", (canvases, steps, length)),
            ("renoise", (canvases, steps, length)),
        ):
            got = getattr(self, name).shape
            if len(got) != len(shape) or any(a < b for a, b in zip(got, shape, strict=True)):
                raise InvalidRequest(
                    f"tape.{name}", f"has shape {list(got)}, this request needs {list(shape)}"
                )
        if not ((self.uniform >= 0) & (self.uniform <= 1)).all():
            raise InvalidRequest("tape.uniform", "holds numbers outside 0..1")
        for name in ("input_ids", "init", "renoise"):
            values = getattr(self, name)
            if values.min() < 0 or values.max() >= geometry.vocab_size:
                raise InvalidRequest(
                    f"tape.{name}", f"holds ids outside 0..{geometry.vocab_size - 1}"
                )


@dataclass
class Record:
    """What each step of each canvas decided; steps not run are -1, False and NaN."""

    steps: IntArray  # [C]
    argmax: IntArray  # [C, N, L]
    accepted: npt.NDArray[np.bool_]  # [C, N, L]
    entropy: npt.NDArray[np.float32]  # [C, N, L], nats

    @classmethod
    def empty(cls, canvases: int, steps: int, length: int) -> Record:
        shape = (canvases, steps, length)
        return cls(
            np.zeros(canvases, np.int64),
            np.full(shape, -1, np.int64),
            np.zeros(shape, np.bool_),
            np.full(shape, np.nan, np.float32),
        )


@dataclass(frozen=True)
class _RecordingTail(Tail):
    record: Record = field(kw_only=True)

    def step(self, hidden: Tensor, rows: Sequence[tuple[Canvas, Sampling]]) -> None:
        super().step(hidden, rows)
        for canvas, _ in rows:
            assert canvas.argmax is not None
            assert canvas.accepted is not None and canvas.entropy is not None
            at = canvas.block, canvas.step - 1
            self.record.steps[canvas.block] = canvas.step
            self.record.argmax[at] = canvas.argmax.cpu().numpy()
            self.record.accepted[at] = canvas.accepted.cpu().numpy()
            self.record.entropy[at] = canvas.entropy.cpu().numpy()


class _WholeCanvases:
    """An answer as HF returns it: whole canvases, padded after the first stop id. No text."""

    def __init__(self, defaults: GenerationDefaults, max_new_tokens: int) -> None:
        self.defaults, self.limit = defaults, max_new_tokens
        self.ids: list[int] = []

    def push(self, block: Sequence[int]) -> Delta:
        ids, declared = list(block), self.defaults.declared
        ends = self.defaults.eos_token_ids if "eos_token_id" in declared else ()
        stops = [i for i, token in enumerate(ids) if token in ends]
        if stops and "pad_token_id" in declared:
            kept = ids[: stops[0] + 1]
            ids = kept + [self.defaults.pad_token_id] * (len(ids) - len(kept))
        self.ids += ids
        reason = "stop" if stops else "length" if len(self.ids) >= self.limit else None
        return Delta("", tuple(ids), reason)

    @property
    def completion_tokens(self) -> int:
        return len(self.ids)


def replay(
    checkpoint: Path,
    tape: Path,
    out: Path,
    engine: Path | None = None,
    store: Path | None = None,
) -> None:
    """Run the tape's request and write `sequences`, `steps`, `argmax`, `accepted`, `entropy`.

    Without `engine`, the network runs in eager torch; `store` holds the weights of an engine that
    has none of its own. Settings come from the checkpoint's
    generation_config. Raises InvalidRequest for the tape, ConfigurationError for the rest.
    """
    geometry = Geometry.from_checkpoint(checkpoint)
    defaults = GenerationDefaults.from_checkpoint(checkpoint)
    steps, length = defaults.max_denoising_steps, geometry.canvas_length
    draws = Tape.load(tape, geometry, steps)
    canvases = -(-draws.max_new_tokens // length)
    capacity = Capacity(1, len(draws.input_ids) + canvases * length, 2)
    runner = _open(checkpoint, engine, geometry, capacity, store)
    embedding = runner.embedding()
    arrays_of_tape = (draws.init, draws.uniform, draws.renoise)
    record = Record.empty(canvases, steps, length)
    tail = _RecordingTail(
        Head(embedding, geometry.final_logit_softcapping),
        TapeDraws(*(torch.from_numpy(a).to(embedding.device) for a in arrays_of_tape)),
        record=record,
    )
    answer = _WholeCanvases(defaults, draws.max_new_tokens)
    scheduler = Scheduler(runner, tail, lambda request: answer)
    ended: list[Event] = []
    scheduler.submit(_request(draws, defaults), ended.append)
    while scheduler.step():
        pass
    assert isinstance(ended[-1], Finished), "every request ends"
    if ended[-1].error is not None:
        raise ended[-1].error
    arrays: dict[str, Any] = {"sequences": np.array([*draws.input_ids, *answer.ids])}
    arrays |= {name: getattr(record, name) for name in ("steps", "argmax", "accepted", "entropy")}
    np.savez(out, **arrays)


def _open(
    checkpoint: Path,
    engine: Path | None,
    geometry: Geometry,
    capacity: Capacity,
    store: Path | None,
) -> Engine:
    if engine is None:
        return TorchReference.from_checkpoint(Checkpoint(checkpoint), capacity)
    from dgemma.assemble import open_engine  # only engines need their runtimes

    return open_engine(engine, geometry, checkpoint, capacity, store=store)


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, TypeError, BadZipFile) as error:
        raise InvalidRequest("tape", f"{path} is not a readable .npz file: {error}") from None


def _request(tape: Tape, defaults: GenerationDefaults) -> Request:
    sampling = Sampling(
        max_new_tokens=tape.max_new_tokens,
        max_denoising_steps=defaults.max_denoising_steps,
        t_min=defaults.t_min,
        t_max=defaults.t_max,
        entropy_bound=defaults.entropy_bound,
        stability_threshold=defaults.stability_threshold,
        confidence_threshold=defaults.confidence_threshold,
        seed=0,
        stop=(),
        ignore_eos=False,
        return_token_ids=False,
    )
    return Request("replay", tuple(tape.input_ids.tolist()), sampling, StreamMode.NONE, None)
