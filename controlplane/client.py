"""A small synchronous client of the HTTP API: what the command line uses, and what a script needs.

It knows the wire and nothing else: no store, no cluster, no pydantic, so that importing it stays cheap. Replies are
the API's JSON objects with their keys typed. Streams reconnect by themselves and resume by `Last-Event-ID`.

    ClientError
    ├── Unreachable   nobody answers at the URL
    └── ApiError      the API refused: `status`, `code`, `problem` (RFC 9457), `errors` with a pointer each
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self, cast
from urllib.parse import quote

import httpx

from controlplane.replies import TERMINAL, Attempt, Event, JsonObject, Point, Progress, Run

__all__ = [
    "TERMINAL",
    "ApiError",
    "Attempt",
    "Client",
    "ClientError",
    "Event",
    "JsonObject",
    "Point",
    "Progress",
    "Run",
    "ServerEvent",
    "Unreachable",
    "parse_events",
]
PAGE = 100  # runs fetched at once
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0  # between reconnections of a stream
HEARTBEATS_MISSED_S = 45.0  # the server pings every 15 s; a stream silent for longer is dead


class ClientError(Exception):
    """The call did not work; the text is one sentence for a person."""


class Unreachable(ClientError):
    """Nobody answers at `url`."""

    def __init__(self, url: str, cause: Exception) -> None:
        self.url = url
        super().__init__(f"no control plane answers at {url} ({str(cause) or type(cause).__name__})")


class ApiError(ClientError):
    """The API refused the call. `errors` holds `{pointer, code, detail}` of every bad field."""

    def __init__(self, problem: JsonObject) -> None:
        self.problem = problem
        self.status = int(problem.get("status", 500))
        self.code = str(problem.get("code", "unknown"))
        self.errors = cast("list[dict[str, str]]", problem.get("errors") or [])
        fields = "".join(f"\n  {error['pointer'] or '(body)'}: {error['detail']}" for error in self.errors)
        super().__init__(f"{problem.get('detail') or problem.get('title')}{fields}")


@dataclass(frozen=True)
class ServerEvent:
    """One message of a stream: `id` to resume after, `event` its kind, `data` its parsed JSON."""

    id: str
    event: str
    data: Any


class Client:
    """The API at `url`. `token` is sent as a bearer token; `timeout_s` bounds every call but the streams.

    Every method raises Unreachable where nobody answers and ApiError where the API refuses. Runs are named by id, or
    by name while they live. Use it as a context manager, or call `close`.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", token: str | None = None, *, timeout_s: float = 30.0
    ) -> None:
        self.url = url.rstrip("/")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=f"{self.url}/v1", headers=headers, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def ready(self) -> JsonObject:
        """`{"ready", "components": {name: {"ready", "detail", "essential"}}}`, also where it is not ready."""
        response = self._send("GET", "/readyz", expect=(200, 503))
        return cast("JsonObject", response.json())

    def sizes(self) -> list[JsonObject]:
        """The named sizes with their shapes and parameter counts."""
        return cast("list[JsonObject]", self._json("GET", "/sizes")["items"])

    def plan(self, request: Mapping[str, Any]) -> JsonObject:
        """How the run described by `request` (a run's spec) would be laid out and what it needs; nothing is created."""
        return self._json("POST", "/plans", json=request)

    def measured(self, run: str) -> JsonObject:
        """What was planned of the run and what its steps took: `{planned, measured, measured_over_planned, points}`."""
        return self._json("GET", _path(run, "plan"))

    def create(self, spec: Mapping[str, Any], idempotency_key: str | None = None) -> Run:
        """Create a run. The same key with the same spec gives the same run; without one, each call makes a new run."""
        headers = {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        return cast("Run", self._json("POST", "/runs", json=spec, headers=headers))

    def preview(self, spec: Mapping[str, Any]) -> JsonObject:
        """What `create` would do: `{plan, manifest, environment: {pod: {...}}, warnings}`; nothing is made."""
        return self._json("POST", "/runs:preview", json=spec)

    def runs(
        self,
        *,
        phase: Sequence[str] = (),
        size: Sequence[str] = (),
        label: Sequence[str] = (),
        q: str | None = None,
        since: str | None = None,
        until: str | None = None,
        pinned: bool | None = None,
        limit: int | None = None,
    ) -> Iterator[Run]:
        """Runs, newest first, page by page; at most `limit`. Every condition that is given holds.

        `label` holds `key=value`; `q` words that are part of a name or a label, or the start of an id; `since` and
        `until` are ISO 8601 moments with their zone.
        """
        query: JsonObject = {"phase": list(phase), "size": list(size), "label": list(label), "q": q}
        return self._pages("/runs", {**query, "since": since, "until": until, "pinned": pinned}, limit)

    def deleted(self, *, q: str | None = None, limit: int | None = None) -> Iterator[Run]:
        """Runs that were deleted and not purged, as `runs`."""
        return self._pages("/deleted", {"q": q}, limit)

    def _pages(self, path: str, query: JsonObject, limit: int | None) -> Iterator[Run]:
        left, cursor = limit, None
        while left is None or left > 0:
            page = self._json("GET", path, params={**query, "cursor": cursor, "limit": min(left or PAGE, PAGE)})
            yield from cast("list[Run]", page["items"])
            cursor = page["next_cursor"]
            left = left and left - len(page["items"])
            if not cursor:
                return

    def run(self, run: str) -> Run:
        """One run."""
        return cast("Run", self._json("GET", _path(run)))

    def cancel(self, run: str) -> Run:
        """Ask for the run to stop. It writes a checkpoint first; a run that has ended stays as it is."""
        return cast("Run", self._json("POST", _path(run, "cancel")))

    def suspend(self, run: str) -> Run:
        """Let it stop for now, with a checkpoint, and give back what it holds."""
        return cast("Run", self._json("POST", _path(run, "suspend")))

    def resume(self, run: str) -> Run:
        """Let a suspended run go on."""
        return cast("Run", self._json("POST", _path(run, "resume")))

    def change(self, run: str, changes: Mapping[str, Any], *, revision: int | None = None) -> Run:
        """Change labels, notes, `pinned`, limits or priority (a merge patch of them).

        With the `revision` that the caller has seen, nothing is changed where somebody else was first (ApiError 412).
        """
        return cast("Run", self._json("PATCH", _path(run), json=changes, headers=_match(revision)))

    def delete(self, run: str, *, revision: int | None = None) -> None:
        """Hide a run that has ended; `restore_run` shows it again."""
        self._send("DELETE", _path(run), headers=_match(revision))

    def restore_run(self, run: str) -> Run:
        """Show a deleted run, by its id, again."""
        return cast("Run", self._json("POST", f"/deleted/{quote(run, safe='')}/restore"))

    def remains(self, run: str) -> JsonObject:
        """What a purge of a deleted run, by its id, would remove for good."""
        return self._json("GET", f"/deleted/{quote(run, safe='')}")

    def purge(self, run: str) -> JsonObject:
        """Remove a deleted run, by its id, for good; what went."""
        return self._json("DELETE", f"/deleted/{quote(run, safe='')}")

    def clone(self, run: str, overrides: Mapping[str, Any], idempotency_key: str | None = None) -> Run:
        """A new run with another's spec, changed by a merge patch; keys as in `create`."""
        headers = {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        return cast("Run", self._json("POST", _path(run, "clone"), json=overrides, headers=headers))

    def create_sweep(self, body: Mapping[str, Any], idempotency_key: str | None = None) -> JsonObject:
        """A run for each point of `{"spec", "grid" or "points", "parallelism", "name"}`; keys as in `create`."""
        headers = {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        return self._json("POST", "/sweeps", json=body, headers=headers)

    def sweeps(self, *, limit: int | None = None) -> Iterator[JsonObject]:
        """Sweeps, newest first, page by page; at most `limit`."""
        return cast("Iterator[JsonObject]", self._pages("/sweeps", {}, limit))

    def sweep(self, sweep: str) -> JsonObject:
        """A sweep, by its id or name, with one table of its results as `items`."""
        return self._json("GET", f"/sweeps/{quote(sweep, safe='')}")

    def cancel_sweep(self, sweep: str) -> JsonObject:
        """Ask for the end of every run of a sweep."""
        return self._json("POST", f"/sweeps/{quote(sweep, safe='')}/cancel")

    def queues(self) -> list[JsonObject]:
        """Every queue with its state and its runs counted."""
        return cast("list[JsonObject]", self._json("GET", "/queues")["items"])

    def change_queue(
        self, queue: str, action: Literal["pause", "drain", "resume"], *, note: str | None = None
    ) -> JsonObject:
        """Close a queue, with a note for those who wait, or open it again."""
        body = None if note is None else {"note": note}
        return self._json("POST", f"/queues/{quote(queue, safe='')}/{action}", json=body)

    def checkpoints(self, run: str) -> JsonObject:
        """The run's checkpoints: `items`, oldest first, and whether the folder was `seen`."""
        return self._json("GET", _path(run, "checkpoints"))

    def usage(self, by: str = "user", *, since: str | None = None, until: str | None = None) -> JsonObject:
        """GPU-hours and CPU-core-hours by `user`, `size` or `label:KEY`, between two ISO 8601 moments."""
        return self._json("GET", "/usage", params={"by": by, "since": since, "until": until})

    def task(self, run: str, body: Mapping[str, Any]) -> Run:
        """Have something done with a trained model where its folder is; the run that does it."""
        return cast("Run", self._json("POST", _path(run, "tasks"), json=dict(body)))

    def fetch(self, task: str) -> Iterator[bytes]:
        """The tar archive that an ended task has handed back, in pieces."""
        with self._http.stream("GET", _path(task, "output")) as reply:
            if reply.is_error:
                reply.read()
                raise ApiError(_problem(reply))
            yield from reply.iter_bytes(1 << 20)

    def backup(self) -> Iterator[bytes]:
        """The store as it is at this moment, a SQLite database, in pieces."""
        patience = httpx.Timeout(self._http.timeout.connect, read=None)  # the copy is made before its first byte
        with self._http.stream("GET", "/store/backup", timeout=patience) as reply:
            if reply.is_error:
                reply.read()
                raise ApiError(_problem(reply))
            yield from reply.iter_bytes(1 << 20)

    def notifications(
        self, *, run: str | None = None, state: str | None = None, limit: int | None = None
    ) -> list[JsonObject]:
        """The newest notifications: which event of which run was told to whom, and what was answered."""
        query = {"run": run, "state": state, "limit": limit}
        return cast("list[JsonObject]", self._json("GET", "/notifications", params=query)["items"])

    def store(self) -> JsonObject:
        """The store: `{database, revision, bytes, reclaimable_bytes, runs}`."""
        return self._json("GET", "/store")

    def vacuum(self) -> JsonObject:
        """Give the store's unused space back: `{bytes_before, bytes_after}`; writes wait meanwhile."""
        return self._json("POST", "/store/vacuum", timeout=httpx.Timeout(self._http.timeout.connect, read=None))

    def clusters(self) -> list[JsonObject]:
        """The clusters: what each has, what it lacks, and how that is mended."""
        return cast("list[JsonObject]", self._json("GET", "/clusters")["items"])

    def retry(self, run: str) -> Run:
        """A new run (`retry_of`) that goes on from a finished run's last checkpoint."""
        return cast("Run", self._json("POST", _path(run, "retry")))

    def manifest(self, run: str, attempt: int | None = None) -> JsonObject:
        """The object that was, or would be, given to the cluster for an attempt (the newest unless given)."""
        return self._json("GET", _path(run, "manifest"), params={"attempt": attempt})

    def attempts(self, run: str) -> list[Attempt]:
        """The run's attempts, oldest first."""
        return cast("list[Attempt]", self._json("GET", _path(run, "attempts"))["items"])

    def pods(self, run: str, attempt: int | None = None) -> JsonObject:
        """The pods of an attempt (the newest unless given): `items`, and whether they are `live` or as last seen."""
        return self._json("GET", _path(run, "pods"), params={"attempt": attempt})

    def explain(self, run: str, attempt: int | None = None) -> JsonObject:
        """Why a run is where it is, or why an attempt ended: `{text, reason, cause, mend, rank, last_lines, ...}`."""
        return self._json("GET", _path(run, "explanation"), params={"attempt": attempt})

    def events(self, run: str, *, after: int = 0) -> list[Event]:
        """The run's events with a `seq` beyond `after`, oldest first."""
        return cast("list[Event]", self._json("GET", _path(run, "events"), params={"after": after})["items"])

    def metrics(self, run: str, *, keys: Sequence[str] = (), downsample: int | None = None) -> list[Point]:
        """The run's curve, one point a step; `keys` picks values, `downsample` is the most points wanted."""
        query = {"keys": ",".join(keys) or None, "downsample": downsample}
        return cast("list[Point]", self._json("GET", _path(run, "metrics"), params=query)["points"])

    def logs(self, run: str, *, rank: int = 0, attempt: int | None = None, tail: int | None = None) -> str:
        """What a rank printed in an attempt (the newest unless given); `tail` is the number of last lines."""
        query = {"rank": rank, "attempt": attempt, "tail": tail}
        return self._send("GET", _path(run, "logs"), params=query).text

    def stream_logs(
        self, run: str, *, rank: int = 0, attempt: int | None = None, tail: int | None = None, after: str | None = None
    ) -> Iterator[str]:
        """A rank's lines as they are printed, over every attempt from `attempt` on, until the run has ended."""
        query = {"rank": rank, "attempt": attempt, "tail": tail}
        for event in self.stream(_path(run, "logs", "stream"), query, after=after):
            yield from cast("list[str]", event.data["lines"])

    def stream_events(self, run: str, *, after: str | None = None) -> Iterator[Event]:
        """The run's events as they happen, until the run has ended."""
        for event in self.stream(_path(run, "events", "stream"), {}, after=after):
            yield cast("Event", event.data)

    def stream_metrics(self, run: str, *, after: str | None = None) -> Iterator[Point]:
        """The run's metric points as they come in, until the run has ended."""
        for event in self.stream(_path(run, "metrics", "stream"), {}, after=after):
            yield cast("Point", event.data)

    def stream(
        self, path: str, query: JsonObject, *, after: str | None = None, patience_s: float = 60.0
    ) -> Iterator[ServerEvent]:
        """Messages of an event stream until its end, over as many connections as it takes.

        Raises Unreachable once no connection was made for `patience_s` seconds.
        """
        pause, silent_since = FIRST_PAUSE_S, time.monotonic()
        while True:
            try:
                for event in self._connect(path, query, after):
                    if event.event == "end":
                        return
                    after = event.id or after
                    pause = FIRST_PAUSE_S
                    yield event
                    silent_since = time.monotonic()
            except Unreachable:
                if time.monotonic() - silent_since > patience_s:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _connect(self, path: str, query: JsonObject, after: str | None) -> Iterator[ServerEvent]:
        """Messages of one connection. Raises Unreachable, also where the API cannot answer now, and ApiError."""
        headers = {"accept": "text/event-stream", **({"last-event-id": after} if after else {})}
        timeout = httpx.Timeout(self._http.timeout.connect, read=HEARTBEATS_MISSED_S)
        try:
            with self._http.stream("GET", path, params=_given(query), headers=headers, timeout=timeout) as response:
                if response.is_success:
                    yield from parse_events(response.iter_lines())
                    return
                response.read()
        except httpx.TransportError as error:
            raise Unreachable(self.url, error) from error
        if response.status_code == 503:
            raise Unreachable(self.url, ApiError(_problem(response)))
        raise ApiError(_problem(response))

    def _json(self, method: str, path: str, **options: Any) -> JsonObject:
        return cast("JsonObject", self._send(method, path, **options).json())

    def _send(self, method: str, path: str, *, expect: tuple[int, ...] = (), **options: Any) -> httpx.Response:
        options["params"] = _given(options.get("params") or {})
        try:
            response = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise Unreachable(self.url, error) from error
        if response.is_success or response.status_code in expect:
            return response
        raise ApiError(_problem(response))


@dataclass
class _Message:
    """A message of a stream while its lines come in."""

    id: str = ""
    event: str = "message"
    data: list[str] = field(default_factory=list[str])


def parse_events(lines: Iterator[str]) -> Iterator[ServerEvent]:
    """Messages of a `text/event-stream` (WHATWG HTML, section 9.2.6); one without data is dropped, as there."""
    message = _Message()
    for line in lines:
        if not line:
            if message.data:
                yield ServerEvent(message.id, message.event, json.loads("\n".join(message.data)))
            message = _Message(message.id)
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            message.data.append(value)
        elif name == "id":
            message.id = value
        elif name == "event":
            message.event = value


def _path(run: str, *parts: str) -> str:
    return "/".join(("/runs", quote(run, safe=""), *parts))


def _match(revision: int | None) -> dict[str, str]:
    return {} if revision is None else {"if-match": f'"{revision}"'}


def _given(query: Mapping[str, Any]) -> JsonObject:
    return {name: value for name, value in query.items() if value is not None}


def _problem(response: httpx.Response) -> JsonObject:
    """The reply's problem document, or one that says what came instead of it."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if isinstance(problem, dict) and "status" in problem:
        return cast("JsonObject", problem)
    detail = f"{response.url} answered {response.status_code} {response.reason_phrase} without a problem document"
    return {"status": response.status_code, "code": "unexpected_reply", "title": "Unexpected reply", "detail": detail}
