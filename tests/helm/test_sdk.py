"""The adapter in front of Helm: where there is a binary, that is what is asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.helm import sdk

# What `helm install --dry-run=client --output=json` prints, as far as it is read.
ANSWER = {
    "manifest": "---\n# Source: a.yaml\nkind: ConfigMap\n---\nkind: Service\n",
    "hooks": [{"manifest": "kind: Pod\nmetadata: {name: a}\n"}],
    "info": {"notes": "Hello"},
}
BINARY = """#!{python} -S
import json, sys
values = [a.removeprefix("--values=") for a in sys.argv if a.startswith("--values=")]
asked = {{"arguments": sys.argv[1:], "values": json.load(open(values[0]))}}
json.dump(asked, open({record!r}, "w"))
if asked["values"].get("wrong"):
    sys.exit("Error: values don't meet the specifications of the schema(s)")
print({answer!r})
"""


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A binary that writes down here what it was asked for."""
    binary, record = tmp_path / "helm", tmp_path / "asked.json"
    text = BINARY.format(python=sys.executable, record=str(record), answer=json.dumps(ANSWER))
    binary.write_text(text)
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return record


def test_a_binary_renders(record: Path) -> None:
    rendered = sdk.render({"a": 1})
    assert [each["kind"] for each in rendered.objects] == ["ConfigMap", "Service"]
    assert [each["kind"] for each in rendered.hooks] == ["Pod"]
    assert rendered.notes == "Hello"
    asked = json.loads(record.read_text())
    assert asked["values"] == {"a": 1}
    assert asked["arguments"][:3] == ["install", sdk.RELEASE, str(sdk.CHART)]
    assert {"--dry-run=client", "--output=json", f"--namespace={sdk.NAMESPACE}"} <= set(
        asked["arguments"]
    )


def test_what_a_binary_refuses_is_refused(record: Path) -> None:
    with pytest.raises(sdk.Refused, match="the specifications of the schema"):
        sdk.render({"wrong": True})
    assert "the specifications of the schema" in sdk.problems({"wrong": True})
    assert sdk.problems({}) == ""
    assert sdk.lint({"wrong": True})
    assert json.loads(record.read_text())["arguments"][:3] == ["lint", str(sdk.CHART), "--strict"]
    assert sdk.lint({}) == []
