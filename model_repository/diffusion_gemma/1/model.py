"""The model as Triton's Python backend loads it; everything is done in `dgemma.triton_model`."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from dgemma import triton_model


class TritonPythonModel:
    """Decoupled: responses to a request come while and after `execute` returns."""

    def initialize(self, args: dict[str, str]) -> None:
        self._model = triton_model.start(pb_utils)

    def execute(self, requests: list[Any]) -> None:
        self._model.execute(requests)

    def finalize(self) -> None:
        self._model.finalize()
