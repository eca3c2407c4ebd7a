"""The torch engine in plain torch on the host, against the torch modules with stored weights."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dgemma.engine.base import Row
from dgemma.engine.device import HostDevice
from dgemma.engine.torch_engine import TorchEngine
from dgemma.engine.torch_reference import TorchReference
from dgemma.errors import ConfigurationError, EngineFailure
from dgemma.model.checkpoint import fill
from dgemma.model.network import Network
from dgemma.store_manifest import StoreManifest
from dgemma.weight_store import WeightStore
from tests.dgemma.engine.test_tensorrt_engine import CAPACITY, GEOMETRY, L, error, random_passes
from tests.dgemma.engine.torch_engines import of_store, parts_of, stored_weights, torch_parts
from tests.dgemma.model.tiny_weights import random_network
from tests.identity import arrival, run
from tests.plans import write_store


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    network, made = random_network(GEOMETRY), {}

    def get(precision: str) -> Path:
        if precision not in made:
            made[precision] = write_store(tmp_path_factory.mktemp(precision), network, precision)
        return made[precision]

    return get


def reference(store: Path) -> TorchReference:
    stored = WeightStore.open(store)
    with torch.device("meta"):
        network = Network(stored.manifest.geometry)
    fill(network, stored.parameters(), torch.float32)
    return TorchReference(network, CAPACITY)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int4", "nvfp4"])
def test_every_mixture_of_passes_gives_what_the_reference_gives(
    store_of: Callable[[str], Path], precision: str
) -> None:
    ours, theirs = of_store(store_of(precision), CAPACITY), reference(store_of(precision))
    for rows in random_passes(seed=1, count=40):
        assert error(ours.forward(rows), theirs.forward(rows), rows) < 1e-4


def test_fp8_rounds_each_tokens_activations_by_their_largest(
    store_of: Callable[[str], Path],
) -> None:
    ours = of_store(store_of("fp8"), CAPACITY)
    exact, rounding = reference(store_of("fp8")), reference(store_of("fp8"))
    policy = StoreManifest.read(store_of("fp8")).policy
    rounded = {
        parameter.data_ptr()
        for name, parameter in rounding.network.named_parameters()
        if policy.format_of(name).is_quantized
    }
    apart: dict[str, list[float]] = {"exact": [], "rounding": []}
    for rows in random_passes(seed=2, count=20):
        hidden = ours.forward(rows).clone()
        with Rounding(rounded):
            apart["rounding"].append(typical_error(hidden, rounding.forward(rows), rows))
        apart["exact"].append(typical_error(hidden, exact.forward(rows), rows))
    # A value halfway between two codes may fall to either side, and moves what comes after it.
    assert statistics.median(apart["rounding"]) < 1e-5 < 1e-3 < min(apart["exact"])


class Rounding(TorchFunctionMode):
    """Rounds what is multiplied by the given weights to e4m3, each token by its largest value."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.weights = weights  # addresses

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (F.linear, Tensor.matmul) and args[1].data_ptr() in self.weights:
            scale = args[0].abs().amax(-1, keepdim=True).clamp(min=1e-12) / 448
            args = ((args[0] / scale).to(torch.float8_e4m3fn).float() * scale, *args[1:])
        return func(*args, **(kwargs or {}))


def typical_error(ours: Tensor, theirs: Tensor, rows: Sequence[Row]) -> float:
    """The median absolute difference over the mean magnitude."""
    apart = [
        (ours[i, : r.valid] - theirs[i, : r.valid]).abs().flatten() for i, r in enumerate(rows)
    ]
    size = torch.cat([theirs[i, : r.valid].abs().flatten() for i, r in enumerate(rows)]).mean()
    return float(torch.cat(apart).median() / size)


def test_requests_get_the_tokens_that_the_onnx_engine_gives_them(
    demo_engine: Path, demo_checkpoint: Path
) -> None:
    compiled = parts_of(demo_engine, demo_checkpoint)
    plain = torch_parts(demo_engine, demo_checkpoint)
    length = plain.scheduler.engine.geometry.canvas_length
    for index in range(6):
        rng = random.Random(f"tokens/{index}")
        crowd = [arrival(rng, length, may_leave=False) for _ in range(5)]
        ours, theirs = (run(parts, crowd, f"{index}") for parts in (plain, compiled))
        assert ours == theirs
        assert len({ids for _, ids, _ in ours}) > 1


def test_a_rows_hidden_states_are_the_same_whatever_its_bucket(
    store_of: Callable[[str], Path],
) -> None:
    engine = of_store(store_of("bf16"), CAPACITY)
    row = Row(torch.arange(L) % GEOMETRY.vocab_size, 0, 0, L, denoise=True)
    alone = engine.forward([row])[0].clone()
    others = [row._replace(slot=1), row._replace(slot=2, ids=row.ids.flip(0))]
    among = engine.forward([row, *others, row._replace(ids=row.ids.flip(0))])
    torch.testing.assert_close(alone, among[0], rtol=0, atol=1e-5)
    assert not torch.equal(alone, among[2])


def test_a_copied_prefix_is_the_same_in_another_slot(store_of: Callable[[str], Path]) -> None:
    engine = of_store(store_of("bf16"), CAPACITY)
    tokens = torch.randint(0, GEOMETRY.vocab_size, (4, L), generator=torch.manual_seed(1))
    for block, ids in enumerate(tokens[:3]):
        engine.forward([Row(ids, 0, block * L, L, denoise=False)])
        engine.restore(1, engine.snapshot(0, block * L, (block + 1) * L))
    there, here, elsewhere = (
        engine.forward([Row(tokens[3], slot, 3 * L, L, denoise=True)]).clone() for slot in range(3)
    )
    assert torch.equal(here, there) and not torch.equal(here, elsewhere)


def test_the_host_does_other_things_while_the_device_has_a_pass(
    store_of: Callable[[str], Path],
) -> None:
    engine, done = of_store(store_of("bf16"), CAPACITY), []
    engine.meanwhile(lambda: done.append(1))
    assert not done
    row = Row(torch.zeros(L, dtype=torch.int64), 0, 0, L, denoise=True)
    engine.forward([row])
    engine.forward([row])
    assert done == [1]


def test_every_shape_is_captured_before_the_first_request_and_none_after(
    store_of: Callable[[str], Path],
) -> None:
    device = Counting()
    engine = of_store(store_of("bf16"), CAPACITY, device)
    assert device.captures == 4 * 2  # 1, 2, 4, 6 rows behind at most 256 and 300 tokens
    for rows in random_passes(seed=5, count=10):
        engine.forward(rows)
    assert device.captures == 8


class Counting(HostDevice):
    """A host with so much free memory, that counts."""

    def __init__(self, free: int = 2**40) -> None:
        self.captures, self.free = 0, free

    def capture(self, call: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        return super().capture(call)

    def free_bytes(self) -> int:
        return self.free


def test_memory_that_is_lacking_is_refused(store_of: Callable[[str], Path]) -> None:
    weights = stored_weights(store_of("bf16"), HostDevice())
    with pytest.raises(ConfigurationError, match=r"K/V pools .*lower DGEMMA_SLOTS"):
        TorchEngine(weights, CAPACITY, Counting(free=10**4))


def test_a_pass_that_no_engine_may_run(store_of: Callable[[str], Path]) -> None:
    row = Row(torch.zeros(L, dtype=torch.int64), CAPACITY.slots, 0, L, denoise=True)
    with pytest.raises(EngineFailure, match="slot 3 of 3"):
        of_store(store_of("bf16"), CAPACITY).forward([row])
