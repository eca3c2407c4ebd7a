"""Every alert fires where it should and is silent where it should be, as promtool evaluates it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm.promtool import ALERTS, AUTOSCALING, promtool, rules

POD = 'namespace="n",job="j",pod="p"'
MORE = 'namespace="n",job="j",pod="q"'

CASES: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("alert_cases.yaml").read_text()
)
FIRING = 'count(count by (alertname) (ALERTS{alertname="NAME",alertstate="firing"}))'


def _tests() -> Iterator[dict[str, Any]]:
    for alert, case in CASES.items():
        for which, expected in (("fires", [{"labels": "{}", "value": 1}]), ("silent", [])):
            series = {
                name.replace("POD", POD).replace("MORE", MORE): values
                for name, values in case[which].items()
            }
            look = {
                "expr": FIRING.replace("NAME", alert),
                "eval_time": case["at"],
                "exp_samples": expected,
            }
            yield {
                "name": f"{alert}: {which}",
                "interval": "1m",
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
                "promql_expr_test": [look],
            }


def _run(tmp_path: Path, rule_file: Path, tests: list[dict[str, Any]]) -> str:
    file = tmp_path / "tests.yaml"
    file.write_text(
        yaml.safe_dump(
            {"rule_files": [str(rule_file)], "evaluation_interval": "1m", "tests": tests}
        )
    )
    return promtool("test", "rules", file)


def test_the_rules_are_valid() -> None:
    for file in (ALERTS, AUTOSCALING):
        assert "SUCCESS" in promtool("check", "rules", "--lint=all", "--lint-fatal", file)


def test_every_alert_has_a_case() -> None:
    assert list(CASES) == [rule["alert"] for rule in rules(ALERTS)]


def test_every_alert_fires_and_is_silent(tmp_path: Path) -> None:
    assert "SUCCESS" in _run(tmp_path, ALERTS, list(_tests()))


@pytest.mark.parametrize("which", [0, 1])
def test_a_case_that_does_not_hold_is_noticed(tmp_path: Path, which: int) -> None:
    """As if the two of an alert had changed places."""
    tests = list(_tests())[:2]
    wrong = tests[which] | {"promql_expr_test": tests[1 - which]["promql_expr_test"]}
    with pytest.raises(AssertionError, match="FAILED"):
        _run(tmp_path, ALERTS, [wrong])


def test_texts_name_what_they_are_about(tmp_path: Path) -> None:
    series = {f'dgemma_starts_total{{{POD},part="triton"}}': "1x15 2x5 3x5 4x5 5x20"}
    [rule] = [rule for rule in rules(ALERTS) if rule["alert"] == "DgemmaRestarts"]
    expected = {
        "exp_labels": {"severity": "warning", "namespace": "n", "job": "j", "pod": "p"}
        | {"part": "triton"},
        "exp_annotations": {
            "summary": "triton in p was started again 4 times in half an hour",
            "description": rule["annotations"]["description"],
        },
    }
    test = {
        "interval": "1m",
        "input_series": [{"series": s, "values": v} for s, v in series.items()],
        "alert_rule_test": [
            {"eval_time": "40m", "alertname": "DgemmaRestarts", "exp_alerts": [expected]}
        ],
    }
    assert "SUCCESS" in _run(tmp_path, ALERTS, [test])


def test_every_alert_says_what_to_do_and_how_bad_it_is() -> None:
    for rule in rules(ALERTS):
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule["alert"]
        assert len(rule["annotations"]["description"]) > 100, rule["alert"]
        assert "{{" in rule["annotations"]["summary"], rule["alert"]


# What the autoscaler looks at


def test_the_wait_is_that_of_a_pod_and_0_where_nobody_waits(tmp_path: Path) -> None:
    bucket = f"dgemma_queue_wait_seconds_bucket{{{POD}"
    waits = {f'{bucket},tenant="a",le="1"}}': "0x20", f'{bucket},tenant="a",le="5"}}': "0+60x20"}
    waits |= {f'{bucket},tenant="a",le="+Inf"}}': "0+60x20"}
    slots = {f"num_request_max{{{POD}}}": "8x20", f"num_request_max{{{MORE}}}": "8x20"}
    idle = {key.replace('pod="p"', 'pod="q"'): "7x20" for key in waits}
    test = {
        "interval": "1m",
        "input_series": [{"series": s, "values": v} for s, v in (waits | slots | idle).items()],
        "promql_expr_test": [
            {
                "expr": f'dgemma_queue_wait_p95_seconds{{pod="{pod}"}}',
                "eval_time": "15m",
                "exp_samples": [
                    {
                        "labels": f'dgemma_queue_wait_p95_seconds{{namespace="n",pod="{pod}"}}',
                        "value": value,
                    }
                ],
            }
            for pod, value in (("p", 4.8), ("q", 0))
        ],
    }
    assert "SUCCESS" in _run(tmp_path, AUTOSCALING, [test])
