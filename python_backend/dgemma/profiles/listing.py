"""What `dgemma profiles` shows of a model store, as tables and as JSON.

Knows columns and keys; every fact and judgement in them is made elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from dgemma.machine import Machine
from dgemma.profiles.inventory import Found, Inventory
from dgemma.profiles.profile import Profile
from dgemma.profiles.prune import Verdict, freed

_SHORT = 12  # digits of an id: enough to name it


@dataclass(frozen=True)
class Listing:
    """A store as it is seen from this machine. Without `chosen`, `why` says why nothing is."""

    inventory: Inventory
    machine: Machine
    profiles: Sequence[Profile]
    chosen: Profile | None
    why: str
    verdicts: Sequence[Verdict]

    @property
    def removable(self) -> list[Found]:
        return [verdict.found for verdict in self.verdicts if not verdict.keep]

    def to_json(self) -> dict[str, Any]:
        return {
            "store": str(self.inventory.root),
            "machine": {
                "gpu": None if self.machine.gpu is None else vars(self.machine.gpu),
                "runtimes": dict(self.machine.runtimes),
            },
            "selected": None if self.chosen is None else self.chosen.id,
            "why": self.why,
            "profiles": [_profile_json(profile) for profile in self.profiles],
            "directories": [_verdict_json(verdict) for verdict in self.verdicts],
            "prune_frees_bytes": freed(self.removable),
        }

    def tables(self) -> RenderableType:
        parts: list[RenderableType] = [escape(self._heading())]
        if self.profiles:
            parts.append(self._profiles_table())
        mark = "[bold]selected[/]" if self.chosen else "[bold red]nothing is selected[/]"
        name = f" {escape(self.chosen.name)}" if self.chosen else ""
        parts.append(f"{mark}{name}: {escape(self.why)}\n")
        if self.verdicts:
            parts.append(self._directories_table())
        if removable := self.removable:
            parts.append(
                f"nothing refers to {len(removable)} of them; --prune frees "
                f"{decimal(freed(removable))}"
            )
        return Group(*parts)

    def _heading(self) -> str:
        gpu = self.machine.gpu
        where = f"{gpu.name}, sm{gpu.compute_capability}" if gpu else "no GPU"
        runtimes = ", ".join(f"{name} {v}" for name, v in self.machine.runtimes.items())
        return f"{self.inventory.root}, seen from {where}, {runtimes or 'no runtime'}"

    def _profiles_table(self) -> Table:
        table = _table("profile", "id", "runtime", "weights", "here")
        for p in self.profiles:
            runtime = p.engine.manifest.runtime
            here = "compatible" if p.refusal is None else f"incompatible: {p.refusal}"
            table.add_row(
                escape(p.name),
                p.id[:_SHORT],
                escape(f"{runtime.flavour} {runtime.version}"),
                p.revision,
                escape(here),
                style="bold" if p is self.chosen else None,
            )
        return table

    def _directories_table(self) -> Table:
        table = _table("directory", "size", "written", "kept", "because")
        table.columns[1].justify = "right"
        for verdict in self.verdicts:
            found = verdict.found
            table.add_row(
                escape(_place(self.inventory, found)),
                decimal(found.size),
                time.strftime("%Y-%m-%d %H:%M", time.gmtime(found.written)),
                "yes" if verdict.keep else "no",
                escape(verdict.why),
            )
        return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _place(inventory: Inventory, found: Found) -> str:
    return str(found.directory.relative_to(inventory.root))


def _profile_json(profile: Profile) -> dict[str, Any]:
    made = profile.engine.manifest
    return {
        "name": profile.name,
        "id": profile.id,
        "target": made.target,
        "precision": made.precision,
        "runtime": vars(made.runtime),
        "revision": profile.revision,
        "engine": str(profile.engine.directory),
        "weights": None if profile.weights is None else str(profile.weights.directory),
        "compatible": profile.refusal is None,
        "reason": profile.refusal,
    }


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    found = verdict.found
    return {
        "directory": str(found.directory),
        "bytes": found.size,
        "written": found.written,
        "pinned": found.pinned,
        "kept": verdict.keep,
        "because": verdict.why,
    }
