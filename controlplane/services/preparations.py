"""Preparations: a dataset is made of text where that lies, by a run of one pod that trains nothing.

So it is queued, followed, logged, cancelled and tried again as any run is. Its pod publishes the dataset whole or not
at all, never over another, and goes on from what an earlier attempt has done.
"""

from __future__ import annotations

import dataclasses
import glob
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from controlplane.domain.errors import InvalidSpec, Problem
from controlplane.domain.names import fingerprint, new_run_id
from controlplane.domain.preparations import NAME, PreparationSpec, source_of, tokenizer_of
from controlplane.domain.resolve import OUT as CHECKPOINT
from controlplane.domain.resolve import ResolvedRun
from controlplane.domain.spec import Asked, Checkpoint, Compute, RunSpec
from controlplane.domain.storage import REMOTE, BadStorage, Place, within
from controlplane.services import ground, runs
from controlplane.services.context import Context
from controlplane.services.inputs import no_tokenizer
from controlplane.services.views import RunView
from controlplane.submission import ensure_renderable
from teragpt.sizes import TINY

CPUS = 2
POD_BYTES, WORKER_BYTES = 2 << 30, 1 << 30  # a worker: a process with its tokenizer and its blocks of text
OUT, TOKENIZER = "/out", "/tokenizer"


def create_preparation(
    context: Context, spec: PreparationSpec, *, idempotency_key: str | None = None, principal: str = runs.LOCAL
) -> tuple[RunView, bool]:
    """Store the run that prepares; returns it, and whether an earlier request with the key made it.

    Raises InvalidSpec, NameInUse, FolderInUse while another prepares the same dataset, and KeyReused.
    """
    body_hash = fingerprint({"preparation": spec.model_dump(mode="json", exclude_unset=True)})
    if made := runs.made_before(context, principal, idempotency_key, body_hash):
        return made, True
    run_id = new_run_id()
    resolved = _resolved(context, spec, run_id)
    asker = runs.Asker(principal, idempotency_key, body_hash)
    return runs.store_run(context, runs.prepared(context, spec, resolved, run_id, asker))


def _resolved(context: Context, spec: PreparationSpec, run_id: str) -> ResolvedRun:
    """The run of one pod that a preparation is. Raises InvalidSpec."""
    at = context.at(ground.known(context, spec.compute.cluster))
    traits = at.cluster.traits()
    problems = [*spec.unheeded()]
    places = _places(spec, problems, shared_folders=traits.shared_folders)
    run = _pod(context, spec, _out(at, spec.out, problems), run_id, problems)
    problems += _not_here(run, places) if traits.shared_folders else _not_there(at, run, places)
    if problems:
        raise InvalidSpec(problems)
    made = dataclasses.replace(
        run,
        config={"out": run.config["out"]},
        layout=dataclasses.replace(run.layout, memory_given=spec.compute.memory_per_node is not None),
        parameters=0,
        tokens=0,
        steps=0,
        state_bytes={},
        kind="Job" if spec.kubernetes.kind == "auto" and "Job" in traits.kinds else run.kind,
        runtime=None,
        claims=tuple(sorted({*run.claims, *(place.claim for place in places.values() if place.claim)})),
        command=_command(spec, run, places),
        planned={},
    )
    ensure_renderable(made)
    return made


def _pod(context: Context, spec: PreparationSpec, out: str, run_id: str, problems: list[Problem]) -> ResolvedRun:
    """What a run of one pod resolves to here, with its dataset for a run folder. Raises InvalidSpec."""
    compute = {"nodes": 1, "gpus_per_node": 0, "processes_per_node": 1, **_share(spec.compute)}
    asked = {name: getattr(spec, name) for name in Asked.model_fields}
    asked |= {"compute": spec.compute.model_copy(update=compute), "checkpoint": Checkpoint(uri=out or None)}
    try:
        return ground.fitting(context, RunSpec(size=TINY).model_copy(update=asked), run_id)
    except InvalidSpec as error:
        found = (dataclasses.replace(one, pointer=one.pointer.replace(CHECKPOINT, OUT)) for one in error.problems)
        told = {one.pointer for one in problems}
        raise InvalidSpec([*problems, *(one for one in found if one.pointer not in told)]) from None


