"""The chart beyond its tests: every version of Kubernetes, every step between releases, any values.

Knows which lines there are and how many rounds each takes; needs Helm's SDK, and no cluster.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import kubernetes_validate
import typer
from kubernetes_validate.utils import all_versions

from tests.accept.main_job import Line
from tests.accept.parts import Part, report
from tests.helm.api import serving
from tests.helm.releases import everything_of, merged, values_of
from tests.helm.sdk import Refused, Rendered, render
from tests.helm.test_kubernetes import distinct, is_defined_elsewhere
from tests.helm.test_releases import STEPS, Cluster, values
from tests.helm.test_schema import KUBERNETES_OWN, WALKED, resolved, valid, values_with
from tests.helm.variants import PAIRS

FIRST = (1, 31)  # what Chart.yaml asks for
_WORDS = "execution error at (dgemma/templates/deployment.yaml:1:4): \n\n- "  # of the chart's rules


class Name(StrEnum):
    """The parts of the table."""

    VERSIONS = "versions"
    STEPS = "steps"
    VALUES = "values"


def versions(engine: Path, checkpoint: Path, rounds: int) -> Iterator[Line]:
    """Every object that the tests render, against each version that there are schemas of."""
    known = sorted({v for v in all_versions() if _number(v) >= FIRST}, key=_number)
    found = [each for _, each in distinct(elsewhere=False)]
    for version in known:
        wrong = sum(1 for each in found if not _is_valid(each, version))
        what = f"of {len(found)} objects, those that Kubernetes {version} refuses"
        yield Line(what, str(wrong), "0", wrong == 0)


def steps(engine: Path, checkpoint: Path, rounds: int) -> Iterator[Line]:
    """Install, upgrade and rollback for real, between any two releases of a family."""
    failed = 0
    for one, other in STEPS[:rounds]:
        with serving() as api:
            cluster = Cluster(api)
            try:
                cluster.install(values(one))
                before = dict(api.objects)
                cluster.upgrade(values(other))
                cluster.rollback()
                failed += not before.items() <= api.objects.items()
            except Exception as error:
                failed += 1
                yield Line(f"{one} → {other}", str(error), "goes there and back", False)
            finally:
                cluster.close()
    tried = len(STEPS[:rounds])
    what = f"of {tried} upgrades, each rolled back, those that failed or left something else"
    yield Line(what, str(failed), "0", failed == 0)


def any_values(engine: Path, checkpoint: Path, rounds: int) -> Iterator[Line]:
    """Random values within the schema: refused in the chart's own words, or valid objects."""
    draw = random.Random(20261128)
    refused = wrong = 0
    for _ in range(rounds):
        given = values_of(draw.choice(PAIRS))
        for _ in range(draw.randint(1, 4)):
            given = merged(given, _change(draw))
        try:
            rendered = render(given)
        except Refused as error:
            refused += 1
            if _WORDS not in str(error):
                wrong += 1
                yield Line(f"values {given}", str(error), "rendered, or refused by a rule", False)
            continue
        bad = [each for each in _checked(rendered) if not _is_valid(each, "1.37")]
        if bad:
            wrong += 1
            yield Line(f"values {given}", f"{bad[0]['kind']} is invalid", "valid objects", False)
    what = f"of {rounds} random values, {refused} of them refused by a rule, those mishandled"
    yield Line(what, str(wrong), "0", wrong == 0)


def _change(draw: random.Random) -> dict[str, Any]:
    """One value somewhere, within the schema."""
    path, schema = draw.choice([(p, s) for p, s in WALKED[1:] if not _is_free(p)])
    found: dict[str, Any] = values_with(path, _drawn(draw, resolved(schema)))
    return found


def _is_free(path: str) -> bool:
    return any(path == own or path.startswith(f"{own}/") for own in KUBERNETES_OWN)


def _drawn(draw: random.Random, schema: dict[str, Any]) -> Any:
    if "enum" in schema:
        return draw.choice(schema["enum"])
    kind = schema["type"]
    if kind == "boolean":
        return draw.random() < 0.5
    if kind in ("integer", ["integer", "null"]):
        return draw.choice((schema["minimum"], schema["maximum"], schema["minimum"] + 1))
    return valid(schema)


def _checked(rendered: Rendered) -> list[dict[str, Any]]:
    return [each for each in everything_of(rendered) if not is_defined_elsewhere(each)]


def _is_valid(found: dict[str, Any], version: str) -> bool:
    try:
        kubernetes_validate.validate(found, version, strict=True)
    except kubernetes_validate.ValidationError:
        return False
    return True


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


# What each runs, and how many rounds of it.
PARTS: dict[Name, tuple[Part, int]] = {
    Name.VERSIONS: (versions, 1),
    Name.STEPS: (steps, len(STEPS)),
    Name.VALUES: (any_values, 600),
}


def main(
    only: Annotated[list[Name] | None, typer.Option(help="Parts to run; repeatable.")] = None,
    share: Annotated[
        float, typer.Option(help="Of the rounds of each part.", min=0.001, max=100.0)
    ] = 1.0,
) -> None:
    """Print the table; two minutes. The exit code is 1 where a promise does not hold."""
    report((PARTS[name] for name in only or PARTS), Path(), Path(), share, "the chart")


if __name__ == "__main__":
    typer.run(main)
