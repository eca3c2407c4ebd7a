"""Who there is: the tenants of one version of the file, and whose a key is.

Knows the file's text and what in it is wrong, by line; knows nothing of when it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dgemma.errors import ConfigurationError
from dgemma.scheduler.tenancy import Tenant
from dgemma.tenants.keys import ID_LENGTH, KeyHash
from dgemma.tenants.located import Document, Problem, Unreadable
from dgemma.tenants.schema import PrefixEntry, TenantsFile, explain

_MOST_PROBLEMS = 20  # of one file that are worth reading


@dataclass(frozen=True)
class Roster:
    """One version of the tenants' file."""

    tenants: tuple[Tenant, ...]
    shared_prefixes: tuple[PrefixEntry, ...]
    _keys: Mapping[str, tuple[KeyHash, Tenant]]  # by the id that the key begins with

    @classmethod
    def parse(cls, content: bytes, path: Path) -> Roster:
        """Raises ConfigurationError with one line for each thing that is wrong."""
        try:
            document = Document(content.decode())
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise _refused(path, [Problem(line, "not UTF-8; save it as UTF-8")]) from None
        except Unreadable as error:
            raise _refused(path, [error.problem]) from None
        try:
            file = TenantsFile.model_validate(document.data)
        except ValidationError as error:
            problems = [
                Problem(document.line(location), f"{_shown(location)}{what}")
                for location, what in explain(error)
            ]
            raise _refused(path, problems) from None
        if problems := list(_repetitions(file, document)):
            raise _refused(path, problems)
        return cls._of(file)

    @classmethod
    def _of(cls, file: TenantsFile) -> Roster:
        tenants, keys = [], {}
        for entry in file.tenants:
            tenant = Tenant(entry.name, entry.weight, entry.limits.limits())
            tenants.append(tenant)
            for text in entry.keys:
                known = KeyHash.parse(text)
                keys[known.id] = (known, tenant)
        return cls(tuple(tenants), tuple(file.shared_prefixes), keys)

    def owner(self, key: str) -> Tenant | None:
        """The tenant whose key it is."""
        known, tenant = self._keys.get(key[:ID_LENGTH], (None, None))
        return tenant if known is not None and known.matches(key) else None

    def key_ids(self, tenant: Tenant) -> list[str]:
        """What the tenant's keys begin with."""
        return [key_id for key_id, (_, owner) in self._keys.items() if owner is tenant]


def _repetitions(file: TenantsFile, document: Document) -> Iterator[Problem]:
    """Names and keys that two tenants have."""
    names: dict[str, int] = {}
    keys: dict[str, str] = {}
    for index, entry in enumerate(file.tenants):
        if entry.name in names:
            yield Problem(
                document.line(("tenants", index, "name")),
                f"tenants[{index}].name: {entry.name} is also the name of "
                f"tenants[{names[entry.name]}]; names are unique",
            )
        names.setdefault(entry.name, index)
        for number, text in enumerate(entry.keys):
            place, key_id = f"tenants[{index}].keys[{number}]", KeyHash.parse(text).id
            if key_id in keys:
                yield Problem(
                    document.line(("tenants", index, "keys", number)),
                    f"{place}: a key that begins with {key_id} is also at {keys[key_id]}; a key "
                    "belongs to one tenant, and no two may begin alike: make another",
                )
            keys.setdefault(key_id, place)


def _shown(location: tuple[str | int, ...]) -> str:
    if not location:
        return ""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return "".join(parts).removeprefix(".") + ": "


def _refused(path: Path, problems: list[Problem]) -> ConfigurationError:
    lines = [f"{path}:{problem.line}: {problem.what}" for problem in problems[:_MOST_PROBLEMS]]
    if len(problems) > _MOST_PROBLEMS:
        lines.append(f"{path}: and {len(problems) - _MOST_PROBLEMS} more")
    return ConfigurationError("\n".join(lines))