def _share(compute: Compute) -> dict[str, float | int]:
    """CPUs of the pod, and bytes of memory."""
    cpus = compute.cpus_per_node or CPUS
    return {
        "cpus_per_node": cpus,
        "memory_per_node": compute.memory_per_node or POD_BYTES + _workers(cpus) * WORKER_BYTES,
    }


def _workers(cpus: float) -> int:
    return max(1, math.floor(cpus))


def _out(at: Context, out: str, problems: list[Problem]) -> str:
    """The dataset's address; a plain name is below the installation's storage."""
    if not NAME.fullmatch(out):
        if out.startswith("pvc://") and "/" not in out.removeprefix("pvc://").rstrip("/"):
            detail = f"got {out!r}; allowed: a folder below the claim's root, which appears when it is whole"
            problems.append(Problem(OUT, "not_a_folder", detail))
        return out
    if not at.storage and not at.cluster.traits().shared_folders:
        detail = f"got {out!r}, and this installation has no storage of its own; allowed: {REMOTE}"
        problems.append(Problem(OUT, "not_a_folder", detail))
        return ""
    return within(at.storage or str(at.home), f"datasets/{out}")


def _places(spec: PreparationSpec, problems: list[Problem], *, shared_folders: bool) -> dict[str, Place]:
    """By pointer, the tokenizer and the sources in their order; what is wrong is added to `problems`."""
    looks: dict[str, Callable[[], Place]] = {
        TOKENIZER: partial(tokenizer_of, spec.tokenizer, shared_folders=shared_folders),
        **{
            f"/sources/{at}": partial(source_of, one, shared_folders=shared_folders)
            for at, one in enumerate(spec.sources)
        },
    }
    places: dict[str, Place] = {}
    for pointer, look in looks.items():
        try:
            places[pointer] = look()
        except BadStorage as error:
            problems.append(Problem(pointer, "not_reached", str(error)))
    return places


def _not_here(run: ResolvedRun, places: Mapping[str, Place]) -> Iterator[Problem]:
    """What this machine, whose folders the pod sees, does not have, and a dataset's place that is taken."""
    out = Path(run.folder)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        detail = f"got {run.folder!r}; allowed: a folder that does not exist yet or is empty (something is there)"
        yield Problem(OUT, "taken", detail)
    for pointer, place in places.items():
        if pointer == TOKENIZER:
            why = no_tokenizer(place.path)
        else:
            there = "://" in place.path or Path(place.path).exists() or glob.has_magic(place.path)
            why = None if there else "no such file"
        if why:
            yield Problem(pointer, "not_found_here", f"got {place.uri!r}; allowed: what is on this machine ({why})")


def _not_there(at: Context, run: ResolvedRun, places: Mapping[str, Place]) -> Iterator[Problem]:
    """Claims that the run's namespace does not have."""
    for pointer, place in places.items():
        if place.claim is not None:
            yield from ground.bad_claim(at, run, place.claim, pointer)


def _command(spec: PreparationSpec, run: ResolvedRun, places: Mapping[str, Place]) -> tuple[str, ...]:
    """What the pod runs."""
    workers = _workers(run.layout.cpus_per_node)
    options = {"out": run.config["out"], "tokenizer": places[TOKENIZER].path, "workers": workers, **spec.recipe}
    given = (f"--{name.replace('_', '-')}={value}" for name, value in options.items())
    sources = (place.path for pointer, place in places.items() if pointer != TOKENIZER)
    return "python", "-m", "teragpt.prepare", *given, "--", *sources
