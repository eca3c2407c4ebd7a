"""What is served has the precision that was asked for, and is no replacement."""

from __future__ import annotations

import json
import os
import re

from asking import failed, text

page = text("/v1/metrics")


def labels(name: str) -> dict[str, str]:
    """Those of the one sample of a metric whose value is 1."""
    found = re.search(rf"^{name}\{{(.*)\}} 1(\.0*)?$", page, re.MULTILINE)
    if found is None:
        failed(f"/v1/metrics has no {name} of 1")
    return dict(re.findall(r'(\w+)="([^"]*)"', found[1]))


engine, profile = labels("dgemma_engine_info"), labels("dgemma_profile_info")
expected = os.environ["TEST_PRECISION"]
if expected and engine["precision"] != expected:
    failed(f"precision {engine['precision']} is served, {expected} was asked for")
if profile["fell_back"] != "false":
    failed(f"{profile['profile']} is served in place of a better one: see the service's log")
if engine["simulated"] != "false":
    failed(f"it is simulated: {engine['simulated']}")
selected = json.loads(text("/v1/metadata"))["selectedModelProfileId"]
if selected != profile["id"]:
    failed(f"/v1/metadata says {selected!r}, the metrics {profile['id']!r}")
print(f"profile {profile['profile']}, engine {engine['verification']}")
