from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dgemma.engine.kv_pool import KVPool
from dgemma.errors import ConfigurationError
from dgemma.geometries import DEFAULT, named_geometry
from dgemma.geometry import Geometry
from dgemma.roofline.sizes import Model, bytes_of, coverage, kv_bytes, pass_bytes

PUBLISHED = named_geometry(DEFAULT)


@pytest.mark.parametrize(
    ("precision", "policy", "gigabytes"),
    [
        ("bf16", None, 52.0),
        ("fp8", None, 27.5),
        ("nvfp4", "experts", 19.2),
        ("int4", "all", 16.0),
    ],
)
def test_a_pass_reads_all_weights_and_the_embedding_twice(
    precision: str, policy: str | None, gigabytes: float
) -> None:
    moved = pass_bytes(Model.of(PUBLISHED, precision, policy), rows=1, tokens=0)
    assert moved.floor / 1e9 == pytest.approx(gigabytes, abs=0.065)
    assert moved.floor == moved.weights + 2 * 262144 * 2816


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int4"])
def test_kernels_hold_and_read_what_a_plan_does(precision: str) -> None:
    kernels = Model.of(PUBLISHED, precision, flavour="torch")
    assert kernels == Model.of(PUBLISHED, precision, flavour="tensorrt")
    assert kernels.activation_bytes == 2


def test_few_tokens_meet_few_experts() -> None:
    assert coverage(PUBLISHED, 1) == pytest.approx(8 / 128)
    assert coverage(PUBLISHED, 16) == pytest.approx(1 - (120 / 128) ** 16)
    assert 1 - 1e-7 < coverage(PUBLISHED, 256) < 1
    sparse = Model.of(replace(PUBLISHED, canvas_length=16), "fp8")
    one, many = (pass_bytes(sparse, rows, 0).weights for rows in (1, 16))
    unread = sparse.weight_parts["experts"] * (120 / 128) ** 16
    assert sparse.weight_bytes - one == pytest.approx(unread, rel=1e-6)
    assert one < many < sparse.weight_bytes


def test_what_only_encodes_needs_no_logits() -> None:
    model = Model.of(PUBLISHED, "fp8")
    prompt, both = bytes_of(model, [0, 0], 0), bytes_of(model, [0, 0], 1)
    assert (prompt.embedding, both.embedding) == (0, model.embedding_bytes)
    assert both.floor - prompt.floor == 2 * model.embedding_bytes


def test_exact_bytes_of_the_published_model() -> None:
    """By hand: expert banks, attention and dense MLPs are quantised, one row scale a row."""
    attention = 2816 * (25 * (16 + 8 + 8 + 16) * 256 + 5 * (16 + 2 + 16) * 512)
    linears = 30 * 128 * 3 * 704 * 2816 + attention + 30 * 3 * 2112 * 2816
    rest = 25_250_986_812 - linears
    rows = 30 * 128 * (2 * 704 + 2816)  # of the experts
    rows += 25 * (16 + 8 + 8) * 256 + 5 * (16 + 2) * 512 + 30 * 2816  # of the attention
    rows += 30 * (2 * 2112 + 2816)  # of the dense MLPs
    assert Model.of(PUBLISHED, "bf16").weight_bytes == 2 * 25_250_986_812
    assert Model.of(PUBLISHED, "fp8").weight_bytes == linears + 4 * rows + 2 * rest
    int4 = Model.of(PUBLISHED, "int4", "all").weight_bytes
    assert int4 == linears // 2 + linears // 32 + 2 * rest
    left = linears - attention
    int4 = Model.of(PUBLISHED, "int4").weight_bytes
    assert int4 == left // 2 + left // 32 + 2 * (attention + rest)


def test_experts_alone_or_all_products() -> None:
    experts, everything = (Model.of(PUBLISHED, "nvfp4", p) for p in ("experts", "all"))
    assert Model.of(PUBLISHED, "nvfp4").weight_bytes == experts.weight_bytes
    assert experts.weight_parts["experts"] == everything.weight_parts["experts"]
    assert experts.weight_parts["attention"] > 3 * everything.weight_parts["attention"]


