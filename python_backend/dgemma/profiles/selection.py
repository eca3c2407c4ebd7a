"""The choice of a profile, and the fall to the next one where it cannot be loaded.

Knows what the operator asked for and what to say of a choice; how a profile is loaded is the
caller's business.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from dgemma.errors import ConfigurationError, DgemmaError
from dgemma.profiles.layout import ENGINE, WEIGHTS
from dgemma.profiles.profile import KERNELS, NATIVE, OTHER, Profile, distance

logger = logging.getLogger(__name__)

Loaded = TypeVar("Loaded")
VARIABLE = "NIM_MODEL_PROFILE"
_SHORTEST_ID = 8  # digits that may stand for all 64


@dataclass(frozen=True)
class Refusal:
    """A profile that would have been served, and why it is not."""

    name: str
    reason: str


@dataclass(frozen=True)
class Selection:
    """What is served. Where `fell_back_from` is not empty, something better was there."""

    id: str
    name: str
    directory: str
    weights: str | None  # directory; None: the engine has its own
    revision: str
    why: str
    fell_back_from: tuple[Refusal, ...] = ()

    @property
    def wanted(self) -> str:
        """What would have been served, had it been there and whole."""
        return self.fell_back_from[0].name if self.fell_back_from else self.name

    @classmethod
    def of(cls, profile: Profile, why: str, refused: Sequence[Refusal] = ()) -> Selection:
        weights = None if profile.weights is None else str(profile.weights.directory)
        place = str(profile.engine.directory)
        return cls(profile.id, profile.name, place, weights, profile.revision, why, tuple(refused))

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def named(profiles: Sequence[Profile], root: Path, wanted: str) -> Profile:
    """The profile that the operator named: by name, by id or its first digits, or by directory.

    Of several generations of one name it is the first that fits. Raises ConfigurationError for a
    name that is not known, with those near it, and for one that does not fit, with those that do.
    """
    meant = [p for p in profiles if is_meant(p, root, wanted)]
    if not meant:
        names = list(dict.fromkeys(p.name for p in profiles))
        near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5) or names
        known = ", ".join(near) or "none; the store holds no engine"
        raise ConfigurationError(f"{VARIABLE}: {wanted!r} is not in {root}; there: {known}")
    for profile in meant:
        if profile.refusal is None:
            return profile
    raise ConfigurationError(
        f"{VARIABLE}: {wanted} does not fit: {meant[0].refusal}; {_fitting(profiles)}"
    )


def open_first(
    profiles: Iterable[Profile],
    here: str,
    load: Callable[[Profile], Loaded],
    refused: Sequence[Refusal] = (),
) -> tuple[Loaded, Selection]:
    """Load the first of `profiles` that can be, whose order is that of preference.

    The next one is asked for only where those before it cannot be loaded.

    What was made for target `here` and cannot be loaded, and what has been `refused` before, is
    what the choice fell back from; so is what any GPU runs, where in the end the GPU runs nothing.
    Raises ConfigurationError with every reason where none is left.
    """
    missed = list(refused)
    no_kernels: list[Refusal] = []
    others: list[Refusal] = []
    for profile in profiles:
        away = distance(profile.engine.manifest, here)
        if profile.refusal is None:
            try:
                loaded = load(profile)
            except DgemmaError as error:
                logger.error("profile %s cannot be served: %s", profile.name, error)
                missed.append(Refusal(profile.name, str(error)))
                continue
            why = "the preferred one of those that can be served here"
            missed += no_kernels if away == OTHER else []
            return loaded, said(Selection.of(profile, why, missed))
        reasons = {NATIVE: missed, KERNELS: no_kernels, OTHER: others}[away]
        reasons.append(Refusal(profile.name, profile.refusal))
    raise ConfigurationError(nothing_fits([*missed, *no_kernels, *others]))


def open_named(
    profile: Profile, why: str, profiles: Sequence[Profile], load: Callable[[Profile], Loaded]
) -> tuple[Loaded, Selection]:
    """Load what the operator named and nothing else; ConfigurationError says what else fits."""
    try:
        loaded = load(profile)
    except DgemmaError as error:
        others = [p for p in profiles if p is not profile]
        raise ConfigurationError(
            f"{VARIABLE}: {profile.name}: {error}; {_fitting(others)}"
        ) from None
    return loaded, said(Selection.of(profile, why))


def nothing_fits(refused: Sequence[Refusal]) -> str:
    lines = [f"  {refusal.name}: {refusal.reason}" for refusal in refused]
    return "\n".join(["no engine can be served here:", *lines])


def empty(root: Path) -> str:
    return (
        f"{root}: no engine here and no weights to make one of, no {ENGINE} or {WEIGHTS}; "
        f"build one with `dgemma-build engine --checkpoint DIR --target T --precision P --out "
        f"{root / 'NAME'}`"
    )


def is_meant(profile: Profile, root: Path, wanted: str) -> bool:
    """By name, by id or its first digits, or by directory."""
    directory = profile.engine.directory
    places = (str(directory), str(directory.relative_to(root)))
    by_id = len(wanted) >= _SHORTEST_ID and profile.id.startswith(wanted)
    return by_id or wanted in (profile.name, *places)


def is_preferred(profile: Profile, root: Path, preferred: str | None) -> bool:
    """Whether it is what `preferred` says, a precision or as in `is_meant`."""
    if preferred is None:
        return False
    precision = profile.engine.manifest.precision
    return preferred == precision or is_meant(profile, root, preferred)


def _fitting(profiles: Iterable[Profile]) -> str:
    names = dict.fromkeys(p.name for p in profiles if p.refusal is None)
    return "these fit: " + ", ".join(names) if names else "no other fits either"


def said(selection: Selection) -> Selection:
    """One line of JSON for whoever collects logs, loud where it is not what was hoped for."""
    level = logging.ERROR if selection.fell_back_from else logging.INFO
    logger.log(level, "profile_selected %s", selection.to_json())
    return selection
