"""A small API server on loopback: enough of Kubernetes' HTTP to talk to the real client, and to go wrong on demand."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from controlplane.clusters.kubernetes import signatures

Raw = dict[str, Any]
COLLECTION = re.compile(
    r"^(?P<api>/api/v1|/apis/[^/]+/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>status|log))?$"
)
KINDS = {
    "/apis/batch/v1": {"jobs": "Job"},
    "/apis/kubeflow.org/v1": {"pytorchjobs": "PyTorchJob"},
    "/apis/trainer.kubeflow.org/v1alpha1": {"trainjobs": "TrainJob", "trainingruntimes": "TrainingRuntime"},
    "/api/v1": {"pods": "Pod", "events": "Event", "nodes": "Node", "services": "Service"},
    "/apis/apps/v1": {"deployments": "Deployment"},
    "/apis/storage.k8s.io/v1": {"storageclasses": "StorageClass"},
    "/apis/kueue.x-k8s.io/v1beta2": {"workloads": "Workload", "localqueues": "LocalQueue"},
}
KINDS["/api/v1"]["persistentvolumeclaims"] = "PersistentVolumeClaim"


@dataclass
class Answer:
    """What a request is answered with instead of the truth; `cut`: the connection is closed in the middle."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    cut: bool = False


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    query: dict[str, str]
    body: Raw
    headers: Mapping[str, str]
    cuts: int = 0  # how often watches had been cut before it came


