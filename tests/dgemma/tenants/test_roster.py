from __future__ import annotations

from pathlib import Path

import pytest

from dgemma.errors import ConfigurationError
from dgemma.scheduler.tenancy import Limits, Tenant
from dgemma.tenants.roster import Roster
from tests.dgemma.tenants.tenant_files import ACME, OTHER, THIRD, file_of, hashed, tenant

PATH = Path("/etc/dgemma/tenants.yaml")


def parse(text: str) -> Roster:
    return Roster.parse(text.encode(), PATH)


def refusal(text: str | bytes) -> str:
    with pytest.raises(ConfigurationError) as refused:
        Roster.parse(text if isinstance(text, bytes) else text.encode(), PATH)
    return str(refused.value)


# What a file says


def test_a_tenant_has_what_the_file_gives_it_and_defaults_for_the_rest() -> None:
    limits = "limits:\n  max_running: 2\n  max_queued: 0\n  min_priority: -1\n  max_priority: 5"
    roster = parse(file_of(tenant("acme", ACME, f"weight: 2.5\n{limits}"), tenant("b", OTHER)))
    expected = Limits(max_running=2, max_queued=0, min_priority=-1, max_priority=5)
    assert roster.tenants == (Tenant("acme", 2.5, expected), Tenant("b", 1.0, Limits()))


def test_every_limit_of_the_scheduler_can_be_set() -> None:
    values = {"max_running": 1, "max_queued": 2, "tokens_per_minute": 3, "max_context": 4}
    text = "limits: {max_running: 1, max_queued: 2, tokens_per_minute: 3, max_context: 4,"
    roster = parse(file_of(tenant("a", ACME, text + " min_priority: -5, max_priority: 6}")))
    assert roster.tenants[0].limits == Limits(**values, min_priority=-5, max_priority=6)
    assert set(Limits.__dataclass_fields__) == {*values, "min_priority", "max_priority"}


def test_a_key_s_owner_is_found_whichever_of_its_keys_it_is() -> None:
    both = f"  - name: a\n    keys:\n      - {hashed(ACME)}\n      - {hashed(OTHER)}\n"
    roster = parse(file_of(both, tenant("b", THIRD)))
    a, b = roster.tenants
    assert [roster.owner(key) for key in (ACME, OTHER, THIRD)] == [a, a, b]
    assert roster.key_ids(a) == [ACME[:12], OTHER[:12]]


@pytest.mark.parametrize("key", ["", ACME[:12], ACME[:-1], ACME[:12] + OTHER[12:], OTHER])
def test_another_key_has_no_owner_also_where_it_begins_like_one(key: str) -> None:
    assert parse(file_of(tenant("a", ACME))).owner(key) is None


def test_anchors_save_writing_limits_twice() -> None:
    first = tenant("a", ACME, "limits: &small {max_running: 1}")
    roster = parse(file_of(first, tenant("b", OTHER, "limits: {<<: *small, max_queued: 3}")))
    assert roster.tenants[1].limits == Limits(max_running=1, max_queued=3)


def test_prefixes_are_shared_as_text_or_token_ids() -> None:
    more = "shared_prefixes:\n  - text: 'You are'\n  - token_ids: [2, 105]\n"
    text, ids = parse(file_of(tenant("a", ACME), more=more)).shared_prefixes
    assert (text.text, text.token_ids) == ("You are", None)
    assert (ids.text, ids.token_ids) == (None, [2, 105])


# What is refused


