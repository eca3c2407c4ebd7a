"""The endpoints that say something of the service, against their schemas."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import grpc
import httpx2
import pytest
from pydantic import BaseModel, ConfigDict

from dgemma import __version__
from dgemma.front.info import license_info, manifest
from dgemma.front.metrics import label
from dgemma.front.server import running
from dgemma.front.settings import FrontSettings
from tests.dgemma.fake_triton import FakeTriton, answer, failure, inputs
from tests.dgemma.front.conftest import Stage
from tests.dgemma.front.replies import COMPLETIONS
from tests.dgemma.profiles.stores import write_engine

REPOSITORY = Path(__file__).resolve().parents[3]
TRITON_METRICS = (
    "# TYPE nv_inference_count counter\n"
    'nv_inference_count{model="diffusion_gemma",version="1"} 5\n'
    'dgemma_profile_info{fell_back="true",id="abc123",profile="cpu",wanted="gpu"} 1.000000\n'
    'dgemma_engine_info{profile="cpu",verification="measured"} 1.000000\n'
)


class Strict(BaseModel):
    """Exactly these fields, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Model(Strict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str


class Models(Strict):
    object: Literal["list"]
    data: list[Model]


class Health(Strict):
    object: Literal["health.response"]
    message: str
    status: str


class Version(Strict):
    release: str
    api: str


class License(Strict):
    name: str
    path: str
    sha: str
    size: int
    url: str
    type: Literal["file"]
    content: str


class ModelInfo(Strict):
    modelUrl: str
    shortName: str


class Profile(Strict):
    profile: str
    wantedProfile: str
    fellBack: bool
    verification: str


class Metadata(Strict):
    assetInfo: list[str]
    licenseInfo: License
    modelInfo: list[ModelInfo]
    repository_override: str
    version: str
    selectedModelProfileId: str
    dgemma: Profile


class Manifest(Strict):
    manifest_file: str
    repository: str


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/v1/models", Models),
        ("/v1/models/other/name", Model),
        ("/v1/health/live", Health),
        ("/v1/health/ready", Health),
        ("/v1/version", Version),
        ("/v1/license", License),
        ("/v1/metadata", Metadata),
    ],
)
def test_every_endpoint_keeps_to_its_schema(
    http: httpx2.Client, path: str, schema: type[BaseModel]
) -> None:
    answered = http.get(path)
    assert answered.status_code == 200
    schema.model_validate_json(answered.text)


def test_the_openapi_document_names_every_endpoint(http: httpx2.Client) -> None:
    document = http.get("/openapi.json").json()
    chat = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    schema = chat["content"]["application/json"]["schema"]
    assert {"messages", "tools", "max_denoising_steps", "canvas_template"} <= set(
        schema["properties"]
    )
    assert {"/v1/completions", "/v1/infill", "/v1/models", "/v1/metrics"} <= set(document["paths"])


def test_the_model_has_the_names_that_the_operator_gave_it(http: httpx2.Client) -> None:
    assert [m["id"] for m in http.get("/v1/models").json()["data"]] == ["diffusion", "other/name"]
    assert http.get("/v1/models/gpt").status_code == 404
    refused = http.post(COMPLETIONS, json={"prompt": "p", "model": "gpt"})
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"
    assert "diffusion, other/name" in refused.json()["error"]["message"]


def test_the_licence_is_that_of_the_repository() -> None:
    assert license_info()["content"] == (REPOSITORY / "LICENSE").read_text()


def test_an_engine_s_manifest_is_given_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"target": "cpu"}')
    assert json.loads(manifest(tmp_path)["manifest_file"]) == {"target": "cpu"}


def test_a_model_store_s_manifest_lists_its_profiles(tmp_path: Path) -> None:
    write_engine(tmp_path / "a")
    write_engine(tmp_path / "b", "int4")
    listed = json.loads(Manifest(**manifest(tmp_path)).manifest_file)
    assert {profile["name"] for profile in listed["profiles"]} == {
        "onnxruntime-cpu-fp32-tp1-pp1",
        "onnxruntime-cpu-int4-tp1-pp1",
    }


def test_without_a_model_there_is_no_manifest(http: httpx2.Client) -> None:
    answered = http.get("/v1/manifest")
    assert answered.status_code == 404
    assert "NIM_MODEL_PATH" in answered.json()["error"]["message"]


# Health and metrics


@contextmanager
def front(triton_url: str, metrics_url: str = "http://127.0.0.1:1/m") -> Iterator[httpx2.Client]:
    settings = FrontSettings.load(
        triton_url=triton_url,
        triton_metrics_url=metrics_url,
        host="127.0.0.1",
        port=0,
        ready_cache_s=0.0,
    )
    with running(settings) as server, httpx2.Client(base_url=server.url) as http:
        yield http


def test_readiness_is_a_real_inference_and_liveness_is_not() -> None:
    with FakeTriton(answer) as fake, front(fake.url) as http:
        assert http.get("/v1/health/live").status_code == 200
        assert fake.requests == []
        ready = http.get("/v1/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert json.loads(inputs(fake.requests[0])["sampling_parameters"])["max_new_tokens"] == 1
        fake.script = failure(grpc.StatusCode.UNAVAILABLE, "the engine is dead")
        ready = http.get("/v1/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
        assert ready.json()["message"] == "the engine is dead"
        assert http.get("/v1/health/live").status_code == 200


@contextmanager
def triton_metrics() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(TRITON_METRICS.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join()


def test_the_metrics_are_triton_s_and_our_own() -> None:
    with triton_metrics() as url, front("127.0.0.1:1", url) as http:
        http.get("/v1/version")
        page = http.get("/v1/metrics")
        metadata = http.get("/v1/metadata").json()
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert TRITON_METRICS in page.text
    assert 'dgemma_http_requests_total{endpoint="/v1/version",status="200"} 1\n' in page.text
    assert "dgemma_http_triton_metrics_up 1\n" in page.text
    assert "dgemma_ready 0\n" in page.text
    assert metadata["selectedModelProfileId"] == "abc123"
    assert metadata["dgemma"] == {
        "profile": "cpu",
        "wantedProfile": "gpu",
        "fellBack": True,
        "verification": "measured",
    }


def test_without_triton_s_metrics_there_are_ours(http: httpx2.Client, stage: Stage) -> None:
    page = http.get("/v1/metrics").text
    assert "dgemma_http_triton_metrics_up 0\n" in page
    assert "dgemma_ready 1\n" in page


def test_a_label_is_found_by_its_name() -> None:
    assert label(TRITON_METRICS, "dgemma_profile_info", "profile") == "cpu"
    assert label(TRITON_METRICS, "dgemma_profile_info", "none") is None
    assert label(TRITON_METRICS, "nothing", "id") is None


def test_the_version_is_the_package_s(http: httpx2.Client) -> None:
    assert http.get("/v1/version").json()["release"] == __version__
