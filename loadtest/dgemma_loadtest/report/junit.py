"""Gates as JUnit's XML, which builds know how to show."""

from __future__ import annotations

from itertools import groupby
from xml.etree import ElementTree

from dgemma_loadtest.report.gates import Gate


def junit(gates: list[Gate], name: str) -> bytes:
    """One suite a stage, and one of the run."""
    root = ElementTree.Element("testsuites", {"name": name, **_counts(gates)})
    for stage, group in groupby(gates, key=lambda gate: gate.stage):
        theirs, title = list(group), stage or "run"
        attributes = {"name": title, "errors": "0", **_counts(theirs)}
        suite = ElementTree.SubElement(root, "testsuite", attributes)
        for gate in theirs:
            said = {"classname": f"{name}.{title}", "name": gate.name}
            case = ElementTree.SubElement(
                suite, "testcase", {**said, "time": f"{gate.seconds:.3f}"}
            )
            if gate.outcome == "passed":
                ElementTree.SubElement(case, "system-out").text = gate.said
            else:
                kind = "failure" if gate.outcome == "failed" else "skipped"
                ElementTree.SubElement(case, kind, {"message": gate.said}).text = gate.said
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _counts(gates: list[Gate]) -> dict[str, str]:
    outcomes = [gate.outcome for gate in gates]
    return {
        "tests": str(len(gates)),
        "failures": str(outcomes.count("failed")),
        "skipped": str(outcomes.count("skipped")),
    }
