"""Which tensors of a quantised checkpoint stand for which parameters, and what is wrong with them.

Knows names, dtypes and shapes, from the files' headers alone, so that a checkpoint is refused
before anything is written; reads no contents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from dgemma.errors import ConfigurationError
from dgemma.model.checkpoint import DECODER, VISION, hf_name
from dgemma.precision import DENSE, EXPERTS, FORMATS, Policy, tensors
from dgemma_build.quantize.layouts import Layout
from dgemma_build.quantize.matrices import Matrix, matrices
from dgemma_build.quantize.reader import Entry, is_float

# Scales of a quantised KV cache; this software keeps K and V in BF16.
_KV_SCALE = re.compile(r"\.self_attn\.(?:[kv]_proj\.)?[kv]_scale$")


@dataclass(frozen=True)
class Inventory:
    """What was found: names as they should be -> names as they are, and what is quantised."""

    names: Mapping[str, str]
    policy: Policy

    @classmethod
    def of(
        cls,
        directory: Path,
        entries: Mapping[str, Entry],
        shapes: Mapping[str, tuple[int, ...]],
        layout: Layout,
    ) -> Inventory:
        """Raises ConfigurationError naming the tensors at fault."""
        search = _Search(directory, _canonical(directory, entries), entries, layout)
        quantized = [name for name, shape in shapes.items() if search.parameter(name, shape)]
        search.finish()
        return cls(search.names, _policy(shapes, quantized, layout.format))

    def tensor(self, matrix: Matrix, suffix: str) -> str:
        """The checkpoint's name of a quantised layer's tensor."""
        return self.names[_tensor(matrix, suffix)]


class _Search:
    """Goes through the parameters and notes what is used, missing, left in BF16 or misshapen."""

    def __init__(
        self, directory: Path, names: dict[str, str], entries: Mapping[str, Entry], layout: Layout
    ) -> None:
        self.directory = directory
        self.names = names
        self.entries = entries
        self.layout = layout
        self.used: set[str] = set()
        self.missing: list[str] = []
        self.plain_experts: list[str] = []

    def parameter(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether it is quantised."""
        if _matches(name, EXPERTS):
            self._bank(name, shape)
            return True
        if _matches(name, DENSE):
            (matrix,) = matrices(name, shape)
            if self._is_quantized(matrix):
                self._take(matrix)
                return True
        self._expect(hf_name(name), [shape])
        return False

    def _bank(self, name: str, shape: tuple[int, ...]) -> None:
        fused = hf_name(name)
        if fused in self.names:
            if not is_float(self._entry(fused)):
                raise self._wrong_dtype(fused, "quantised experts to be split one by one")
            self.used.add(fused)
            self.plain_experts.append(self.names[fused])
            return
        for matrix in matrices(name, shape):
            payload, plain = _tensor(matrix, self.layout.payload), _tensor(matrix, "weight")
            if self._is_quantized(matrix):
                self._take(matrix)
            elif plain in self.names and is_float(self._entry(plain)):
                self.used.add(plain)
                self.plain_experts.append(self.names[plain])
            elif payload in self.names:
                raise self._wrong_dtype(payload, FORMATS[self.layout.format].payload)
            else:
                self.missing.append(payload)

    def _is_quantized(self, matrix: Matrix) -> bool:
        payload = _tensor(matrix, self.layout.payload)
        wanted = FORMATS[self.layout.format].payload
        return payload in self.names and self._entry(payload).spec.dtype == wanted

    def _take(self, matrix: Matrix) -> None:
        """The payload and every scale of a quantised layer."""
        format, layout = FORMATS[self.layout.format], self.layout
        payload, *scales = tensors(format, matrix.module, (matrix.rows, matrix.columns)).values()
        self._expect(_tensor(matrix, layout.payload), [payload.shape], payload.dtype)
        one: list[tuple[int, ...]] = [(), (1,)]
        rows = [(matrix.rows, 1), (matrix.rows,), *one]
        if layout.block_scale is not None:
            block = scales[0]
            self._expect(_tensor(matrix, layout.block_scale), [block.shape], block.dtype)
            rows = one
        self._expect(_tensor(matrix, layout.row_scale), rows)
        name = _tensor(matrix, layout.input_scale)
        if layout.static_activations:
            self._expect(name, one)
        self.used.add(name)

    def _expect(self, name: str, shapes: list[tuple[int, ...]], dtype: str | None = None) -> None:
        """Note a tensor as used or missing; without a dtype it may be any float."""
        if name not in self.names:
            self.missing.append(name)
            return
        self.used.add(name)
        spec = self._entry(name).spec
        if not (is_float(self._entry(name)) if dtype is None else spec.dtype == dtype):
            raise self._wrong_dtype(name, dtype or "F32, BF16 or F16")
        if spec.shape not in shapes:
            raise ConfigurationError(
                f"{self.directory}: tensor {self.names[name]} has shape {list(spec.shape)}, "
                f"config.json and {self.layout.name} imply {list(shapes[0])}"
            )

    def finish(self) -> None:
        """Refuse the checkpoint for what was noted; the most telling reason first."""
        if self.plain_experts:
            raise ConfigurationError(
                f"{self.directory}: claims to be {self.layout.name}, but left its experts as they "
                f"were: {_some(self.plain_experts)}; quantise the BF16 checkpoint instead"
            )
        if self.missing:
            raise ConfigurationError(
                f"{self.directory}: missing tensors: {_some(self.missing)}; "
                "without them a layer has no meaning: download the checkpoint again"
            )
        unknown = [actual for name, actual in self.names.items() if name not in self.used]
        if unknown:
            raise ConfigurationError(f"{self.directory}: unknown tensors: {_some(sorted(unknown))}")

    def _entry(self, name: str) -> Entry:
        return self.entries[self.names[name]]

    def _wrong_dtype(self, name: str, wanted: str) -> ConfigurationError:
        got = self._entry(name).spec.dtype
        return ConfigurationError(
            f"{self.directory}: tensor {self.names[name]} is {got}, expected {wanted}"
        )


def _canonical(directory: Path, entries: Mapping[str, Entry]) -> dict[str, str]:
    """Names as Hugging Face would have them -> names in the files, without what is left out."""
    names: dict[str, str] = {}
    for actual in entries:
        if actual.startswith(VISION) or _KV_SCALE.search(actual):
            continue
        name = actual.replace(".moe.experts.", ".experts.", 1)
        if name in names:
            raise ConfigurationError(
                f"{directory}: two tensors for one weight: {names[name]}, {actual}"
            )
        names[name] = actual
    return names


def _policy(shapes: Mapping[str, object], quantized: list[str], format: str) -> Policy:
    """Patterns where all that match are quantised, names where only some are."""
    rules = []
    for pattern in EXPERTS + DENSE:
        matching = {name for name in shapes if fnmatchcase(name, pattern)}
        mine = [name for name in quantized if name in matching]
        rules += [pattern] if mine and len(mine) == len(matching) else mine
    return Policy(tuple((pattern, format) for pattern in rules), "bf16")


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _tensor(matrix: Matrix, suffix: str) -> str:
    return f"{DECODER}{matrix.module}.{suffix}"


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
