from __future__ import annotations

from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from dgemma.geometries import DEFAULT, named_geometry
from dgemma.roofline.platform import Platform
from dgemma_loadtest import about, platforms, simulate
from dgemma_loadtest.errors import InputError
from dgemma_loadtest.evaluate import runs
from dgemma_loadtest.report.run_page import report
from dgemma_loadtest.run_file import Server
from dgemma_loadtest.simulate import Simulated, service
from tests.loadtest import modelled_run


def wanted(platform: str, checkpoint: str = "build/demo") -> Simulated:
    return Simulated(platform, Path(checkpoint), Path("model_repository"))


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("h100", "h100-fp8-h200"),
        ("h200", "h200-fp8-h200"),
        ("dgx-spark", "dgx-spark-nvfp4-h200"),
        ("dgx-spark-fp8", "dgx-spark-fp8-h200"),
        ("h100-fp8-goal", "h100-fp8-goal"),
    ],
)
def test_a_platform_is_named_as_the_service_knows_it(asked: str, name: str) -> None:
    assert wanted(asked).name() == name
    assert Platform.named(name, named_geometry(DEFAULT)).name == name


def test_its_report_says_what_was_simulated(tmp_path: Path) -> None:
    asked = wanted("dgx-spark")
    assert asked.about() == {
        "platform": "dgx-spark-nvfp4-h200",
        "precision": "nvfp4",
        "hardware": "none: simulated dgx-spark-nvfp4-h200",
    }
    made = modelled_run.sweep(tmp_path / "run", server=Server("triton"))
    about.add(made, asked.about() | about.parse(["driver=580.1"]))
    page = report(made).path.read_text()
    assert "none: simulated dgx-spark-nvfp4-h200" in page and "580.1" in page
    assert {cell.platform for cell in runs.cells(made)} == {"dgx-spark"}


@pytest.mark.parametrize("text", ["driver", "serial=1", "driver="])
def test_what_nobody_asks_about_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^about: got .* allowed: KEY=VALUE with platform"):
        about.parse([text])


@pytest.mark.parametrize("name", platforms.shipped())
def test_the_service_knows_every_platform(name: str) -> None:
    Platform.named(wanted(name).name(), named_geometry(DEFAULT))


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "_program", lambda: "nim-serve")
    with (
        pytest.raises(InputError, match="checkpoint: there is no directory"),
        service(wanted("h100", str(tmp_path / "none")), tmp_path),
    ):
        pass


def test_a_service_that_ends_at_once_is_an_error_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "serve"
    program.write_text("#!/bin/sh\necho no room here\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(simulate, "_program", lambda: str(program))
    asked = Simulated("h100", tmp_path, tmp_path)
    with pytest.raises(InputError, match="no room here"), service(asked, tmp_path / "scratch"):
        pass


def test_an_endpoint_for_the_baseline_starts_and_ends(tmp_path: Path) -> None:
    with (
        simulate.baseline(wanted("h100-fp8-goal").machine(), tmp_path) as url,
        urlopen(f"{url}/v1/models") as answer,
    ):
        assert b"simulated-autoregressive-h100-fp8" in answer.read()
    with pytest.raises(URLError):
        urlopen(f"{url}/v1/models")