@pytest.mark.parametrize("precision", ["bf16", "fp8", "int4", "nvfp4"])
def test_parts_make_up_the_whole(precision: str) -> None:
    model = Model.of(PUBLISHED, precision)
    assert sum(model.weight_parts.values()) == model.weight_bytes
    assert model.weight_parts["embedding"] == model.embedding_bytes == 2 * 262144 * 2816


def test_a_checkpoint_in_fp32_is_as_large_as_its_file(demo_checkpoint: Path) -> None:
    path = demo_checkpoint / "model.safetensors"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    spans = [
        entry["data_offsets"]
        for name, entry in header.items()
        if name != "__metadata__" and "vision" not in name
    ]
    model = Model.of(Geometry.from_checkpoint(demo_checkpoint), "fp32")
    assert model.weight_bytes == sum(end - begin for begin, end in spans)


def test_a_host_multiplies_in_fp32_what_is_not_quantised() -> None:
    host, gpu = (Model.of(PUBLISHED, "int4", flavour=f) for f in ("onnxruntime", "tensorrt_rtx"))
    assert (host.activation_bytes, gpu.activation_bytes) == (4, 2)
    assert host.embedding_bytes == 2 * gpu.embedding_bytes
    assert host.weight_parts["experts"] == gpu.weight_parts["experts"]


def test_only_fp8_on_a_gpu_is_multiplied_as_it_is_stored() -> None:
    bank = 128 * 1408 * 2816

    def banks(precision: str, flavour: str = "tensorrt") -> tuple[int, ...]:
        return Model.of(PUBLISHED, precision, flavour=flavour).dequantized_banks

    assert banks("bf16") == banks("fp8") == ()
    assert banks("int4") == banks("nvfp4") == (2 * bank, bank)
    assert banks("fp8", "onnxruntime") == (4 * bank, 2 * bank)


def test_an_unknown_precision_or_policy_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="precision 'fp7' is not known"):
        Model.of(PUBLISHED, "fp7")
    with pytest.raises(
        ConfigurationError, match="fp8 has no policy 'most'; known: all, feed_forward, experts"
    ):
        Model.of(PUBLISHED, "fp8", "most")


# Keys and values


def test_keys_and_values_of_the_published_model() -> None:
    model = Model.of(PUBLISHED, "bf16")
    assert kv_bytes(model, 8192).sliding / 1e6 == pytest.approx(210, abs=0.5)
    per_token = kv_bytes(model, 8193).full - kv_bytes(model, 8192).full
    assert per_token / 1e3 == pytest.approx(20.5, abs=0.05)
    assert kv_bytes(model, 8192).total / 1e9 == pytest.approx(0.38, abs=0.005)
    assert kv_bytes(model, 262144).total / 1e9 == pytest.approx(5.6, abs=0.05)


@pytest.mark.parametrize(("slots", "context"), [(1, 64), (3, 512)])
def test_a_pool_is_as_large_as_the_engines(demo_checkpoint: Path, slots: int, context: int) -> None:
    geometry = Geometry.from_checkpoint(demo_checkpoint)
    sizes = kv_bytes(Model.of(geometry, "fp32"), context)
    assert slots * sizes.total == KVPool.bytes_for(geometry, slots, context)


def test_a_row_reads_what_it_has_and_of_sliding_layers_a_window() -> None:
    model = Model.of(PUBLISHED, "bf16")
    assert kv_bytes(model, 8192, tokens=0).total == 0
    short, window, long = (kv_bytes(model, 8192, tokens=n) for n in (512, 1024, 4096))
    assert 2 * short.sliding == window.sliding == long.sliding == kv_bytes(model, 8192).sliding
    assert 8 * short.full == long.full


def test_more_rows_read_more_context_and_no_more_weights() -> None:
    model = Model.of(PUBLISHED, "fp8")
    one, many = pass_bytes(model, 1, 8192), pass_bytes(model, 16, 8192)
    assert many.weights == pytest.approx(one.weights, rel=1e-6)
    assert many.embedding == one.embedding
    assert many.kv == 16 * one.kv
    # Sixteen contexts of 8192 tokens, written once more and read again.
    assert many.gather / 1e9 == pytest.approx(12, abs=0.2)
