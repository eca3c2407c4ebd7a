"""What the chart tells the service: variables that it knows, and times that go together."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgemma.front.settings import FrontSettings
from dgemma.health_check import PATH
from dgemma.settings import Settings
from dgemma.supervisor.configuration import read
from dgemma.supervisor.machine import Policy
from dgemma.supervisor.settings import SupervisorSettings
from tests.helm.releases import component_of, containers, environment, of_kind, one, pods, release
from tests.helm.sdk import CHART, Object
from tests.helm.variants import REVISION, VARIANTS

every_variant = pytest.mark.parametrize("variant", VARIANTS)
OURS = ("NIM_", "DGEMMA_")


def server(variant: str) -> Object:
    pod = one(release(variant), "Deployment", "server")["spec"]["template"]
    [container] = pod["spec"]["containers"]
    return container


@every_variant
def test_every_variable_is_one_that_the_service_reads(variant: str) -> None:
    for name, pod in pods(release(variant)):
        if component_of(pod) in ("baseline", "test"):
            assert not [v for c in containers(pod) for v in environment(c) if v.startswith(OURS)]
            continue
        for container in containers(pod):
            assert read((), None, environment(container)).unknown == (), name


@every_variant
def test_no_variable_is_set_twice(variant: str) -> None:
    for _, pod in pods(release(variant)):
        for container in containers(pod):
            assert len(environment(container)) == len(container.get("env", []))


@every_variant
def test_the_values_are_ones_that_the_service_takes(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but those that name files, which are not here."""
    for name, value in environment(server(variant)).items():
        if name.startswith(OURS) and not value.startswith("/"):
            monkeypatch.setenv(name, value)
    monkeypatch.delenv("NIM_SSL_MODE", raising=False)
    monkeypatch.setenv("DGEMMA_CHECKPOINT", str(tmp_path))
    monkeypatch.setenv("NIM_MODEL_PATH", str(tmp_path))
    for settings in (Settings, SupervisorSettings, FrontSettings):
        settings.load()


@every_variant
def test_there_is_time_to_start(variant: str) -> None:
    container = server(variant)
    probe = container["startupProbe"]
    limit_s = int(environment(container)["DGEMMA_START_TIMEOUT_S"])
    assert probe["failureThreshold"] * probe["periodSeconds"] >= limit_s + 60
    spec = one(release(variant), "Deployment", "server")["spec"]
    assert spec["progressDeadlineSeconds"] >= limit_s + 600
    if variant.startswith(("h100", "dgx")):
        assert limit_s >= 900, "kernels are compiled at the first start"


@every_variant
def test_there_is_time_to_drain(variant: str) -> None:
    container = server(variant)
    told = environment(container)
    [sleep, seconds] = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    spec = one(release(variant), "Deployment", "server")["spec"]["template"]["spec"]
    needed = (
        int(seconds)
        + float(told["DGEMMA_DRAIN_DELAY_S"])
        + int(told["DGEMMA_DRAIN_TIMEOUT_S"])
        + Policy().grace_s
    )
    assert spec["terminationGracePeriodSeconds"] > needed


@every_variant
def test_a_pod_is_off_the_lists_before_it_takes_no_more_requests(variant: str) -> None:
    container = server(variant)
    probe = container["readinessProbe"]
    seconds = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert seconds >= probe["periodSeconds"] * probe["failureThreshold"]


def test_readiness_is_asked_for_where_the_image_asks_for_it() -> None:
    assert server("h100 single-tenant")["readinessProbe"]["httpGet"]["path"] == PATH


@every_variant
def test_the_engine_is_built_for_what_is_served(variant: str) -> None:
    told = environment(server(variant))
    for _, pod in pods(release(variant)):
        for container in containers(pod):
            if container["name"] != "engine":
                continue
            asked = dict(
                argument.removeprefix("--").split("=", 1) for argument in container["command"][2:]
            )
            assert container["command"][:2] == ["dgemma-build", "ensure"]
            assert asked["store"] == told["NIM_CACHE_PATH"]
            assert asked["target"] == "auto"
            if "NIM_MODEL_PROFILE" not in told:
                assert asked["precision"] == told["DGEMMA_PREFERRED_PROFILE"]
            alike = environment(container)
            assert {name: told[name] for name in alike if name.startswith(OURS)} == {
                name: value for name, value in alike.items() if name.startswith(OURS)
            }


@pytest.mark.parametrize(
    ("variant", "checkpoint"),
    [
        ("h100 single-tenant", None),
        ("pinned", f"/opt/nim/.cache/checkpoint/{REVISION}"),
        ("air-gapped", "/models/checkpoint"),
        ("filled store", None),
        ("cpu-demo single-tenant", "/opt/nim/demo"),
    ],
)
def test_the_checkpoint_is_the_pinned_one_or_the_directory_or_the_store_s_own(
    variant: str, checkpoint: str | None
) -> None:
    assert environment(server(variant)).get("DGEMMA_CHECKPOINT") == checkpoint


@pytest.mark.parametrize(("variant", "offline"), [("air-gapped", True), ("pinned", False)])
def test_nobody_asks_the_hub_where_there_is_none(variant: str, offline: bool) -> None:
    pod = one(release(variant), "Deployment", "server")["spec"]["template"]
    for container in containers(pod):
        assert (environment(container).get("HF_HUB_OFFLINE") == "1") is offline


@every_variant
def test_tests_ask_where_the_service_listens(variant: str) -> None:
    tests = of_kind(release(variant), "Pod", "test")
    suspended = one(release(variant), "Deployment", "server")["spec"].get("replicas") == 0
    assert bool(tests) != suspended
    service = one(release(variant), "Service", "server")
    for pod in tests:
        [container] = pod["spec"]["containers"]
        told = environment(container)
        host = f"{service['metadata']['name']}.space.svc"
        scheme = "http" if "TEST_CA" not in told else "https"
        assert told["TEST_HTTP"] == f"{scheme}://{host}:8000"
        assert told["TEST_GRPC"] == f"{host}:8001"
        script = Path(container["command"][1])
        assert script.parent == Path("/tests")
        assert (CHART / "files" / "tests" / script.name).is_file()
        assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"


def test_every_script_is_run_by_a_test() -> None:
    scripts = {path.stem for path in (CHART / "files" / "tests").glob("*.py")} - {"asking"}
    run = {
        Path(pod["spec"]["containers"][0]["command"][1]).stem
        for pod in of_kind(release("h100 single-tenant"), "Pod", "test")
    }
    assert run == scripts


def test_without_a_key_tests_do_not_ask_tenants_services_for_text() -> None:
    def names(variant: str) -> set[str]:
        found = of_kind(release(variant), "Pod", "test")
        return {pod["metadata"]["name"].rpartition("-")[2] for pod in found}

    assert names("h100 multi-tenant") == {"health", "metrics", "served"}
    assert names("everything") == {"health", "metrics", "served", "generation", "chat"}
