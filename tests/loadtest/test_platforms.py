"""Platforms and network are the service's own, which the package itself cannot import."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgemma.geometries import DEFAULT, named_geometry
from dgemma.roofline.platform import Platform as Served
from dgemma.simulated import convergence
from dgemma.targets import load_targets
from dgemma_loadtest import platforms
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.modelled import steps
from dgemma_loadtest.modelled.network import network
from dgemma_loadtest.modelled.roofline import Machine, Reading

GPUS = {g.platform: (g, t) for t in load_targets().values() for g in t.gpus if g.platform}
PAIRS = [(key, p) for key in platforms.shipped() for p in platforms.load(key).precisions]


@pytest.mark.parametrize("key", platforms.shipped())
def test_a_platform_is_what_the_service_says_it_is(key: str) -> None:
    ours, (gpu, target) = platforms.load(key), GPUS[key]
    assert ours.name == gpu.name
    for name in ("memory_bytes", "head_room_bytes", "bandwidth_bytes_per_s", "bf16_flops_per_s"):
        assert getattr(ours, name) == getattr(gpu, name), name
    assert ours.fp8_flops_per_s == gpu.fp8_flops_per_s
    assert ours.precisions == target.precisions
    assert gpu.board_power_w in (None, ours.watts)
    theirs = {(p.system, p.tokens_per_s, p.steps, p.requests) for p in gpu.published}
    mine = {
        (p.system, p.tokens_per_s, p.steps, p.requests)
        for p in ours.published
        if p.model == "diffusion"
    }
    assert mine == theirs


@pytest.mark.parametrize(("key", "precision"), PAIRS)
@pytest.mark.parametrize(("reading", "calibration"), [("sum", "h200"), ("max", "floor")])
def test_a_pass_takes_what_the_service_simulates(
    key: str, precision: platforms.Precision, reading: Reading, calibration: str
) -> None:
    ours = Machine.of(platforms.load(key), precision, reading)
    theirs = Served.named(f"{key}-{precision}-{calibration}", named_geometry(DEFAULT))
    scale = ours.calibration.overhead if reading == "max" else 1.0
    for rows, denoising, context in ((1, 1, 0), (1, 0, 512), (4, 4, 700), (40, 32, 9000)):
        wanted = scale * theirs.pass_s([context] * rows, denoising)
        assert ours.diffusion_s(rows, denoising, context) == pytest.approx(wanted, rel=1e-6)


def test_steps_are_drawn_as_the_service_draws_them() -> None:
    ours = steps.published()
    assert (convergence.CAP, convergence.NEVER) == (steps.CAP, steps.NEVER)
    assert convergence.CONVERGING == steps.CONVERGING
    assert ours.mean == pytest.approx(26.6, abs=0.1)
    assert sorted(ours.sample)[len(ours.sample) // 2] == 23
    assert ours.sample.count(48) / len(ours.sample) == pytest.approx(0.21, abs=0.005)


def test_a_machine_that_is_bought_costs_its_years_and_its_power() -> None:
    spark = platforms.load("dgx-spark")
    assert spark.usd_per_hour == pytest.approx(4699 / 26280 + 0.15 * 0.14)
    assert platforms.load("h100").usd_per_hour == 2.95


def test_what_fits_into_memory() -> None:
    assert Machine.of(platforms.load("rtx-5090"), "bf16").room(1024) == 0
    one = network().kv_bytes(8192)
    assert one / 1e9 == pytest.approx(0.38, abs=0.005)
    h100 = Machine.of(platforms.load("h100"), "fp8")
    assert h100.room(8192) == int((85_520_809_984 - 26_085_610_104) // one)


def test_an_own_platform_is_a_file(tmp_path: Path) -> None:
    shipped = Path(platforms.__file__).with_name("h100.toml").read_text()
    mine = tmp_path / "mine.toml"
    mine.write_text(shipped.replace("watts = 700", "watts = 350"))
    assert (platforms.load(str(mine)).key, platforms.load(str(mine)).watts) == ("mine", 350)
    mine.write_text(shipped.replace("watts = 700", "watts = -1"))
    with pytest.raises(InputError, match="watts"):
        platforms.load(str(mine))


@pytest.mark.parametrize("name", ["h300", "h100-nvfp4", "h100-fp7"])
def test_a_platform_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"^platform: "):
        Machine.named(name)
