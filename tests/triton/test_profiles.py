"""A server whose preferred engine is damaged serves the next one, and says so."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

from dgemma.client import generate
from tests.dgemma.profiles.stores import flip
from tests.model_store import ModelStore
from tests.triton.servers import serving


def test_a_damaged_engine_is_passed_over_and_the_log_and_the_metrics_say_so(
    model_store: ModelStore, model_repository: Path, tmp_path: Path
) -> None:
    store = model_store.copy(tmp_path / "store")
    flip(store.fp32 / "weights.safetensors")
    with serving(model_repository, store.environment(), tmp_path / "log") as serve:
        url = serve.wait_until_ready()
        assert generate("hi", url=url, max_new_tokens=8).usage["completion_tokens"] > 0
        [said] = re.findall(r"profile_selected (\{.*\})", serve.output)
        [missed] = json.loads(said)["fell_back_from"]
        assert missed["name"] == "onnxruntime-cpu-fp32-tp1-pp1"
        assert "weights.safetensors: its content has changed" in missed["reason"]
        [metrics] = re.findall(r"metrics (http\S+/metrics)", serve.output)
        with urllib.request.urlopen(metrics, timeout=20) as page:
            lines = [x for x in page.read().decode().splitlines() if "dgemma_profile_info{" in x]
        [line] = lines
        assert 'profile="onnxruntime-cpu-int4-tp1-pp1"' in line and 'fell_back="true"' in line
        assert line.endswith(" 1")
