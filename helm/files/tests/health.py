"""The service lives and is ready."""

from __future__ import annotations

import json

from asking import failed, text

for what, expected in (("live", "live"), ("ready", "ready")):
    found = json.loads(text(f"/v1/health/{what}"))
    if found["status"] != expected:
        failed(f"/v1/health/{what}: {found}")
    print(f"{what}: {found['message']}")
