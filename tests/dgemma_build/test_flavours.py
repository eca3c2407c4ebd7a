from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

import dgemma_build.flavours
from dgemma.errors import ConfigurationError
from dgemma_build.flavours import FLAVOURS
from tests.dgemma_build import fake_tensorrt

RTX, TENSORRT = FLAVOURS["tensorrt_rtx"], FLAVOURS["tensorrt"]


class Config:
    """What TensorRT for RTX documents of aiming a build."""

    def __init__(self, accepts: bool = True) -> None:
        self.num_compute_capabilities, self.targets, self.accepts = 0, {}, accepts

    def set_compute_capability(self, compute_capability: int, index: int) -> bool:
        assert 0 <= index < self.num_compute_capabilities
        self.targets[index] = compute_capability
        return self.accepts


@pytest.fixture
def rtx() -> Any:
    members = {"NONE": 0, "CURRENT": 1, "SM89": 89, "SM121": 121}
    return SimpleNamespace(
        __version__="1.7", ComputeCapability=SimpleNamespace(__members__=members)
    )


def test_rtx_is_told_which_gpu_to_compile_for(rtx: Any) -> None:
    config = Config()
    RTX.aim(rtx, config, "12.1")
    assert config.targets == {0: 121}


def test_rtx_says_which_gpus_it_knows(rtx: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"does not compile for SM90.*SM89, SM121$"):
        RTX.aim(rtx, Config(), "9.0")
    with pytest.raises(ConfigurationError, match="refused to target SM89"):
        RTX.aim(rtx, Config(accepts=False), "8.9")


@pytest.mark.parametrize("capability", ["9.0", "10.0", "10.3"])
def test_tensorrt_compiles_only_where_the_gpu_is(
    capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = fake_tensorrt.IBuilderConfig()
    monkeypatch.setattr(dgemma_build.flavours, "_device_capability", lambda: capability)
    TENSORRT.aim(fake_tensorrt, config, capability)
    monkeypatch.setattr(dgemma_build.flavours, "_device_capability", lambda: "8.0")
    with pytest.raises(ConfigurationError, match=rf"8\.0, not for {capability}"):
        TENSORRT.aim(fake_tensorrt, config, capability)


def test_tensorrt_says_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigurationError, match=r"\(no GPU\), not for 9\.0"):
        TENSORRT.aim(fake_tensorrt, fake_tensorrt.IBuilderConfig(), "9.0")


def test_a_gpus_capability_is_written_with_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (10, 3))
    TENSORRT.aim(fake_tensorrt, fake_tensorrt.IBuilderConfig(), "10.3")


@pytest.mark.parametrize("flavour", FLAVOURS.values(), ids=list(FLAVOURS))
def test_a_missing_installation_says_what_to_do(
    flavour: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, flavour.name, None)
    with pytest.raises(ConfigurationError, match=rf"{flavour.name} does not import: .*; \w+"):
        flavour.load()
    monkeypatch.setitem(sys.modules, flavour.name, fake_tensorrt)
    assert flavour.load() is fake_tensorrt