@pytest.mark.parametrize(
    ("more", "line", "says"),
    [
        ("weight: 0", 4, "tenants[0].weight: must be greater than or equal to 0.001; got 0"),
        ("weight: heavy", 4, 'tenants[0].weight: must be a valid number; got "heavy"'),
        ("weight: .nan", 4, "tenants[0].weight: "),
        ("wieght: 2", 4, "tenants[0].wieght: unknown field; known: name, weight, limits, keys"),
        ("limits:\n  max_running: 0", 5, "tenants[0].limits.max_running: must be greater than"),
        ("limits:\n  max_running: yes", 5, "tenants[0].limits.max_running: must be a valid int"),
        ("limits:\n  max_rows: 1", 5, "unknown field; known: max_running, max_queued, tokens_per"),
        ("limits:\n  max_context: 1", 5, "must be greater than or equal to 2; got 1"),
        ("limits:\n  max_priority: 1001", 5, "must be less than or equal to 1000; got 1001"),
        ("limits:\n  min_priority: 1", 4, "tenants[0].limits: min_priority 1 is above max_pri"),
        ("limits:", 4, "tenants[0].limits: "),
        ("limits: 3", 4, "tenants[0].limits: "),
        ("name: b", 4, "name is given twice"),
    ],
)
def test_a_mistake_is_named_with_its_line_field_and_limits(more: str, line: int, says: str) -> None:
    message = refusal(file_of(tenant("a", ACME, more)))
    assert message.startswith(f"{PATH}:{line}: "), message
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "must be a valid dictionary"),
        ("tenants: []", 1, "tenants: List should have at least 1 item"),
        ("tenants:\n  - name: a\n", 2, "tenants[0].keys: missing"),
        ("tenants:\n  - name: a\n    keys: []\n", 3, "tenants[0].keys: List should have at lea"),
        ("tennants: []", 1, "tennants: unknown field; known: tenants, shared_prefixes"),
        ("tenants:\n\t- name: a", 2, "not YAML: "),
        ("tenants: ]", 1, "not YAML: "),
        ("tenants: *nobody", 1, "not YAML: "),
        ("--- 1\n--- 2\n", 2, "not YAML: "),
        ("tenants: !!python/object:os.system {}", 1, "not YAML: "),
        (b"tenants:\n  - name: \xff\n", 2, "not UTF-8"),
        ("a: &a [*a]", 1, "a: unknown field"),
    ],
)
def test_what_is_no_file_of_tenants_is_refused(text: str | bytes, line: int, says: str) -> None:
    message = refusal(text)
    assert f"{PATH}:{line}: " in message, message
    assert says in message


@pytest.mark.parametrize("name", ["A", "a b", "-a", "a" * 64, "''", "é", "12", "on"])
def test_a_name_must_fit_into_metrics_and_paths(name: str) -> None:
    assert f"{PATH}:2: tenants[0].name: must be " in refusal(file_of(tenant(name, ACME)))


def test_the_name_that_metrics_use_for_the_rest_is_taken() -> None:
    assert "tenants[0].name: this name is taken" in refusal(file_of(tenant("other", ACME)))


def test_a_plain_key_is_refused_with_what_to_do_and_not_repeated() -> None:
    message = refusal(f"tenants:\n  - name: a\n    keys:\n      - {ACME}\n")
    assert message.startswith(f"{PATH}:4: tenants[0].keys[0]: not a hash of a key")
    assert "dgemma tenants hash-key" in message
    assert ACME not in message


def test_two_tenants_of_one_name_are_refused() -> None:
    message = refusal(file_of(tenant("a", ACME), tenant("a", OTHER)))
    assert message.startswith(f"{PATH}:4: tenants[1].name: a is also the name of tenants[0]")


def test_a_key_of_two_tenants_is_refused_whatever_its_salt() -> None:
    message = refusal(file_of(tenant("a", ACME), tenant("b", ACME)))
    assert message.startswith(f"{PATH}:5: tenants[1].keys[0]: a key that begins with {ACME[:12]}")
    assert "tenants[0].keys[0]" in message


@pytest.mark.parametrize("entry", ["{}", "{text: a, token_ids: [1]}"])
def test_a_shared_prefix_is_text_or_token_ids_not_both(entry: str) -> None:
    message = refusal(file_of(tenant("a", ACME), more=f"shared_prefixes:\n  - {entry}\n"))
    assert f"{PATH}:5: shared_prefixes[0]: give either text or token_ids" in message


def test_everything_wrong_is_said_at_once_up_to_a_point() -> None:
    message = refusal(
        file_of(*(tenant(f"t{n}", key, "weight: 0") for n, key in enumerate((ACME, OTHER, THIRD))))
    )
    assert [line.split(":")[1] for line in message.splitlines()] == ["4", "7", "10"]
    many = refusal("tenants:\n" + "  - {name: 1, keys: []}\n" * 30)
    assert many.splitlines()[-1] == f"{PATH}: and 40 more"
