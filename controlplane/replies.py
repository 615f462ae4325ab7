"""The API's JSON objects with their keys typed, as the client hands them out. Nothing here checks or converts them."""

from __future__ import annotations

from typing import Any, TypedDict

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})  # phases that are the last

JsonObject = dict[str, Any]


class Progress(TypedDict):
    """How far a run is: the newest point of its curve."""

    step: int
    steps: int
    loss: float | None
    val_loss: float | None
    best_loss: float | None
    best_val_loss: float | None
    tokens_per_s: float | None
    eta_s: float | None
    mfu: float | None
    memory_bytes: int | None
    time: float | None


class Run(TypedDict):
    """A run as the API shows it. `resolved["config"]` holds every setting of the trainer, given or derived."""

    id: str
    name: str
    phase: str
    desired: str
    reason: str | None
    message: str | None
    attempt: int
    size: str
    spec: JsonObject
    resolved: JsonObject
    progress: Progress | None
    kubernetes: JsonObject
    folder: str
    labels: dict[str, str]
    restarts: int
    checkpoint_step: int | None
    notes: str | None
    pinned: bool
    user: str
    revision: int
    created_at: str
    started_at: str | None
    finished_at: str | None
    retry_of: str | None
    clone_of: str | None
    after: str | None
    sweep: str | None
    task: str | None
    task_of: str | None
    links: dict[str, str]


class Attempt(TypedDict):
    """One execution of a run on a cluster. From `reason` to `last_lines` it tells of the rank that failed first."""

    attempt: int
    name: str
    uid: str | None
    phase: str
    charged: bool | None
    reason: str | None
    message: str | None
    rank: int | None
    exit_code: int | None
    signal: str | None
    step: int | None
    last_lines: list[str]
    pods: list[JsonObject]
    resumed_from: int | None
    created_at: str
    started_at: str | None
    finished_at: str | None


class Event(TypedDict):
    """Something that happened to a run. `seq` grows by one with each event of the run."""

    seq: int
    time: str
    kind: str
    attempt: int | None
    message: str
    data: JsonObject


class LogLine(TypedDict):
    """A line that a rank printed."""

    attempt: int
    rank: int
    text: str


class LogMatch(TypedDict):
    """A line that was found: its number and first byte are those in its node's log, all ranks counted."""

    attempt: int
    rank: int
    line: int
    offset: int
    text: str


Point = dict[str, Any]  # seq, step, time, loss, lr, grad_norm, tokens_per_s, ..., attempt; val_loss on evaluation
