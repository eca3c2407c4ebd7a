"""A container of an image that buildah built, as strict as a cluster would run it.

Knows namespaces and mounts: the root file system is read-only, its user has no capabilities and
gets none; knows nothing of the service inside. Needs root, util-linux, and no container runtime.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

_DEVICES = ("null", "zero", "full", "random", "urandom")
# Arguments: the root, its user and group, directories as `outside:inside:options`, "--", a command.
_START = f"""
root=$1 user=$2 group=$3; shift 3
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o nosuid,mode=755 tmpfs "$root/dev"
for device in {" ".join(_DEVICES)}; do
  touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm"
mount -t tmpfs -o nosuid,nodev,mode=1777,size=1g tmpfs "$root/dev/shm"
mount -o remount,bind,ro "$root/dev"
while [ "$1" != -- ]; do
  IFS=: read -r outside inside options <<EOF
$1
EOF
  mount --bind "$outside" "$root$inside"
  mount -o "remount,bind,nosuid,nodev,$options" "$root$inside"
  shift
done
shift
cd /
exec chroot "$root" setpriv "--reuid=$user" "--regid=$group" --clear-groups --no-new-privs \\
  --inh-caps=-all --ambient-caps=-all --bounding-set=-all "$@"
"""


@dataclass(frozen=True)
class Mount:
    """A directory of this machine at a place that the image has."""

    outside: Path
    inside: str
    writable: bool = False

    def __str__(self) -> str:
        return f"{self.outside}:{self.inside}:{'rw' if self.writable else 'ro'}"


class Container:
    """Runs an image's entry point inside the `with` block, as process 1; all of it is gone after.

    `config` is Docker's: User (uid:gid), Env, Entrypoint, Cmd and WorkingDir of it count.
    It shares this machine's network.
    """

    def __init__(
        self,
        root: Path,
        config: Mapping[str, Any],
        *,
        env: Mapping[str, str],
        mounts: Sequence[Mount],
        log: Path,
    ) -> None:
        self._root, self._config, self._mounts, self._log = root, config, mounts, log
        self._env = [*config["Env"], *(f"{name}={value}" for name, value in env.items())]
        self._user, self._group = config["User"].split(":")

    def __enter__(self) -> Container:
        for mount in self._mounts:
            (self._root / mount.inside.lstrip("/")).mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._outer = subprocess.Popen(
                [
                    *("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork"),
                    *("--kill-child=KILL", "--propagation=private", "sh", "-euc", _START, "sh"),
                    *(str(self._root), self._user, self._group, *map(str, self._mounts), "--"),
                    *self._inside(config_command(self._config)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._outer.kill()  # its process 1 dies with it, and with that all the others
        self._outer.wait()

    @property
    def init(self) -> int:
        """Its process 1, as this machine numbers it."""
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        return int(children.read_text().split()[0])

    def check(self) -> None:
        """Raises RuntimeError with the end of its log where it has ended."""
        if (code := self._outer.poll()) is not None:
            raise RuntimeError(f"the container ended with {code}: {self.last_words()}")

    def last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A further command inside, with the same user and rights."""
        return subprocess.run(
            [
                *("nsenter", f"--target={self.init}", "--mount", "--pid", "--ipc", "--uts"),
                *("--root", "--wd=/", "setpriv", f"--reuid={self._user}", f"--regid={self._group}"),
                *("--clear-groups", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all"),
                *("--bounding-set=-all", *self._inside(command)),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def stop(self, timeout_s: float) -> tuple[int, float]:
        """SIGTERM for process 1, as any runtime stops a container: exit code and seconds."""
        began = time.monotonic()
        os.kill(self.init, signal.SIGTERM)
        return self._outer.wait(timeout_s), time.monotonic() - began

    def _inside(self, command: Sequence[str]) -> list[str]:
        """The command in the image's working directory, with its environment and no other."""
        place = f"--chdir={self._config.get('WorkingDir') or '/'}"
        return ["/usr/bin/env", "-i", place, *self._env, *command]


def config_command(config: Mapping[str, Any]) -> list[str]:
    """What the image runs."""
    return [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]
