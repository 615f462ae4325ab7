"""Every operation of the API, once: what it sends, how its reply is read, whether it may be sent again.

A function here sends nothing: it returns a Call, Pages, a Feed or a Download, which the clients carry over. Runs are
named by id, or by name while they live.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import httpx

from controlplane.client.requests import Call, Download, Feed, Pages
from controlplane.replies import Attempt, Event, JsonObject, LogLine, LogMatch, Point, Run

T = TypeVar("T")


def _items(response: httpx.Response) -> Any:
    """The list in the reply."""
    return response.json()["items"]


def ready() -> Call[JsonObject]:
    """`{"ready", "components": {name: {"ready", "detail", "essential"}}}`, also where it is not ready."""
    return Call(template="/readyz", fine=(503,))


def sizes() -> Call[list[JsonObject]]:
    """The named sizes with their shapes and parameter counts."""
    return Call(template="/sizes", read=_items)


def plan(request: Mapping[str, Any]) -> Call[JsonObject]:
    """How the run described by `request` (a run's spec) would be laid out and what it needs; nothing is created."""
    return Call(method="POST", template="/plans", json=request)


def measured(run: str) -> Call[JsonObject]:
    """What was planned of the run and what its steps took: `{planned, measured, measured_over_planned, points}`."""
    return Call(template="/runs/{run}/plan", at={"run": run})


def all_measured(limit: int | None = None) -> Call[list[JsonObject]]:
    """What the runs that have ended took beside their plans, the newest first: as `measured`, with run, gpu, layout."""
    return Call(template="/measured", params={"limit": limit}, read=_items)


def create(spec: Mapping[str, Any], idempotency_key: str | None = None) -> Call[Run]:
    """Create a run. The same key with the same spec gives the same run; without one, each call makes a new run."""
    return Call(method="POST", template="/runs", json=spec, headers=_once(idempotency_key))


def preview(spec: Mapping[str, Any]) -> Call[JsonObject]:
    """What `create` would do: `{plan, manifest, environment: {pod: {...}}, warnings}`; nothing is made."""
    return Call(method="POST", template="/runs:preview", json=spec)


def runs(
    *,
    phase: Sequence[str] = (),
    size: Sequence[str] = (),
    cluster: Sequence[str] = (),
    label: Sequence[str] = (),
    name: str | None = None,
    q: str | None = None,
    since: str | None = None,
    until: str | None = None,
    pinned: bool | None = None,
    limit: int | None = None,
) -> Pages[Run]:
    """Runs, newest first, page by page; at most `limit`. Every condition that is given holds.

    `label` holds `key=value`; `q` words that are part of a name or a label, or the start of an id; `since` and
    `until` are ISO 8601 moments with their zone.
    """
    lists: JsonObject = {"phase": list(phase), "size": list(size), "cluster": list(cluster), "label": list(label)}
    query = {**lists, "name": name, "q": q, "since": since, "until": until, "pinned": pinned}
    return Pages("/runs", query, limit)


def run(run: str) -> Call[Run]:
    """One run."""
    return Call(template="/runs/{run}", at={"run": run})


def cancel(run: str, *, revision: int | None = None) -> Call[Run]:
    """Ask for the run to stop, after a checkpoint; one that has ended stays as it is. `revision` as in `change`."""
    return _turned(run, "cancel", revision)


def suspend(run: str, *, revision: int | None = None) -> Call[Run]:
    """Let it stop for now, with a checkpoint, and give back what it holds. `revision` as in `change`."""
    return _turned(run, "suspend", revision)


def resume(run: str, *, revision: int | None = None) -> Call[Run]:
    """Let a suspended run go on. `revision` as in `change`."""
    return _turned(run, "resume", revision)


def retry(run: str, idempotency_key: str | None = None) -> Call[Run]:
    """A new run (`retry_of`) that goes on from a finished run's last checkpoint; keys as in `create`."""
    return Call(method="POST", template="/runs/{run}/retry", at={"run": run}, headers=_once(idempotency_key))


def clone(run: str, overrides: Mapping[str, Any], idempotency_key: str | None = None) -> Call[Run]:
    """A new run with another's spec, changed by a merge patch; keys as in `create`."""
    headers = _once(idempotency_key)
    return Call(method="POST", template="/runs/{run}/clone", at={"run": run}, json=overrides, headers=headers)


def change(run: str, changes: Mapping[str, Any], *, revision: int | None = None) -> Call[Run]:
    """Change labels, notes, `pinned`, limits or priority (a merge patch of them).

    With the `revision` that the caller has seen, nothing is changed where somebody else was first (ApiError 412).
    """
    seen = _match(revision)
    return Call(
        method="PATCH", template="/runs/{run}", at={"run": run}, json=changes, headers=seen, repeats=revision is None
    )


def delete(run: str, *, revision: int | None = None) -> Call[None]:
    """Hide a run that has ended; `restore_run` shows it again."""
    seen = _match(revision)
    return Call(
        method="DELETE", template="/runs/{run}", at={"run": run}, headers=seen, read=lambda _: None, repeats=False
    )


def deleted(*, q: str | None = None, limit: int | None = None) -> Pages[Run]:
    """Runs that were deleted and not purged, as `runs`."""
    return Pages("/deleted", {"q": q}, limit)


def restore_run(run: str) -> Call[Run]:
    """Show a deleted run, by its id, again."""
    return Call(method="POST", template="/deleted/{run}/restore", at={"run": run}, repeats=False)


def remains(run: str) -> Call[JsonObject]:
    """What a purge of a deleted run, by its id, would remove for good."""
    return Call(template="/deleted/{run}", at={"run": run})


def purge(run: str, *, keep_folder: bool = False) -> Call[JsonObject]:
    """Remove a deleted run, by its id, for good; what went. With a `removal`, wait for that run and ask again.

    `keep_folder` leaves the run folder where it is.
    """
    params = {"keep_folder": "true"} if keep_folder else {}
    return Call(method="DELETE", template="/deleted/{run}", at={"run": run}, params=params, repeats=False)


def create_sweep(body: Mapping[str, Any], idempotency_key: str | None = None) -> Call[JsonObject]:
    """A run for each point of `{"spec", "grid" or "points", "parallelism", "name"}`; keys as in `create`."""
    return Call(method="POST", template="/sweeps", json=body, headers=_once(idempotency_key))


def sweeps(*, limit: int | None = None) -> Pages[JsonObject]:
    """Sweeps, newest first, page by page; at most `limit`."""
    return Pages("/sweeps", {}, limit)


def sweep(sweep: str) -> Call[JsonObject]:
    """A sweep, by its id or name, with one table of its results as `items`."""
    return Call(template="/sweeps/{sweep}", at={"sweep": sweep})


def cancel_sweep(sweep: str) -> Call[JsonObject]:
    """Ask for the end of every run of a sweep."""
    return Call(method="POST", template="/sweeps/{sweep}/cancel", at={"sweep": sweep})


def queues() -> Call[list[JsonObject]]:
    """Every queue with its state and its runs counted."""
    return Call(template="/queues", read=_items)


def change_queue(
    queue: str, action: Literal["pause", "drain", "resume"], *, note: str | None = None
) -> Call[JsonObject]:
    """Close a queue, with a note for those who wait, or open it again."""
    body = None if note is None else {"note": note}
    return Call(method="POST", template=f"/queues/{{queue}}/{action}", at={"queue": queue}, json=body)


def task(run: str, body: Mapping[str, Any]) -> Call[Run]:
    """Have something done with a trained model where its folder is; the run that does it."""
    return Call(method="POST", template="/runs/{run}/tasks", at={"run": run}, json=dict(body), repeats=False)


def prepare(spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> Call[Run]:
    """Have a dataset made of text where that lies; the run that does it. Keys as in `create`."""
    return Call(method="POST", template="/preparations", json=spec, headers=_once(idempotency_key))


def fetch(task: str) -> Download:
    """The tar archive that an ended task has handed back, in pieces."""
    return Download(template="/runs/{run}/output", at={"run": task})


def attempts(run: str) -> Call[list[Attempt]]:
    """The run's attempts, oldest first."""
    return Call(template="/runs/{run}/attempts", at={"run": run}, read=_items)


def pods(run: str, attempt: int | None = None) -> Call[JsonObject]:
    """The pods of an attempt (the newest unless given): `items`, and whether they are `live` or as last seen."""
    return Call(template="/runs/{run}/pods", at={"run": run}, params={"attempt": attempt})


def manifest(run: str, attempt: int | None = None) -> Call[JsonObject]:
    """The object that was, or would be, given to the cluster for an attempt (the newest unless given)."""
    return Call(template="/runs/{run}/manifest", at={"run": run}, params={"attempt": attempt})


def explain(run: str, attempt: int | None = None) -> Call[JsonObject]:
    """Why a run is where it is, or why an attempt ended: `{text, reason, cause, mend, rank, last_lines, ...}`."""
    return Call(template="/runs/{run}/explanation", at={"run": run}, params={"attempt": attempt})


def checkpoints(run: str) -> Call[JsonObject]:
    """The run's checkpoints: `items`, oldest first, and whether the folder was `seen`."""
    return Call(template="/runs/{run}/checkpoints", at={"run": run})


def save(run: str) -> Call[Run]:
    """Ask for a checkpoint now; the run goes on. Twice before it reports its next step is once."""
    return Call(method="POST", template="/runs/{run}/checkpoints", at={"run": run})


def stacks(run: str) -> Call[JsonObject]:
    """Where the ranks stood when the run hung: `items` of `{file, time, text}`, and whether the folder was `seen`."""
    return Call(template="/runs/{run}/stacks", at={"run": run})


def events(run: str, *, after: int = 0, limit: int | None = None) -> Call[list[Event]]:
    """The run's events with a `seq` beyond `after`, oldest first; at most `limit` (the server's, unless given)."""
    return Call(template="/runs/{run}/events", at={"run": run}, params={"after": after, "limit": limit}, read=_items)


def stream_events(run: str, *, after: str | None = None) -> Feed[Event]:
    """The run's events as they happen, until the run has ended."""
    return Feed(template="/runs/{run}/events/stream", at={"run": run}, after=after, read=_one)


def metrics(run: str, *, keys: Sequence[str] = (), downsample: int | None = None) -> Call[list[Point]]:
    """The run's curve, one point a step; `keys` picks values, `downsample` is the most points wanted."""
    query = {"keys": ",".join(keys) or None, "downsample": downsample}
    return Call(template="/runs/{run}/metrics", at={"run": run}, params=query, read=_points)


def stream_metrics(run: str, *, after: str | None = None) -> Feed[Point]:
    """The run's metric points as they come in, until the run has ended."""
    return Feed(template="/runs/{run}/metrics/stream", at={"run": run}, after=after, read=_one)


def logs(run: str, *, rank: int = 0, attempt: int | None = None, tail: int | None = None) -> Call[str]:
    """What a rank printed in an attempt (the newest unless given)."""
    query = {"rank": rank, "attempt": attempt, "tail": tail}
    return Call(template="/runs/{run}/logs", at={"run": run}, params=query, read=lambda reply: reply.text)


def search_logs(
    run: str,
    search: str,
    *,
    rank: int | None = None,
    attempt: int | None = None,
    ignore_case: bool = False,
    regex: bool = False,
    since: str | None = None,
    until: str | None = None,
    limit: int | None = None,
) -> Pages[LogMatch]:
    """Lines that hold this text, of every rank and attempt unless they are given, page by page; at most `limit`.

    With `regex` it is a regular expression of RE2's. `since` and `until` are ISO 8601 moments with their zone.
    """
    query = {"search": search, "rank": rank, "attempt": attempt, "since": since, "until": until}
    flags = {name: "true" for name, given in (("ignore_case", ignore_case), ("regex", regex)) if given}
    return Pages("/runs/{run}/logs", query | flags, limit, {"run": run})


def stream_logs(
    run: str, *, rank: int = 0, attempt: int | None = None, tail: int | None = None, after: str | None = None
) -> Feed[str]:
    """A rank's lines as they are printed, over every attempt from `attempt` on, until the run has ended."""
    return _log_stream(run, rank, attempt, tail, after, lambda data: data["lines"])


def stream_log_lines(
    run: str, *, rank: int = 0, attempt: int | None = None, tail: int | None = None, after: str | None = None
) -> Feed[LogLine]:
    """The same lines, each with the attempt that it was printed in."""
    return _log_stream(run, rank, attempt, tail, after, _log_lines)


def usage(by: str = "user", *, since: str | None = None, until: str | None = None) -> Call[JsonObject]:
    """GPU-hours and CPU-core-hours by `user`, `size` or `label:KEY`, between two ISO 8601 moments."""
    return Call(template="/usage", params={"by": by, "since": since, "until": until})


def notifications(
    *, run: str | None = None, state: str | None = None, limit: int | None = None
) -> Call[list[JsonObject]]:
    """The newest notifications: which event of which run was told to whom, and what was answered."""
    return Call(template="/notifications", params={"run": run, "state": state, "limit": limit}, read=_items)


def clusters() -> Call[list[JsonObject]]:
    """The clusters: what each has, what it lacks, and how that is mended."""
    return Call(template="/clusters", read=_items)


def store() -> Call[JsonObject]:
    """The store: `{database, revision, bytes, reclaimable_bytes, runs, retention}`."""
    return Call(template="/store")


def backup() -> Download:
    """The store as it is at this moment, a SQLite database, in pieces."""
    return Download(template="/store/backup", unhurried=True)


def vacuum() -> Call[JsonObject]:
    """Give the store's unused space back: `{bytes_before, bytes_after}`; writes wait meanwhile."""
    return Call(method="POST", template="/store/vacuum", repeats=False, unhurried=True)


def _log_stream(
    run: str, rank: int, attempt: int | None, tail: int | None, after: str | None, read: Callable[[Any], Iterable[T]]
) -> Feed[T]:
    query = {"rank": rank, "attempt": attempt, "tail": tail}
    return Feed(template="/runs/{run}/logs/stream", at={"run": run}, params=query, after=after, read=read)


def _log_lines(data: JsonObject) -> list[LogLine]:
    return [{"attempt": data["attempt"], "rank": data["rank"], "text": line} for line in data["lines"]]


def _points(response: httpx.Response) -> Any:
    return response.json()["points"]


def _one(data: Any) -> Any:
    return (data,)


def _once(idempotency_key: str | None) -> dict[str, str]:
    return {"idempotency-key": idempotency_key or uuid.uuid4().hex}


def _turned(run: str, to: str, revision: int | None) -> Call[Run]:
    seen = _match(revision)
    return Call(method="POST", template=f"/runs/{{run}}/{to}", at={"run": run}, headers=seen, repeats=revision is None)


def _match(revision: int | None) -> dict[str, str]:
    return {} if revision is None else {"if-match": f'"{revision}"'}
