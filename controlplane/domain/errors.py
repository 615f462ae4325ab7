"""Everything that the control plane refuses, as one tree. It knows no HTTP: the API maps `code` to a status.

ControlPlaneError
├── InvalidSpec            fields that cannot be used, each with its pointer
├── NotFound               no such run, attempt or pod
├── Conflict               the request is sound, but not in the present state
│   ├── NameInUse          a live run has this name
│   ├── FolderInUse        a live run writes to this folder
│   ├── StillRunning       the run has not ended yet
│   ├── NoCheckpoint       the run has no model yet
│   ├── NotAlive           the run has ended, or is being cancelled
│   ├── NotReporting       no trainer of the run is there that could be asked for something
│   ├── BeingPurged        a pod removes, or has removed, the folder of a deleted run
│   ├── NeededByRun        a live run reads the folder of a run that is to be purged
│   ├── NotTraining        a task is no run to clone
│   ├── OnPostgres         Postgres has its own means for this
│   └── KeyReused          an idempotency key came back with another body
├── Changed                somebody has changed the run since the caller read it
├── BadCursor              a page cursor that we did not make
├── Unauthorized           a caller who is unknown, or a run token that is
├── Forbidden              a caller who is known, and may not
├── IssuerSilent           the issuer of callers' tokens must be asked, and does not answer
├── ClusterSilent          the cluster must be asked, and does not answer
└── StoreError             the data folder cannot be used
    ├── FolderLocked       another process holds it
    ├── NetworkFolder      it lies on a network file system
    ├── NewerStore         a newer version wrote it
    ├── NotRestored        a backup cannot become the store of this folder
    ├── Superseded         another process leads, and this one may not write what a leader writes
    ├── StoreDamaged       the database is damaged, and is not copied
    └── StoreUnavailable   it cannot be read or written now (disk full, permissions)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class ControlPlaneError(Exception):
    """What we refuse; `code` is a stable word for programs, the text one sentence for people."""

    code = "error"


@dataclass(frozen=True)
class Problem:
    """One bad field of a request: its JSON `pointer`, a stable `code`, and what was given and is allowed."""

    pointer: str
    code: str
    detail: str

    def __str__(self) -> str:
        return f"{self.pointer or '/'}: {self.detail}"


class InvalidSpec(ControlPlaneError):
    """A spec that cannot become a run, with every problem found in it."""

    code = "invalid_spec"

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))


class NotFound(ControlPlaneError):
    """There is no `kind` called `id`; `there` says what there is."""

    code = "not_found"

    def __init__(self, kind: str, id: str | int, there: str = "") -> None:
        self.kind, self.id = kind, id
        super().__init__(f"there is no {kind} {id!r}{there and f': {there}'}")


class Conflict(ControlPlaneError):
    """A sound request that the present state does not allow."""

    code = "conflict"


class NameInUse(Conflict):
    """The live run `holder` has this name."""

    code = "name_in_use"

    def __init__(self, name: str, holder: str) -> None:
        self.name, self.holder = name, holder
        super().__init__(f"the name {name!r} belongs to the live run {holder}: cancel it, or give another name")


class FolderInUse(Conflict):
    """The live run `holder` writes its checkpoints to this folder."""

    code = "folder_in_use"

    def __init__(self, folder: str, holder: str) -> None:
        self.folder, self.holder = folder, holder
        super().__init__(
            f"checkpoint.uri {folder!r} belongs to the live run {holder}: cancel it, or give another folder"
        )


class StillRunning(Conflict):
    """Only a run that has ended can be retried or deleted."""

    code = "still_running"

    def __init__(self, run_id: str, phase: str, verb: str) -> None:
        self.run_id, self.phase = run_id, phase
        super().__init__(f"run {run_id} is {phase}: cancel it, or wait for its end, before you {verb} it")


class NotAlive(Conflict):
    """Only a run that goes on, and is not being cancelled, can be suspended, resumed or told how to go on."""

    code = "not_alive"

    def __init__(self, run_id: str, phase: str, verb: str) -> None:
        self.run_id, self.phase = run_id, phase
        super().__init__(f"run {run_id} is {phase} and cannot be {verb}: retry makes a new run from its checkpoint")


class NotReporting(Conflict):
    """Only a run that trains, and has reported a step in its newest attempt, can be asked for a checkpoint."""

    code = "not_reporting"

    def __init__(self, run_id: str, state: str, checkpoint_step: int | None) -> None:
        last = "there is none yet" if checkpoint_step is None else f"the last one is of step {checkpoint_step}"
        super().__init__(f"run {run_id} {state}, so that nobody can write a checkpoint now: {last}")


class NeededByRun(Conflict):
    """The live run `holder` begins from the folder that a purge would remove."""

    code = "needed_by_run"

    def __init__(self, run_id: str, holder: str) -> None:
        self.run_id, self.holder = run_id, holder
        super().__init__(f"run {holder} lives and needs what run {run_id} has left: cancel it, or wait for its end")


class BeingPurged(Conflict):
    """What a purge has begun to remove cannot be shown again."""

    code = "being_purged"

    def __init__(self, run_id: str) -> None:
        super().__init__(f"the folder of run {run_id} is being removed, or is gone: the run can only be purged")


class NotTraining(Conflict):
    """A task is made by a route of its own."""

    code = "not_training"

    def __init__(self, run_id: str, task: str, task_of: str | None) -> None:
        whose, route = (f" of {task_of}", f"/runs/{task_of}/tasks") if task_of else ("", "/preparations")
        super().__init__(f"run {run_id} is a {task}{whose}: POST {route} makes another")


class NoCheckpoint(Conflict):
    """There is no model yet that a task could work on."""

    code = "no_checkpoint"

    def __init__(self, run_id: str, phase: str, folder: str) -> None:
        super().__init__(f"run {run_id} is {phase}, and there is no checkpoint in its folder {folder}")


class OnPostgres(Conflict):
    """What only a store on SQLite can do."""

    code = "on_postgres"

    def __init__(self, instead: str) -> None:
        super().__init__(f"the store is a Postgres database: {instead} (docs/replicas.md)")


class KeyReused(Conflict):
    """The idempotency key was used with another body; `run_id` is the run that it made."""

    code = "idempotency_key_reused"

    def __init__(self, key: str, run_id: str) -> None:
        self.key, self.run_id = key, run_id
        super().__init__(
            f"the idempotency key {key!r} was used with another body, which made run {run_id}: use a new key"
        )


class Changed(ControlPlaneError):
    """The caller's `If-Match` names another revision than the run's."""

    code = "changed"

    def __init__(self, run_id: str, revision: int) -> None:
        self.run_id, self.revision = run_id, revision
        super().__init__(
            f'run {run_id} has been changed since and is at "{revision}" now: look at it again, then give that'
        )


class BadCursor(ControlPlaneError):
    """A page cursor that no list gave out."""

    code = "bad_cursor"

    def __init__(self, cursor: str) -> None:
        super().__init__(f"{cursor!r} is no cursor of this list: leave it out to start at the first page")


class Unauthorized(ControlPlaneError):
    """A caller whom nobody knows by what they show; unless told otherwise, a pod by a token that is not this run's."""

    code = "unauthorized"

    def __init__(self, detail: str = "the bearer token is not one of this run's attempts") -> None:
        super().__init__(detail)


