"""What NIM's clients may ask about the service: version, licence, metadata, manifest.

Knows these objects and where their content is; knows nothing of requests for text.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from dgemma import __version__
from dgemma.cli_profiles import look
from dgemma.errors import ConfigurationError
from dgemma.front.errors import HttpError
from dgemma.front.metrics import label
from dgemma.machine import Machine
from dgemma.manifest import FILE_NAME

API_VERSION = "1.0.0"
PROFILE = "dgemma_profile_info"
_LICENSE = Path(__file__).with_name("LICENSE.txt")


def version() -> dict[str, str]:
    return {"release": __version__, "api": API_VERSION}


@cache
def license_info() -> dict[str, Any]:
    content = _LICENSE.read_text(encoding="utf-8")
    return {
        "name": _LICENSE.name,
        "path": str(_LICENSE),
        "sha": hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest(),
        "size": len(content),
        "url": "https://www.apache.org/licenses/LICENSE-2.0",
        "type": "file",
        "content": content,
    }


def metadata(names: list[str], page: str) -> dict[str, Any]:
    """`page` are Triton's metrics, which say what is served; "" where there are none."""

    def said(metric: str, name: str) -> str:
        return label(page, metric, name) or ""

    return {
        "assetInfo": [],
        "licenseInfo": license_info(),
        "modelInfo": [{"modelUrl": "", "shortName": name} for name in names],
        "repository_override": "",
        "version": __version__,
        "selectedModelProfileId": said(PROFILE, "id"),
        "dgemma": {
            "profile": said(PROFILE, "profile"),
            "wantedProfile": said(PROFILE, "wanted"),
            "fellBack": said(PROFILE, "fell_back") == "true",
            "verification": said("dgemma_engine_info", "verification"),
        },
    }


def manifest(root: Path) -> dict[str, str]:
    """The manifest of an engine directory, or what a model store holds; JSON, which is YAML.

    Raises HttpError where neither is there.
    """
    try:
        if (root / FILE_NAME).is_file():
            text = (root / FILE_NAME).read_text(encoding="utf-8")
        else:
            text = json.dumps(look(root, Machine.here()).to_json())
    except (OSError, ConfigurationError):
        raise HttpError(
            404, "the front does not know what is served: NIM_MODEL_PATH is not set for it"
        ) from None
    return {"manifest_file": text, "repository": ""}
