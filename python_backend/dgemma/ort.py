"""onnxruntime, which reports nothing to its maker: it would, unless told so before it is loaded."""

from __future__ import annotations

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

__all__ = ["ort"]
