"""`make image-check`: the image for CPUs, built and served from where no registry can be reached.

Knows what is promised of the image; how it is built and run is `images`' and `container`'s.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import typer
from rich.console import Console

from dgemma.client import Client, ClientError
from tests.accept.container import Container, Mount, config_command
from tests.accept.images import IMAGE, Store, build, make_base, missing, pip_configuration
from tests.accept.main_job import Line, table
from tests.bench.__main__ import WIDTH

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE, ENGINE, CHECKPOINT = "/opt/nim/.cache", "/opt/nim/engine", "/opt/nim/checkpoint"
PORTS = ("NIM_HTTP_API_PORT", "NIM_TRITON_GRPC_PORT", "NIM_TRITON_METRICS_PORT")
ASK = [{"role": "user", "content": "count from 42"}]
READY_S, STOP_S = 120.0, 60.0
# Directories that the user may write to, and the capabilities of every process.
_WRITABLE = "find / -xdev -path /proc -prune -o -type d -writable -print; find {} -writable -type d"
_RIGHTS = "grep -hE '^(Uid|Gid|CapPrm|CapBnd|NoNewPrivs):' /proc/[0-9]*/status | sort -u"


def built(store: Store) -> Iterator[Line]:
    """The base and the image itself."""
    began = time.monotonic()
    make_base(store, store.directory / "debootstrap.log")
    yield Line("base, made with debootstrap", f"{time.monotonic() - began:.0f} s", "")
    began = time.monotonic()
    build(store, REPOSITORY, store.directory / "build.log")
    yield Line("image built", f"{time.monotonic() - began:.0f} s", "")


def contents(root: Path, config: dict[str, Any], inspected: str) -> Iterator[Line]:
    """What is in the image, and what must not be."""
    base = sum(_size(root / part) for part in ("usr", "var", "etc"))
    ours = _size(root / "opt")
    yield Line("size", f"{(base + ours) / 1e6:.0f} MB, /opt/dgemma {ours / 1e6:.0f} MB of it", "")
    names = {
        path.name.split("-")[0] for path in root.glob("opt/dgemma/lib/*/site-packages/*.dist-info")
    }
    tools = sorted(names & {"pip", "hatchling", "editables", "pytest", "mypy", "transformers"})
    places = ("wheels", "src", "tools", "root/.cache", "tmp", "var/lib/apt/lists", "var/cache/apt")
    found = (path for place in places for path in (root / place).rglob("*") if path.is_file())
    files = [str(path.relative_to(root)) for path in found]
    yield Line("build leftovers", str([*tools, *files] or "none"), "none", not (tools or files))
    pip = pip_configuration()
    words = {
        word for part in pip.sections() for _, value in pip.items(part) for word in value.split()
    }
    told = sorted(word for word in words if "/" in word and word in inspected)
    conf = root / "etc/pip.conf"
    if conf.exists() and conf.stat().st_size:
        told.append("/etc/pip.conf")
    yield Line("this machine's pip configuration in it", str(told or "none"), "none", not told)
    weights = [str(path.relative_to(root)) for path in root.rglob("*.safetensors")]
    demo = ["opt/nim/demo/model.safetensors"]
    yield Line("weights in it", str(weights or "none"), "the demo's", weights == demo)
    asked = f"user {config['User']}, health {'yes' if config.get('Healthcheck') else 'no'}, ports "
    ports = sorted(config.get("ExposedPorts", {}))
    holds = config["User"] == "1000:1000" and bool(config.get("Healthcheck")) and len(ports) == 3
    yield Line("configuration", asked + " ".join(ports), "1000:1000, yes, 8000 to 8002", holds)


def rights(container: Container) -> Iterator[Line]:
    """As whom the service runs, and where it can write."""
    seen: defaultdict[str, set[str]] = defaultdict(set)
    for line in container.run("sh", "-c", _RIGHTS).stdout.splitlines():
        name, _, values = line.partition(":")
        seen[name] |= set(values.split())
    ids, none = seen["Uid"] | seen["Gid"], {"0" * 16}
    holds = ids == {"1000"} and seen["CapPrm"] == seen["CapBnd"] == none
    holds = holds and seen["NoNewPrivs"] == {"1"}
    text = f"uid and gid {', '.join(sorted(ids))}; capabilities {'none' if holds else seen}"
    yield Line("every process", text, "1000, none", holds)
    places = f"{CACHE} /tmp /dev/shm"
    listed = container.run("sh", "-c", _WRITABLE.format(places)).stdout.split()
    tops = sorted({top for top in listed if not any(_below(top, other) for other in listed)})
    allowed = sorted(places.split())
    yield Line("writable", " ".join(tops), " ".join(allowed), tops == allowed)
    denied = container.run("touch", "/opt/nim/x").stderr.strip()
    read_only = "Read-only file system" in denied
    yield Line("a file in /opt/nim", denied.partition(": ")[2] or "made", "read-only", read_only)


def serves(container: Container, ports: dict[str, int], config: dict[str, Any]) -> Iterator[Line]:
    """From the start of the container to answers over gRPC and HTTP, and its end."""
    began = time.monotonic()
    with Client(f"127.0.0.1:{ports['NIM_TRITON_GRPC_PORT']}") as client:
        answer = _in_time(lambda: client.generate(messages=ASK, seed=7, timeout_s=10), container)
        yield Line("start to the first answer over gRPC", f"{time.monotonic() - began:.1f} s", "")
        right = answer.text.startswith("42 43 44")
        yield Line("the answer", f"{answer.text[:24]!r} …", "counts from 42", right)
    yield from rights(container)
    if "nim-serve" in config_command(config):
        yield from http(container, ports["NIM_HTTP_API_PORT"], config)
    else:
        yield Line("HTTP", "not there: the entry point is not nim-serve", "")
    code, seconds = container.stop(STOP_S)
    yield Line("SIGTERM", f"exit code {code} after {seconds:.1f} s", "0", code == 0)


def http(container: Container, port: int, config: dict[str, Any]) -> Iterator[Line]:
    """The front's readiness, one chat completion, and the image's own health check."""
    url = f"http://127.0.0.1:{port}"
    ready = _in_time(lambda: _get(f"{url}/v1/health/ready"), container)
    yield Line(
        "/v1/health/ready", str(ready.get("status")), "ready", ready.get("status") == "ready"
    )
    body = json.dumps(
        {"model": _get(f"{url}/v1/models")["data"][0]["id"], "messages": ASK, "seed": 7}
    )
    reply = _get(f"{url}/v1/chat/completions", body.encode())
    text = reply["choices"][0]["message"]["content"]
    yield Line(
        "a chat completion", f"{text[:24]!r} …", "counts from 42", text.startswith("42 43 44")
    )
    check = container.run(*config["Healthcheck"]["Test"][1:])
    said = check.stderr.strip().partition("\n")[0] or "healthy"
    yield Line("HEALTHCHECK", f"{check.returncode}: {said}", "0", check.returncode == 0)


def _in_time(ask: Callable[[], Any], container: Container) -> Any:
    """Its first result; until the service is up it is asked again."""
    until = time.monotonic() + READY_S
    while True:
        container.check()
        try:
            return ask()
        except (ClientError, URLError, OSError) as error:
            if time.monotonic() > until:
                raise RuntimeError(f"{error}; its log:\n{container.last_words()}") from None
            time.sleep(0.1)


def _get(url: str, body: bytes | None = None) -> dict[str, Any]:
    request = Request(url, body, {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=30) as reply:
            found: dict[str, Any] = json.load(reply)
            return found
    except HTTPError as error:
        raise URLError(f"{error.code}: {error.read().decode(errors='replace')}") from None


def _below(path: str, other: str) -> bool:
    return path.startswith(other.rstrip("/") + "/")


def _size(top: Path) -> int:
    """Bytes of all files below it; links to one file count once."""
    found = {}
    for directory, _, names in os.walk(top):
        for name in names:
            status = Path(directory, name).lstat()
            found[status.st_ino] = status.st_size
    return sum(found.values())


def _free_ports() -> dict[str, int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    ports = {name: each.getsockname()[1] for name, each in zip(PORTS, sockets, strict=True)}
    for each in sockets:
        each.close()
    return ports


def check(store: Store, engine: Path, checkpoint: Path) -> Iterator[Line]:
    """All lines, in the order in which they are found."""
    yield from built(store)
    config, inspected = store.config(IMAGE), store("inspect", "--type=image", IMAGE)
    root = Path(store("mount", store("from", "--pull=never", IMAGE)))
    yield from contents(root, config, inspected)
    cache = store.directory / "cache"
    cache.mkdir()
    os.chown(cache, 1000, 1000)
    ports = _free_ports()
    env = {
        "NIM_MODEL_PATH": ENGINE,
        "DGEMMA_CHECKPOINT": CHECKPOINT,
        "DGEMMA_HOST": "127.0.0.1",
        **{name: str(port) for name, port in ports.items()},
    }
    mounts = [Mount(cache, CACHE, True), Mount(engine, ENGINE), Mount(checkpoint, CHECKPOINT)]
    log = store.directory / "service.log"
    with Container(root, config, env=env, mounts=mounts, log=log) as container:
        yield from serves(container, ports, config)
    kept = [str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()]
    yield Line("written to the cache", str(kept or "nothing"), "nothing", not kept)


def main(
    engine: Annotated[Path, typer.Option(help="Engine directory.")],
    checkpoint: Annotated[Path, typer.Option(help="Its checkpoint directory.")],
    scratch: Annotated[
        Path | None, typer.Option(help="Where some 4 GB may lie meanwhile; default: $TMPDIR.")
    ] = None,
) -> None:
    """Print the table; some five minutes. The exit code is 1 where a promise does not hold."""
    if reason := missing():
        typer.echo(f"error: {reason}", err=True)
        raise typer.Exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it cleans up, too
    progress = Console(stderr=True)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="dgemma-image-", dir=scratch) as directory:
        for line in check(Store(Path(directory)), engine.resolve(), checkpoint.resolve()):
            progress.print(f"{line.what}: {line.seen}", highlight=False, markup=False)
            lines.append(line)
    Console(width=WIDTH).print(table(lines, "the image for CPUs"))
    raise typer.Exit(int(any(line.holds is False for line in lines)))


if __name__ == "__main__":
    typer.run(main)