class Forbidden(ControlPlaneError):
    """A caller whose name is known, and who may not do this."""

    code = "forbidden"


class IssuerSilent(ControlPlaneError):
    """The issuer must be asked for its keys to know who calls, and does not answer now; nothing was changed."""

    code = "issuer_unavailable"


class ClusterSilent(ControlPlaneError):
    """The cluster must be asked for this, and does not answer now; nothing was changed."""

    code = "cluster_unavailable"


class StoreError(ControlPlaneError):
    """The data folder cannot be used."""

    code = "store_error"


class FolderLocked(StoreError):
    """Another control plane, process `pid`, works on this data folder."""

    code = "folder_locked"

    def __init__(self, home: Path, pid: int | None) -> None:
        self.home, self.pid = home, pid
        holder = f"process {pid}" if pid else "another process"
        super().__init__(f"{home} is in use by {holder}: stop it, or give another folder with --home")


class NetworkFolder(StoreError):
    """SQLite's locks and syncs cannot be trusted on a network file system."""

    code = "network_folder"

    def __init__(self, home: Path, kind: str) -> None:
        super().__init__(f"{home} lies on a network file system ({kind}): give a folder on a local disk with --home")


class NewerStore(StoreError):
    """A newer version of the control plane has written the data folder."""

    code = "newer_store"

    def __init__(self, place: str, revision: str) -> None:
        super().__init__(f"{place} was written by a newer teragpt (revision {revision}): install that one, or newer")


class NotRestored(StoreError):
    """A backup that is none, is damaged, or would overwrite something; nothing was changed."""

    code = "not_restored"


class StoreDamaged(StoreError):
    """The database is damaged: asked again, it is so again."""

    code = "store_damaged"


class Superseded(StoreError):
    """Another process leads by now, or this one's lease is over; nothing was written."""

    code = "superseded"

    def __init__(self, epoch: int) -> None:
        super().__init__(f"this process does not lead any more (its epoch was {epoch})")


class StoreUnavailable(StoreError):
    """The store cannot be read or written now; nothing was changed."""

    code = "store_unavailable"
