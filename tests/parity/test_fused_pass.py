"""A pass of many rows computes what its rows would in passes of their own.

Commit and first denoise as partner rows, prefill in chunks of any borders, and tokens beyond
`valid`, which nobody may see.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgemma.engine.base import Capacity, Row
from dgemma.engine.torch_reference import TorchReference
from dgemma.model.checkpoint import Checkpoint
from dgemma_build.demo.vocabulary import VOCAB_SIZE
from tests.oracle.checkpoints import SLIDING, Case, draw_case
from tests.oracle.hugging_face import HuggingFace
from tests.oracle.passes import assert_close, denoise_row, encode_rows, padded, prefill

SEEDS = range(200, 216)
SLOT = 2


def canvases_of(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(case.seed)
    return torch.randint(0, VOCAB_SIZE, (case.canvases, case.canvas_length), generator=generator)


class Scene:
    """A case's network, all of whose choices of experts are clear, and canvases for it."""

    def __init__(self, case: Case, directory: Path) -> None:
        for self.case in case.again():
            self.checkpoint = Checkpoint(self.case.write(directory / str(self.case.seed)))
            hf = HuggingFace(self.checkpoint.directory)
            self.canvases = canvases_of(self.case)
            _, cache = hf.encode(torch.tensor(case.prompt))
            for canvas in self.canvases:
                hf.denoise(canvas, cache)
                hf.encode(canvas, cache)
            if hf.routes_clearly:
                break
        self.prompt = torch.tensor(case.prompt)

    def engine(self) -> TorchReference:
        """A fresh engine whose pools hold garbage, as a slot's do after an earlier request."""
        engine = TorchReference.from_checkpoint(self.checkpoint, Capacity(3, self.case.context, 6))
        generator = torch.Generator().manual_seed(1)
        for array in engine.pool.arrays:
            array[:] = torch.randn(array.shape, generator=generator).numpy()
        return engine


@pytest.fixture(scope="module", params=SEEDS)
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(draw_case(request.param), tmp_path_factory.mktemp("scene"))


def assert_same_pools(one: TorchReference, other: TorchReference, end: int) -> None:
    """Full layers at positions `0 .. end`, sliding ones at the last W of them."""
    for full, a, b in zip(one.pool.full, one.pool.arrays, other.pool.arrays, strict=True):
        window = one.pool.window
        at = range(end) if full else [p % window for p in range(max(0, end - window), end)]
        mine, theirs = (torch.from_numpy(pool[SLOT][:, list(at)]) for pool in (a, b))
        assert_close(mine, theirs)


def test_partner_rows_give_what_a_commit_and_a_denoise_pass_give(scene: Scene) -> None:
    apart, together = scene.engine(), scene.engine()
    start, length = len(scene.prompt), scene.case.canvas_length
    for engine in (apart, together):
        prefill(engine, scene.prompt, SLOT)
    for done, fresh in zip(scene.canvases, scene.canvases[1:], strict=False):
        (commit,) = encode_rows(apart, done, SLOT, start)
        denoise = denoise_row(fresh, SLOT, start + length)
        expected = [apart.forward([row])[0].clone() for row in (commit, denoise)]
        pair = together.forward([commit, denoise._replace(partner=0)])
        assert_close(pair, torch.stack(expected))
        start += length
        assert_same_pools(apart, together, start)


def test_a_partner_padded_beyond_its_valid_tokens_shows_only_those(scene: Scene) -> None:
    """The end of a prompt and the first canvas, in one pass."""
    apart, together = scene.engine(), scene.engine()
    canvas = scene.canvases[0]
    *others, last = encode_rows(apart, scene.prompt, SLOT)
    for engine in (apart, together):
        for row in others:
            engine.forward([row])
    denoise = denoise_row(canvas, SLOT, last.end)
    expected = [apart.forward([row])[0].clone() for row in (last, denoise)]
    pair = together.forward([denoise._replace(partner=1), last])
    assert_close(pair[0], expected[1])
    assert_close(pair[1, : last.valid], expected[0][: last.valid])
    assert_same_pools(apart, together, last.end)


def test_prefill_does_not_depend_on_where_chunks_end(scene: Scene) -> None:
    whole, pieces = scene.engine(), scene.engine()
    ids = torch.cat([scene.prompt, scene.canvases[0]])
    expected = prefill(whole, ids, SLOT)
    start = 0
    for size in (1, 2, 5, scene.case.canvas_length, 11, 3, len(ids)):
        for row in encode_rows(pieces, ids[start : start + size], SLOT, start):
            hidden = pieces.forward([row])[0, : row.valid]
            assert_close(hidden, expected[start : row.end])
            start = row.end
    assert start == len(ids)
    assert_same_pools(whole, pieces, start)


def test_what_stands_beyond_valid_changes_nothing(scene: Scene) -> None:
    engine, other = scene.engine(), scene.engine()
    ids, length = scene.prompt[:7], scene.case.canvas_length
    for this, filler in ((engine, 0), (other, VOCAB_SIZE - 1)):
        row = Row(padded(ids, length, filler), SLOT, 0, len(ids), denoise=False)
        this.forward([row])
    canvas = denoise_row(scene.canvases[0], SLOT, len(ids))
    assert torch.equal(engine.forward([canvas]), other.forward([canvas]))
    for a, b in zip(engine.pool.arrays, other.pool.arrays, strict=True):
        assert (a == b).all()


def test_rows_of_several_slots_do_not_see_each_other(scene: Scene) -> None:
    alone, among = scene.engine(), scene.engine()
    start = len(scene.prompt)
    for engine in (alone, among):
        prefill(engine, scene.prompt, SLOT)
    first, second = scene.canvases[:2]
    (commit,) = encode_rows(alone, first, SLOT, start)
    mine = [commit, denoise_row(second, SLOT, commit.end)]
    expected = [alone.forward([row])[0].clone() for row in mine]
    others = [denoise_row(second, 0, 0), *encode_rows(among, second, 1)]
    hidden = among.forward([others[0], mine[0], others[1], mine[1]._replace(partner=1)])
    assert_close(hidden[[1, 3]], torch.stack(expected))


def test_the_scenes_have_windows_shorter_than_a_canvas_and_longer_than_everything() -> None:
    cases = [case for case in map(draw_case, SEEDS) if SLIDING in case.text["layer_types"]]
    assert sum(case.text["sliding_window"] < case.canvas_length for case in cases) >= 3
    assert any(case.text["sliding_window"] > case.context for case in cases)
    assert any(case.text["sliding_window"] < len(case.prompt) for case in cases)