def status(code: int, reason: str, message: str, **more: Any) -> Answer:
    """A refusal as the API server words it."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
    return Answer(code, json.dumps({**body, "message": message, **more}).encode())


class ApiServer:
    """Objects by path, their history for watches, and what shall go wrong next."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.tokens: dict[str, Raw] = {}  # the status of each token's review
        self.rights: dict[str, set[tuple[str, str, str]]] = {}  # by user: namespace, verb, resource
        self.logs: dict[str, list[bytes]] = {}  # lines with timestamps, by pod
        self.ended_logs: set[str] = set()
        self.forbidden: set[tuple[str, str]] = set()  # (verb, resource)
        self.keys: list[Raw] = []  # that it signs tokens by; where there are none, they may not be read
        self.absent: set[str] = set()  # API groups that are not served
        self.page = 500
        self.ahead_s = 0.0  # its clock, of this machine's
        self._faults: list[tuple[Callable[[Request], bool], Callable[[Request], Answer]]] = []
        self._objects: dict[str, dict[str, Raw]] = {}
        self._history: list[tuple[int, str, str, Raw]] = []
        self._version = 100
        self._forgotten = 0  # versions up to this one are gone from the history
        self._changed = threading.Condition()
        self._cuts = 0
        self._closing = False
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """End every connection."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # --- what a test does -------------------------------------------------------------------------------------------

    def fail(
        self,
        answer: Answer | Callable[[Request], Answer],
        method: str = "",
        path: str = "",
        times: int = 1,
        having: str = "",
    ) -> None:
        """Answer the next `times` requests of this kind, `having` this in their query, with `answer`."""
        left = [times]

        def wanted(request: Request) -> bool:
            fits = method in ("", request.method) and re.search(path, request.path) is not None
            fits = fits and (not having or having in request.query) and left[0] > 0
            left[0] -= fits
            return fits

        with self._changed:
            self._faults.append((wanted, answer if callable(answer) else lambda _: answer))

    def heal(self) -> None:
        """Nothing goes wrong any more."""
        with self._changed:
            self._faults.clear()

    def cut_watches(self) -> None:
        """Close every open watch and log in the middle."""
        with self._changed:
            self._cuts += 1
            self._changed.notify_all()

    def forget_history(self) -> None:
        """Compact: no watch can go on from what was before."""
        with self._changed:
            self._version += 1
            self._forgotten = self._version
            self._history = []

    def watches(self) -> int:
        """How many watches have been asked for."""
        return sum("watch" in request.query for request in list(self.requests))

    def write_log(self, pod: str, *lines: str, ended: bool = False) -> None:
        """What a container writes, with timestamps."""
        with self._changed:
            self.logs.setdefault(pod, []).extend(line.encode() + b"\n" for line in lines)
            if ended:
                self.ended_logs.add(pod)
            self._changed.notify_all()

    # --- what the handler asks --------------------------------------------------------------------------------------

    def fault(self, request: Request) -> Answer | None:
        with self._changed:
            self.requests.append(request)
            request.cuts = self._cuts
            found = next((answer for wanted, answer in self._faults if wanted(request)), None)
        return found(request) if found else None

    def create(self, path: str, raw: Raw, *, dry: bool) -> Answer:
        with self._changed:
            name = raw["metadata"]["name"]
            if name in self._objects.get(path, {}):
                return status(409, "AlreadyExists", f"{name} already exists")
            raw = json.loads(json.dumps(raw))
            raw["metadata"].setdefault("uid", str(uuid.uuid4()))
            raw["metadata"].setdefault("creationTimestamp", _now())
            if not dry:
                self._objects.setdefault(path, {})[name] = raw
                self._record("ADDED", path, raw)
            return Answer(201, json.dumps(raw).encode())

    def get(self, path: str, name: str) -> Answer:
        with self._changed:
            raw = self._objects.get(path, {}).get(name)
            return Answer(200, json.dumps(raw).encode()) if raw else status(404, "NotFound", f"{name} not found")

    def put(self, path: str, name: str, raw: Raw) -> Answer:
        with self._changed:
            if name not in self._objects.get(path, {}):
                return status(404, "NotFound", f"{name} not found")
            if raw["metadata"].get("deletionTimestamp") and raw["metadata"].get("finalizers") == []:
                return self._remove(path, name)
            self._objects[path][name] = raw
            self._record("MODIFIED", path, raw)
            return Answer(200, json.dumps(raw).encode())

    def delete(self, path: str, name: str, options: Raw) -> Answer:
        with self._changed:
            raw = self._objects.get(path, {}).get(name)
            if raw is None:
                return status(404, "NotFound", f"{name} not found")
            wanted = (options.get("preconditions") or {}).get("uid")
            if wanted and wanted != raw["metadata"]["uid"]:
                return status(409, "Conflict", "Precondition failed: UID in precondition")
            foreground = options.get("propagationPolicy") == "Foreground"
            if not (foreground or raw["metadata"].get("finalizers")):
                return self._remove(path, name)
            raw["metadata"].setdefault("deletionTimestamp", _now())
            raw["metadata"].setdefault("finalizers", ["foregroundDeletion"])
            self._record("MODIFIED", path, raw)
            return Answer(200, json.dumps(raw).encode())

    def list(self, path: str, query: Mapping[str, str]) -> Answer:
        with self._changed:
            chosen = [raw for _, raw in sorted(self._objects.get(path, {}).items()) if _selected(raw, query)]
            limit, start = min(self.page, int(query.get("limit", "500"))), int(query.get("continue", "0"))
            following = str(start + limit) if start + limit < len(chosen) else ""
            metadata = {"resourceVersion": str(self._version), "continue": following}
            return Answer(200, json.dumps({"metadata": metadata, "items": chosen[start : start + limit]}).encode())

    def watch(self, path: str, request: Request) -> Iterator[bytes | None]:
        """Lines of events; None: cut here."""
        query, cuts = request.query, request.cuts
        seen = int(query["resourceVersion"])
        with self._changed:
            if seen < self._forgotten:
                error = json.loads(status(410, "Expired", "too old resource version").body)
                yield _event("ERROR", error)
                return
        while True:
            with self._changed:
                events = [entry for entry in self._history if entry[0] > seen and entry[2] == path]
                if not events:
                    self._changed.wait_for(partial(self._news, cuts, seen, path), 10)
                if self._over(cuts):
                    yield None
                    return
                events = [entry for entry in self._history if entry[0] > seen and entry[2] == path]
            lines = [_event(what, raw) for _, what, _, raw in events if _selected(raw, query)]
            seen = events[-1][0] if events else seen
            bookmark = {"metadata": {"resourceVersion": str(seen)}}
            yield b"".join(lines) + _event("BOOKMARK", bookmark)

    def log(self, pod: str, request: Request) -> Iterator[bytes | None]:
        query, cuts = request.query, request.cuts
        since, place = query.get("sinceTime", ""), 0
        while True:
            with self._changed:
                lines, ended = self.logs.get(pod, [])[place:], pod in self.ended_logs
                place += len(lines)
            chosen = [line for line in lines if line[: len(since) - 1].decode() >= since[:-1]]
            if chosen:
                yield b"".join(chosen)
            if query.get("follow") != "true" or ended:
                return
            with self._changed:
                self._changed.wait_for(partial(self._more, cuts, pod, place), 10)
                if self._over(cuts):
                    yield None
                    return

    def _news(self, cuts: int, seen: int, path: str) -> bool:
        return self._over(cuts) or any(entry[0] > seen and entry[2] == path for entry in self._history)

    def _more(self, cuts: int, pod: str, place: int) -> bool:
        return self._over(cuts) or len(self.logs.get(pod, [])) > place or pod in self.ended_logs

    def _over(self, cuts: int) -> bool:
        return self._cuts != cuts or self._closing

    def _remove(self, path: str, name: str) -> Answer:
        raw = self._objects[path].pop(name)
        self._record("DELETED", path, raw)
        return Answer(200, json.dumps(raw).encode())

    def _record(self, what: str, path: str, raw: Raw) -> None:
        self._version += 1
        raw["metadata"]["resourceVersion"] = str(self._version)
        self._history.append((self._version, what, path, json.loads(json.dumps(raw))))
        self._changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, api: ApiServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.api = api

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is nothing to speak of."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # one segment an answer: two would wait for each other's acknowledgement
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - http.server's names

    def date_time_string(self, timestamp: float | None = None) -> str:
        """What the header Date says."""
        return super().date_time_string((timestamp or time.time()) + self.server.api.ahead_s)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _answer(self) -> None:
        api, parts = self.server.api, urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        request = Request(self.command, parts.path, query, body, dict(self.headers.items()))
        if (wrong := api.fault(request)) is not None:
            self._send(wrong)
        elif (found := COLLECTION.match(parts.path)) is None:
            self._send(self._discovery(parts.path, self.headers.get("Accept", "")))
        else:
            self._resource(request, found)

    def _discovery(self, path: str, accepted: str) -> Answer:
        if path == "/version":
            return Answer(200, b'{"gitVersion": "v1.36.3"}')
        if path in (signatures.ABOUT, signatures.KEYS):
            return self._issuer(path, accepted)
        versions = [one for one in KINDS if one.startswith(f"{path}/") and one not in self.server.api.absent]
        if versions:
            preferred = {"version": versions[0].rpartition("/")[2]}
            return Answer(200, json.dumps({"preferredVersion": preferred}).encode())
        if path not in KINDS or path in self.server.api.absent:
            return status(404, "NotFound", "the server could not find the requested resource")
        resources = [{"name": plural, "kind": kind} for plural, kind in KINDS[path].items()]
        return Answer(200, json.dumps({"resources": resources}).encode())

    def _issuer(self, path: str, accepted: str) -> Answer:
        if path == signatures.KEYS and "application/jwk-set+json" not in accepted:
            return Answer(406, b"406: Not Acceptable")
        if not self.server.api.keys:
            return status(403, "Forbidden", f'User "x" cannot get path "{path}"')
        told = {"issuer": "https://kubernetes.default.svc", "keys": self.server.api.keys}
        return Answer(200, json.dumps(told).encode())

    def _resource(self, request: Request, found: re.Match[str]) -> None:
        api, name, sub = self.server.api, found["name"], found["sub"]
        where = f"{found['api']}/{found['namespace'] or ''}/{found['plural']}"
        verb = {"POST": "create", "PUT": "update", "DELETE": "delete"}.get(request.method, "get" if name else "list")
        if (verb, found["plural"]) in api.forbidden:
            self._send(status(403, "Forbidden", f'{found["plural"]} is forbidden: User "x" cannot {verb} it'))
        elif found["plural"] in ("selfsubjectaccessreviews", "subjectaccessreviews", "tokenreviews"):
            self._send(self._review(request.body))
        elif found["api"] in api.absent:
            self._send(status(404, "NotFound", "the server could not find the requested resource"))
        elif sub == "log":
            self._stream(api.log(name, request))
        elif "watch" in request.query:
            self._stream(api.watch(where, request))
        elif request.method == "POST":
            self._send(api.create(where, request.body, dry="dryRun" in request.query))
        elif request.method == "PUT":
            self._send(api.put(where, name, request.body))
        elif request.method == "DELETE":
            self._send(api.delete(where, name, request.body))
        else:
            self._send(api.get(where, name) if name else api.list(where, request.query))

    def _review(self, review: Raw) -> Answer:
        api, spec = self.server.api, review["spec"]
        if "token" in spec:
            return Answer(201, json.dumps({"status": api.tokens.get(spec["token"], {})}).encode())
        asked = spec["resourceAttributes"]
        if "user" in spec:
            rights = api.rights.get(spec["user"], ())
            allowed = (asked["namespace"], asked["verb"], asked["resource"]) in rights
            return Answer(201, json.dumps({"status": {"allowed": allowed}}).encode())
        resource = "/".join(filter(None, (asked["resource"], asked["subresource"])))
        allowed = (asked["verb"], resource) not in api.forbidden
        return Answer(201, json.dumps({"status": {"allowed": allowed}}).encode())

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body[: len(answer.body) // 2] if answer.cut else answer.body)
        self.wfile.flush()
        self.close_connection = answer.cut

    def _stream(self, pieces: Iterator[bytes | None]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        for piece in pieces:
            if piece is None:
                self.close_connection = True
                return
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()


def _event(what: str, raw: Raw) -> bytes:
    return json.dumps({"type": what, "object": raw}).encode() + b"\n"


def _selected(raw: Raw, query: Mapping[str, str]) -> bool:
    labels = raw["metadata"].get("labels") or {}
    wanted = [pair.split("=", 1) for pair in query.get("labelSelector", "").split(",") if pair]
    name = query.get("fieldSelector", "").partition("metadata.name=")[2]
    return name in ("", raw["metadata"]["name"]) and all(labels.get(key) == value for key, value in wanted)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def api_server() -> Iterator[ApiServer]:
    """One that is closed again."""
    server = ApiServer()
    try:
        yield server
    finally:
        server.close()
