"""A run through the generator's process, as the command line starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dgemma_loadtest import driver, recording, run_file
from dgemma_loadtest.generator.order import Order
from dgemma_loadtest.metrics.summary import Summary
from dgemma_loadtest.records import Record
from dgemma_loadtest.run_file import Run
from dgemma_loadtest.scenario import Scenario


def order_of(scenario: Scenario, target: str, out: Path, **more: Any) -> Order:
    content = scenario.model_dump(mode="json", by_alias=True, exclude_none=True)
    return Order(**{"scenario": content, "target": target, "out": str(out), "fit": "off", **more})


def ran(
    scenario: Scenario, target: str, out: Path, **more: Any
) -> tuple[Summary, list[Record], Run]:
    events: list[dict[str, Any]] = []
    result = driver.run(order_of(scenario, target, out, **more), events.append)
    assert any(event["event"] == "progress" for event in events)
    return result, recording.read(out), run_file.read(out)
