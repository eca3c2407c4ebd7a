"""Where settings come from: the command line, the environment, a file, the defaults.

Knows variables and which source wins; what a value may be is the settings' own business.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from dgemma.errors import ConfigurationError
from dgemma.front.settings import FrontSettings
from dgemma.settings import CommonSettings, Settings
from dgemma.supervisor.settings import SupervisorSettings

_CLASSES: tuple[type[CommonSettings], ...] = (Settings, SupervisorSettings, FrontSettings)
_PREFIXES = ("NIM_", "DGEMMA_")
# What other commands read, and what the supervisor tells its processes itself.
_ELSEWHERE = frozenset(
    ("DGEMMA_API_KEY", "DGEMMA_TARGETS", "DGEMMA_READY_TIMEOUT_S", "DGEMMA_READY_CACHE_S")
)
_OWN = frozenset(("DGEMMA_SUPERVISED", "DGEMMA_PROBE_KEY"))
_UNUSED = frozenset(("DGEMMA_TRITON_URL", "DGEMMA_TRITON_METRICS_URL", "DGEMMA_PROBE_API_KEY"))
COMMAND_LINE, ENVIRONMENT, DEFAULT = "command line", "environment", "default"


@dataclass(frozen=True)
class Configuration:
    """`values` are what was set, by variable, and `sources` who set it."""

    values: dict[str, str]
    sources: dict[str, str]
    unknown: tuple[str, ...]  # variables of the environment that nothing reads, with advice

    def lines(self, loaded: Iterable[CommonSettings]) -> Iterator[str]:
        """The settings as a file for `--config`, each with its source."""
        for variable, value in _resolved(loaded).items():
            source = self.sources.get(variable, DEFAULT)
            if value is None:
                yield f"# {variable} is not set"
            elif isinstance(value, SecretStr):
                yield f"# {variable} is a secret  # {source}"
            else:
                yield f"{variable} = {_toml(value)}  # {source}"


def read(
    overrides: Iterable[str], file: Path | None, environment: Mapping[str, str]
) -> Configuration:
    """Settings as KEY=VALUE win over the environment, and that over the file.

    Raises ConfigurationError where the file cannot be read, or something is set that nobody knows.
    """
    names = _names()
    layers = [
        (COMMAND_LINE, dict(_override(override, names) for override in overrides)),
        (ENVIRONMENT, {v: environment[v] for v in names if environment.get(v)}),
        *([(str(file), _of_file(file, names))] if file is not None else []),
    ]
    values: dict[str, str] = {}
    sources: dict[str, str] = {}
    for source, layer in layers:
        for variable in sorted(layer, key=list(names).index):  # of two names the first one wins
            if names[variable] not in values:
                values[names[variable]], sources[names[variable]] = layer[variable], source
    unknown = (v for v in sorted(environment) if v.startswith(_PREFIXES) and v not in names)
    advice = tuple(_unknown(v, names) for v in unknown if v not in _ELSEWHERE | _OWN)
    return Configuration(values, sources, advice)


def _names() -> dict[str, str]:
    """Every variable that may be set, and the first name of the same thing."""
    names: dict[str, str] = {}
    for settings in _CLASSES:
        for field in settings.model_fields:
            first, *others = settings.variables(field)
            names |= dict.fromkeys((first, *others), first)
    return {name: first for name, first in names.items() if name not in _OWN | _ELSEWHERE}


def _override(text: str, names: Mapping[str, str]) -> tuple[str, str]:
    variable, separator, value = text.partition("=")
    if not separator or not variable:
        raise ConfigurationError(f"--set: write KEY=VALUE, got {text!r}")
    if variable not in names:
        raise ConfigurationError(f"--set: {_unknown(variable, names)}")
    return variable, value


def _of_file(file: Path, names: Mapping[str, str]) -> dict[str, str]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"--config: cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"--config: {file} is not TOML: {error}") from None
    for variable, value in content.items():
        if variable not in names:
            raise ConfigurationError(f"--config: {file}: {_unknown(variable, names)}")
        if not isinstance(value, str | int | float):
            raise ConfigurationError(
                f"--config: {file}: {variable}: got {value!r}; expected: a text, a number, true or "
                "false"
            )
    return {
        v: str(value).lower() if isinstance(value, bool) else str(value)
        for v, value in content.items()
    }


def _unknown(variable: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(variable, names, n=1)
    return f"{variable}: no such variable" + (f"; did you mean {near[0]}?" if near else "")


def _resolved(loaded: Iterable[CommonSettings]) -> dict[str, object]:
    """The values that are used, by the first name of each variable."""
    values: dict[str, object] = {}
    for settings in loaded:
        for field in type(settings).model_fields:
            variable = settings.variables(field)[0]
            if variable not in _OWN | _UNUSED | _ELSEWHERE:
                values.setdefault(variable, getattr(settings, field))
    return dict(sorted(values.items()))


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    return json.dumps(str(value), ensure_ascii=False)
