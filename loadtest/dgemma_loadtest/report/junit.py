"""Gates as JUnit's XML, which builds know how to show."""

from __future__ import annotations

from itertools import groupby
from xml.etree import ElementTree

from dgemma_loadtest.report.gates import Gate


def junit(gates: list[Gate], name: str) -> bytes:
    """One suite a stage, and one of the run."""
    root = ElementTree.Element("testsuites", name=name, **_counts(gates))
    for stage, group in groupby(gates, key=lambda gate: gate.stage):
        theirs = list(group)
        suite = ElementTree.SubElement(
            root, "testsuite", name=stage or "run", errors="0", **_counts(theirs)
        )
        for gate in theirs:
            case = ElementTree.SubElement(
                *(suite, "testcase"),
                classname=f"{name}.{stage or 'run'}",
                name=gate.name,
                time=f"{gate.seconds:.3f}",
            )
            if gate.outcome == "failed":
                ElementTree.SubElement(case, "failure", message=gate.said).text = gate.said
            elif gate.outcome == "skipped":
                ElementTree.SubElement(case, "skipped", message=gate.said)
            else:
                ElementTree.SubElement(case, "system-out").text = gate.said
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def _counts(gates: list[Gate]) -> dict[str, str]:
    count = {
        outcome: sum(gate.outcome == outcome for gate in gates) for outcome in ("failed", "skipped")
    }
    return {
        "tests": str(len(gates)),
        "failures": str(count["failed"]),
        "skipped": str(count["skipped"]),
    }
