"""The schema of the values: every constraint in it refuses what breaks it, and says where."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import yaml

from tests.helm.releases import values_of
from tests.helm.sdk import CHART, problems
from tests.helm.variants import PAIRS

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
# Taken as Kubernetes has them: its own API checks what is in them.
KUBERNETES_OWN = {
    "/global",
    "/model/volume",
    "/networkPolicy/from/0",
    "/networkPolicy/metricsFrom/0",
    "/extraEnv/0/valueFrom",
    "/extraVolumes/0",
    "/extraVolumeMounts/0",
    "/extraObjects/0",
    "/extraObjects/0/metadata",
}
CHECKED = {"type", "enum", "pattern", "minimum", "maximum", "minItems", "minLength", "required"}
STRUCTURE = {"properties", "items", "additionalProperties", "$ref", "$defs", "$schema", "title"}
STRINGS = ("a", "/a", "a/b", "1Gi", "1s", "hf://a/b", "a:1", "IfNotPresent", "")
NOT_STRINGS = ("latest of all", "-", "Ä b", "UPPER CASE", "hf:/x", "a b:", "")
OF_TYPE = {"boolean": True, "object": {}}
KEY_HASH = f"sha256:{'a' * 12}:{'0' * 32}:{'0' * 64}"


class Case(NamedTuple):
    """A value that one constraint refuses; `path` as JSON pointers have it."""

    path: str
    keyword: str
    value: Any
    said: str


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        found: dict[str, Any] = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        return found
    return schema


def walk(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of a value, by where the value stands."""
    schema = resolved(schema)
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from walk(below, f"{path}/{name}")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from walk(schema["additionalProperties"], f"{path}/any")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}/0")


def valid(schema: dict[str, Any]) -> Any:
    """The least that a schema takes."""
    schema = resolved(schema)
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema["type"]
    if kind == "object":
        return {name: valid(schema["properties"][name]) for name in schema.get("required", [])}
    if kind == "array":
        return [valid(schema["items"])] * schema.get("minItems", 0)
    if kind == "string":
        texts = (*STRINGS, KEY_HASH)
        return next(text for text in texts if re.search(schema.get("pattern", ""), text))
    return True if kind == "boolean" else schema.get("minimum", 1)


def cases(path: str, schema: dict[str, Any]) -> Iterator[Case]:
    def case(keyword: str, value: Any, said: str) -> Case:
        return Case(path, keyword, value, said)

    for keyword, limit in schema.items():
        match keyword:
            case "type":
                allowed = [limit] if isinstance(limit, str) else limit
                wrong = next(name for name in OF_TYPE if name not in allowed)
                if path:
                    yield case(keyword, OF_TYPE[wrong], f"got {wrong}, want ")
            case "enum":
                yield case(keyword, "no such choice", "value must be one of ")
            case "pattern":
                wrong_text = next(text for text in NOT_STRINGS if not re.search(limit, text))
                yield case(keyword, wrong_text, "does not match pattern")
            case "minimum":
                yield case(keyword, limit - 1, f"minimum: got {numbers(limit - 1, limit)}")
            case "maximum":
                yield case(keyword, limit + 1, f"maximum: got {numbers(limit + 1, limit)}")
            case "minItems":
                yield case(keyword, [], "minItems: got 0, want 1")
            case "minLength":
                yield case(keyword, "", "minLength: got 0, want 1")
            case "required":
                for name in limit:
                    value = {k: v for k, v in valid(schema).items() if k != name}
                    yield case(f"required {name}", value, f"missing property '{name}'")
            case "additionalProperties" if limit is False:
                value = {**valid(schema), "unknown": 1}
                yield case(keyword, value, "additional properties 'unknown' not allowed")


def numbers(got: float, want: float) -> str:
    """As the validator writes them; large ones are written in a way of its own."""
    plain = isinstance(want, int) and abs(want) < 1_000_000
    return f"{got:,}, want {want:,}" if plain else ""


WALKED = list(walk(SCHEMA))
CASES = [case for path, schema in WALKED for case in cases(path, schema)]


def values_with(path: str, value: Any) -> Any:
    """The least values that have `value` at `path`."""

    def build(schema: dict[str, Any], names: list[str]) -> Any:
        if not names:
            return value
        schema, (name, *rest) = resolved(schema), names
        if "items" in schema:
            return [build(schema["items"], rest)]
        below = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
        return {**valid(schema), name: build(below, rest)}

    return build(SCHEMA, path.split("/")[1:])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.path or '/'} {case.keyword}")
def test_what_breaks_a_constraint_is_refused_by_its_place(case: Case) -> None:
    said = problems(values_with(case.path, case.value))
    assert f"at '{case.path}'" in said
    assert case.said in said


@pytest.mark.parametrize("pair", PAIRS)
def test_platforms_and_tenancies_are_taken(pair: str) -> None:
    assert problems(values_of(pair)) == ""


def test_the_least_value_of_every_place_is_taken() -> None:
    for path, schema in WALKED[1:]:
        assert problems(values_with(path, valid(schema))) == "", path


def test_every_keyword_is_checked_here_or_is_structure() -> None:
    for path, schema in WALKED:
        assert set(schema) <= CHECKED | STRUCTURE, path


def test_nothing_unknown_is_taken_but_what_kubernetes_itself_checks() -> None:
    free = set()
    for path, schema in WALKED:
        if schema.get("type") == "object":
            more = schema.get("additionalProperties")
            if more is None:
                free.add(path)
            else:
                assert more is False or more == {"type": "string"}, path
    assert free == KUBERNETES_OWN


def test_values_that_are_written_of_are_there() -> None:
    known = {path for path, _ in WALKED}
    texts = [CHART.parent / "docs" / "helm.md", *(CHART / "templates").rglob("*")]
    named = set()
    for path in (each for each in texts if each.is_file()):
        named |= set(re.findall(r"`([a-z]\w*(?:\.\w+)+)[:`]", path.read_text()))
        named |= set(re.findall(r"--set (\w[\w.]*)=", path.read_text()))
    ours = {name for name in named if f"/{name.split('.')[0]}" in known}
    assert len(ours) > 20
    missing = {name for name in ours if f"/{name.replace('.', '/')}" not in known}
    assert missing == {"tls.crt", "tls.key", "baseline.ENGINE.image"}, "two files, and a pattern"


def test_every_default_has_a_place_in_the_schema_and_the_other_way_round() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(value: Any, schema: dict[str, Any], path: str) -> None:
        schema = resolved(schema)
        names = set(schema.get("properties", {})) - {"global"}
        if not isinstance(value, dict) or not names:
            return
        assert set(value) <= names, path
        optional = {"cpu"} if path.endswith("/limits") else set()
        assert names - optional <= set(value), path
        for name in value:
            compare(value[name], schema["properties"][name], f"{path}/{name}")

    compare(defaults, SCHEMA, "")
