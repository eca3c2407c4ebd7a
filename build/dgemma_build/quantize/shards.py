"""The files of a store: which parameters each holds, and how one is written.

Knows that rows arrive for several tensors at once and where each goes; knows nothing of formats'
rounding or of checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from dgemma.precision import Policy, TensorSpec
from dgemma.sealed import FileRecord
from dgemma_build.quantize.source import Source
from dgemma_build.store import layout, raw

REST = "rest.safetensors"

Shard = dict[str, TensorSpec]  # tensor name -> spec, in the order of the file


def shards(policy: Policy, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Shard]:
    """File name -> its tensors: a file per layer, then one for what belongs to none.

    The widest elements come first, so that every tensor is aligned to its own.
    """
    files: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        files.setdefault(_file(name), {})[name] = shape
    return {
        file: dict(sorted(policy.tensors(mine).items(), key=lambda item: -_width(item[1])))
        for file, mine in sorted(files.items())
    }


def write_shard(
    path: Path,
    shard: Shard,
    parameters: list[str],
    source: Source,
    advance: Callable[[int], None],
) -> FileRecord:
    """Write `path` from the rows of `parameters`; `advance` is told bytes as they are written.

    It is under its name only when it is whole.
    """
    places, header = layout(shard)
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("wb") as file:
            file.write(header)
            done = dict.fromkeys(shard, 0)
            for parameter in parameters:
                for rows in source.rows(parameter):
                    for suffix, tensor in rows.items():
                        name, data = parameter + suffix, raw(tensor)
                        file.seek(places[name].offset + done[name])
                        file.write(data)
                        done[name] += len(data)
                        advance(len(data))
        short = [name for name, size in done.items() if size != places[name].length]
        assert not short, f"not all rows came of {short}"
        record = FileRecord.of(temporary)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    return record


def _file(parameter: str) -> str:
    layer = re.match(r"layers\.(\d+)\.", parameter)
    return f"layer-{int(layer[1]):02}.safetensors" if layer else REST


def _width(spec: TensorSpec) -> int:
    return spec.torch_dtype.itemsize
