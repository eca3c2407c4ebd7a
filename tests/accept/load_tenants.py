"""Tenants that compete on the real service, with a fair queue and, as a control, without one.

Knows what is promised of them, and of the report in a browser.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.accept.load_service import SPEED, Ran, run, stage, tenants, written
from tests.accept.main_job import Line
from tests.loadtest.browser import BROWSER, DARK, LIGHT, opened, pictured

SLOTS = 8
WEIGHTS = {"steady": 1.0, "gold": 2.0, "flood": 1.0}
JAIN = 0.95
VICTIM = 10.0  # times its p99 alone, beside a flood: its slots are shared, and so are passes


def shared(engine: Path, checkpoint: Path, seconds: int) -> Iterator[Line]:
    """Tenants on the real service with a fair queue, and the control without one."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        fair = _tenants(scratch, checkpoint, seconds, "fair")
        yield from _lines(fair, "fair", wanted=True)
        yield from _page(fair, scratch)
        yield from _lines(_tenants(scratch, checkpoint, seconds, "fcfs"), "  control: fcfs", False)


def _tenants(scratch: Path, checkpoint: Path, seconds: int, policy: str) -> Ran:
    def load(tenant: str, users: int, answer: int, think_s: float = 0.0) -> dict[str, Any]:
        return {
            "tenant": tenant,
            "weight": WEIGHTS[tenant],
            "users": users,
            "think_s": think_s,
            "prompts": {"prose": 1},
            "answer_tokens": answer,
            "sampling": {"ignore_eos": True},
        }

    steady, flood = load("steady", 2, 256, 0.2), load("flood", 40, 1024)
    content = {
        "schema": 1,
        "name": "tenants",
        "slots": SLOTS,
        "victim": {"tenant": "steady", "alone": "alone", "beside": "beside a flood"},
        "stages": [
            stage("alone", seconds / 2, [steady]),
            stage("beside a flood", seconds, [steady, flood]),
            stage("weights 2 and 1", seconds, [load("gold", 24, 512), load("flood", 24, 512)]),
        ],
    }
    place = scratch / policy
    place.mkdir()
    file, keys = tenants(place, WEIGHTS)
    return run(
        written(place / "scenario.yaml", content),
        place / "out",
        *("--simulate", SPEED, "--slots", str(SLOTS)),
        *("--tenants", str(file), "--tenant-keys", str(keys)),
        checkpoint=checkpoint,
        environment={"DGEMMA_SCHEDULER": policy},
    )


def _lines(ran: Ran, name: str, wanted: bool) -> Iterator[Line]:
    """Each is missed by the control."""
    summary = ran.summary
    by_name = {found["name"]: found for found in summary["stages"]}
    fairness = by_name["weights 2 and 1"]["fairness"]
    gap, victim = fairness["gap"], summary["victim"]
    held, miss = (f">= {JAIN}", "<= its bound", f"<= {VICTIM:g} ×"), "misses it"
    jain_holds, gap_holds = fairness["jain"] >= JAIN, gap["holds"]
    yield Line(
        f"{name}: Jain's index, weights 2:1",
        f"{fairness['jain']:.3f} over {fairness['backlogged_s']:.0f} s, shares "
        + ", ".join(f"{t} {share:.2f}" for t, share in fairness["shares"].items()),
        held[0] if wanted else miss,
        jain_holds is wanted,
    )
    yield Line(
        f"{name}: service gap",
        f"{gap['value']:.0f} rows by weight, bound {gap['bound']:.0f}",
        held[1] if wanted else miss,
        gap_holds is wanted,
    )
    ratio = victim["ratio"]["value"]
    yield Line(
        f"{name}: victim's p99 beside a flood",
        f"{victim['beside_p99_s']:.2f} s, {ratio:.1f} × {victim['alone_p99_s']:.2f} s alone",
        held[2] if wanted else miss,
        (ratio <= VICTIM) is wanted,
    )
    waits = by_name["beside a flood"]["fairness"]["longest_wait_s"]
    said = ", ".join(f"{tenant} {seconds:.1f} s" for tenant, seconds in waits.items())
    yield Line(f"{name}: longest wait", said, "", None)
    yield Line(
        f"{name}: exit code of the run",
        str(ran.code),
        "0" if wanted else "not 0",
        (ran.code == 0) is wanted,
    )


def _page(ran: Ran, scratch: Path) -> Iterator[Line]:
    page = ran.out / "report.html"
    if BROWSER is None:
        yield Line("report in Chromium", "skipped: there is no Chromium", "", None)
        return
    document, console = opened(page, scratch / "profile")
    pictures = [scratch / f"{scheme}.png" for scheme in (LIGHT, DARK)]
    for scheme, picture in zip((LIGHT, DARK), pictures, strict=True):
        pictured(page, scratch / f"profile-{scheme}", scheme, picture)
    differ = pictures[0].read_bytes() != pictures[1].read_bytes()
    plots = document.count("<figure")
    yield Line(
        "report in Chromium",
        f"{plots} plots, {len(console)} messages on the console, light and dark differ: {differ}",
        "plots, no message",
        plots > 0 and not console and differ,
    )
