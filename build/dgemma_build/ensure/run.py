"""Makes a model store hold a verified engine for this machine: what is done in which order.

Knows where an engine stands before and after it is verified; every step lives in its own module. A
run that was ended at any moment is gone on with by the next one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dgemma.checkpoint_manifest import content_of
from dgemma.compatibility import ANY_GPU, why_no_kernels, why_not
from dgemma.errors import ConfigurationError
from dgemma.geometry import Geometry
from dgemma.machine import Machine
from dgemma.manifest import FILE_NAME, Manifest
from dgemma.profiles.aside import Aside, aside_of, set_aside, take_back
from dgemma.profiles.inventory import Inventory
from dgemma.profiles.layout import UNVERIFIED
from dgemma.profiles.locks import building
from dgemma.profiles.profile import profiles
from dgemma_build.engine import build_engine, build_from_store
from dgemma_build.ensure.order import AUTO, Order, Plan, planned, revision
from dgemma_build.ensure.verification import Engine, verified_before, verify
from dgemma_build.parts import Progress
from dgemma_build.quantize.run import quantize_checkpoint


@dataclass(frozen=True)
class Told:
    """Who hears how far it is."""

    line: Callable[[str], None]
    progress: Progress


@dataclass(frozen=True)
class Ensured:
    """What is in the store now. Where `aside` is not None, the engine is not to be used."""

    directory: Path
    done: tuple[str, ...]  # of weights, engine and verification, those that were not there before
    aside: Aside | None = None


def ensure(order: Order, machine: Machine, told: Told) -> Ensured:
    """Weights, engine, verification, each where it is not there yet; of several who do, one does.

    Where the target is left open and its GPU gets no engine of its own, or one that is set aside,
    the engine for any GPU is made as well. Raises ConfigurationError where something cannot be
    built, or it cannot be told whether it is right.
    """
    kernels = replace(order, target=ANY_GPU)
    spare = order.target == AUTO and machine.gpu is not None
    try:
        ensured = _ensure(order, machine, told)
    except ConfigurationError as error:
        if not spare or not _runs_kernels(kernels, machine):
            raise
        told.line(f"{error}; making the engine for any GPU instead")
        return _ensure(kernels, machine, told)
    if ensured.aside is None or not spare or not _runs_kernels(kernels, machine):
        return ensured
    told.line(f"{ensured.directory}: {ensured.aside}; making the engine for any GPU as well")
    try:
        other = _ensure(kernels, machine, told)
    except ConfigurationError as error:
        told.line(str(error))
        return ensured
    return replace(ensured, done=(*ensured.done, *other.done))


def _runs_kernels(order: Order, machine: Machine) -> bool:
    """Whether the engine for any GPU can be built as ordered, and run here."""
    try:
        return why_no_kernels(machine, planned(order, machine).precision) is None
    except ConfigurationError:
        return False


def _ensure(order: Order, machine: Machine, told: Told) -> Ensured:
    plan = planned(order, machine)
    done: list[str] = []
    told.line(f"{order.root}: {plan.target.name} {plan.precision}, {plan.runtime}")
    content = revision(order.checkpoint)
    if plan.weights is not None:
        weights, content = _weights(plan, plan.weights, told, done)
        plan = Plan(**vars(plan) | {"weights": weights})
    final = plan.engine(content)
    with building(final, lambda owner: told.line(f"waiting for {owner}")):
        return _ensured(plan, final, machine, told, done)


def others_that_fit(ensured: Ensured, order: Order, machine: Machine) -> list[str]:
    """Profiles of the store that can be served here instead of an engine that was set aside."""
    if ensured.aside is None:
        return []
    geometry, content = Geometry.from_checkpoint(order.checkpoint), content_of(order.checkpoint)
    found = profiles(Inventory.of(order.root), machine, geometry, content)
    return [profile.name for profile in found if profile.refusal is None]


def _weights(plan: Plan, place: Path, told: Told, done: list[str]) -> tuple[Path, str]:
    """The weight store and what it was made of; one that stands elsewhere in the store is taken."""
    checkpoint = plan.order.checkpoint
    for found in Inventory.of(plan.order.root).weights:
        held = found.manifest
        if held.precision == plan.precision and held.source.startswith(revision(checkpoint)):
            place = found.directory
    told.line(f"1 of 3, weights: {place}")
    with building(place, lambda owner: told.line(f"waiting for {owner}")):
        made = quantize_checkpoint(checkpoint, plan.precision, place, None, told.progress)
    if not made.up_to_date:
        done.append("weights")
    return place, made.manifest.source


def _ensured(plan: Plan, final: Path, machine: Machine, told: Told, done: list[str]) -> Ensured:
    place = _place(final)
    if place == aside_of(final) and (why := Aside.read(place)).by == "operator":
        return Ensured(place, tuple(done), why)
    told.line(f"2 of 3, engine: {place}")
    made = _build(plan, place, told.progress)
    if not made:
        done.append("engine")
    manifest = Manifest.read(place)
    runs_here = why_not(manifest, machine) is None
    engine = Engine(place, None if manifest.weights else plan.weights, runs_here)
    where = "by its passes" if runs_here else "without running it, for this machine cannot"
    told.line(f"3 of 3, verify: {where}")
    if verified_before(engine) is None:
        done.append("verification")
        if (wrong := verify(engine, told.line)) is not None:
            aside = Aside.of("verification", wrong)
            return Ensured(set_aside(place, aside, final), tuple(done), aside)
    if place != final:
        shutil.rmtree(final, ignore_errors=True)  # at most what is left of a damaged one
        take_back(place, final)
    return Ensured(final, tuple(done))


def _place(final: Path) -> Path:
    """Where the engine is, or is to be built: under its own name only what was verified stands."""
    if aside_of(final).exists():
        return aside_of(final)
    try:
        Manifest.read(final).verify(final)
    except ConfigurationError:
        return final.with_name(final.name + UNVERIFIED)
    return final


def _build(plan: Plan, out: Path, progress: Progress) -> bool:
    """Whether it was there."""
    order, name = plan.order, plan.target.name
    if out.exists() and not (out / FILE_NAME).exists():
        shutil.rmtree(out)  # ours, by its name, and not whole
    if plan.weights is None:
        return build_engine(
            *(order.checkpoint, name, plan.precision, out, progress), targets=order.targets
        ).up_to_date
    return build_from_store(
        *(plan.weights, name, plan.precision, out, progress),
        max_rows=plan.rows,
        max_context=plan.context,
        targets=order.targets,
    ).up_to_date
