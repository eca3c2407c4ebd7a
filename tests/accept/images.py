"""Builds the image for CPUs on a machine that reaches packages but no container registry.

Knows debootstrap, buildah, and what apt and pip of this machine are told; all that it makes lies
in one directory, and nothing of what they are told gets into the image.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "libpython3.11", "ca-certificates")
BASE, IMAGE = "localhost/dgemma-base", "localhost/dgemma:cpu"
_TOOLS = ("buildah", "debootstrap")
# What a tool starts and mounts ends with it, also where it is killed.
_APART = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=KILL")


def missing() -> str | None:
    """What this machine lacks, and how to get it; None where it can build."""
    if os.geteuid() != 0:
        return "image-check builds and runs a container without a runtime: run it as root"
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if absent:
        return (
            f"{' and '.join(absent)} not found: run `apt-get install --no-install-recommends "
            f"{' '.join(_TOOLS)}`"
        )
    return None


class Store:
    """buildah's images and containers in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        roots = (f"--root={directory}/store", f"--runroot={directory}/run")
        self._buildah = (*_APART, "buildah", *roots, "--storage-driver=vfs")

    def __call__(self, *arguments: str, log: Path | None = None) -> str:
        """buildah's standard output; RuntimeError with its errors, or the end of `log`."""
        errors = log or self.directory / "buildah.log"
        with errors.open("wb") as output:
            done = subprocess.run(
                [*self._buildah, *arguments],
                stdout=output if log else subprocess.PIPE,
                stderr=output,
                check=False,
            )
        if done.returncode:
            said = errors.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"buildah {arguments[0]}: {said}")
        return "" if log else done.stdout.decode().strip()

    def config(self, image: str) -> dict[str, Any]:
        """Docker's configuration of an image."""
        found: dict[str, Any] = json.loads(self("inspect", "--type=image", image))
        return dict(found["Docker"]["config"])


def make_base(store: Store, log: Path) -> None:
    """The image that takes the place of the registry's: Debian's own Python."""
    container = store("from", "scratch")
    root = Path(store("mount", container))
    include = f"--include={','.join(PACKAGES)}"
    with log.open("wb") as output:
        subprocess.run(
            [*_APART, "debootstrap", "--variant=minbase", include, SUITE, str(root), mirror()],
            env={**os.environ, **_proxy()},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=True,
        )
    for leftover in ("var/cache/apt", "var/lib/apt/lists", "var/log"):
        for path in (root / leftover).iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    store("umount", container)
    store("commit", "--quiet", "--rm", container, f"{BASE}:{SUITE}")


def build(store: Store, repository: Path, log: Path) -> None:
    """The Dockerfile's target `cpu` on that base."""
    secret = store.directory / "pip.conf"
    pip = pip_configuration()
    secret.touch(mode=0o600)
    with secret.open("w") as file:
        pip.write(file)
    local = [f"--volume={path}:{path}:ro" for path in local_paths(pip)]
    arguments = {"PYTHON_IMAGE": BASE, "PYTHON_TAG": SUITE, "TORCH_INDEX": ""}
    store(
        *("build", "--isolation=chroot", "--format=docker", "--target=cpu", "--pull=never"),
        *(f"--build-arg={name}={value}" for name, value in arguments.items()),
        *(f"--secret=id=pip,src={secret}", *local, f"--tag={IMAGE}"),
        *(f"--file={repository / 'Dockerfile'}", str(repository)),
        log=log,
    )
    secret.unlink()


def mirror() -> str:
    """Where apt of this machine gets Debian's suite from."""
    form = "$(REPO_URI) $(CODENAME) $(COMPONENT)"
    listed = _output("apt-get", "indextargets", "--format", form, "Created-By: Packages")
    for line in listed.splitlines():
        uri, *suite = line.split()
        if suite == [SUITE, "main"]:
            return uri
    raise RuntimeError(f"apt of this machine knows no {SUITE}; image-check needs Debian's packages")


def _proxy() -> Mapping[str, str]:
    found = _output("apt-config", "shell", "proxy", "Acquire::http::Proxy")
    return {"http_proxy": ast.literal_eval(found.partition("=")[2])} if found.strip() else {}


def pip_configuration() -> ConfigParser:
    """All that pip is told here, variables included, as one file; of two values the last counts."""
    result = ConfigParser(interpolation=None)
    result.add_section("global")
    for line in _output(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        section = "global" if section == ":env:" else section
        if not result.has_section(section):
            result.add_section(section)
        result.set(section, option, " ".join(ast.literal_eval(value).split()))
    return result


def local_paths(pip: ConfigParser) -> list[Path]:
    """Files and directories of this machine that a pip with that configuration reads."""
    return sorted(set(_local_paths(pip)))


def _local_paths(pip: ConfigParser) -> Iterator[Path]:
    for section in pip.sections():
        for option, value in pip.items(section):
            for word in value.split():
                path = Path(urlsplit(word).path if word.startswith("file:") else word)
                if path.is_absolute() and path.exists():
                    # An index has its files beside it.
                    yield path.parent if option.endswith("index-url") else path


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
