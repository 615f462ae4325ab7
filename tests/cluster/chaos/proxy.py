"""Between the control plane and the API server: passes requests on, and does to some of them what networks do.

It speaks HTTP on loopback to the one and TLS to the other. Logs of pods are answered by the suite's kubelet, as the API
server would have it answer.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.cluster.chaos.api import Server

CHANGES = r"^(POST|DELETE) .*/pytorchjobs"
LISTS = r"^GET .*/(pytorchjobs|pods)\?(?!.*watch=)"
WATCHES = r"^GET .*/(pytorchjobs|pods)\?.*watch="
ANY = r"."
LOG = re.compile(r"/api/v1/namespaces/[^/]+/pods/([^/]+)/log\?(.*)")
CHUNK = 1 << 16
TRUNCATED = 0.6  # how much of an answer comes through

ANSWERS: dict[str, tuple[int, str, str]] = {
    "conflict": (409, "AlreadyExists", "the object already exists"),
    "gone": (410, "Expired", "too old resource version"),
    "too many": (429, "TooManyRequests", "too many requests, please try again later"),
    "webhook": (500, "InternalError", 'failed calling webhook "validator.pytorchjob.training-operator.kubeflow.org"'),
    "invalid": (422, "Invalid", "PyTorchJob is invalid"),
    "unavailable": (503, "ServiceUnavailable", "the server is currently unable to handle the request"),
}


@dataclass
class Fault:
    """What befalls the next `count` requests that match: a key of ANSWERS, or one of these.

    `delay`: the answer comes late. `refuse`: the request never arrives. `forget`: it is carried out, and the answer
    never arrives. `truncate`: half an answer arrives. `cut`: a watch ends in the middle of an event. `expire`: a watch
    says that its version is gone.
    """

    kind: str
    match: str = ANY
    count: int = 1


@dataclass
class Weather:
    """Which faults are to come, and how many came. `out`: nobody is there at all; `hanging`: nobody answers."""

    faults: list[Fault] = field(default_factory=list)
    met: Counter[str] = field(default_factory=Counter)
    out: bool = False
    hanging: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, request: str) -> str | None:
        """The fault that befalls this request."""
        with self.lock:
            for fault in self.faults:
                if fault.count and re.search(fault.match, request):
                    fault.count -= 1
                    self.met[fault.kind] += 1
                    return fault.kind
        return None

    def clear(self) -> None:
        with self.lock:
            self.faults.clear()
        self.out = self.hanging = False


class Proxy:
    """Listens on loopback until `close`. `log` gives the lines of a pod, as a kubelet does."""

    def __init__(self, server: Server, log: Callable[[str, str], Iterator[bytes] | None]) -> None:
        self.weather = Weather()
        self._open: set[socket.socket] = set()
        handler = type("Bound", (Handler,), {"proxy": self, "server_api": server, "pod_log": staticmethod(log)})
        self._listener = _Listener(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._listener.server_address[1]}"
        threading.Thread(target=self._listener.serve_forever, name="proxy", daemon=True).start()

    def outage(self, *, hanging: bool = False) -> None:
        """Nobody is there any more, also for what was under way."""
        self.weather.hanging, self.weather.out = hanging, True
        self.cut()

    def cut(self) -> None:
        """Every connection breaks."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.weather.clear()
        self.cut()
        self._listener.shutdown()
        self._listener.server_close()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever is cut off makes the threads fail, on purpose."""


class Handler(BaseHTTPRequestHandler):
    """One connection of the control plane."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy
    server_api: Server
    pod_log: Callable[[str, str], Iterator[bytes] | None]

    def setup(self) -> None:
        super().setup()
        self.upstream: http.client.HTTPSConnection | None = None
        self.proxy._open.add(self.connection)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def finish(self) -> None:
        self.proxy._open.discard(self.connection)
        if self.upstream is not None:
            self.upstream.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        weather = self.proxy.weather
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if weather.out:
            while weather.hanging:
                time.sleep(0.05)
            self._drop()
            return
        fault = weather.take(f"{self.command} {self.path}")
        if fault in ANSWERS:
            self._refuse(*ANSWERS[fault])
        elif fault == "refuse":
            self._drop()
        elif (found := LOG.match(self.path)) is not None:
            self._log(found[1], found[2])
        else:
            self._pass_on(body, fault)

    def _pass_on(self, body: bytes, fault: str | None) -> None:
        if self.upstream is None:
            address = self.server_api.address
            self.upstream = http.client.HTTPSConnection(address, context=self.server_api.tls, timeout=400)
        headers = {key: value for key, value in self.headers.items() if key.lower() not in {"host", "connection"}}
        try:
            self.upstream.request(self.command, self.path, body or None, headers)
            answer = self.upstream.getresponse()
            if fault == "delay":
                time.sleep(1.0)
            if fault == "forget":
                answer.read()
                self._drop()
            elif "watch=" in self.path and answer.status == 200:
                self._stream(answer, fault)
            else:
                self._whole(answer, fault)
        except (OSError, http.client.HTTPException):
            self._drop()

    def _whole(self, answer: http.client.HTTPResponse, fault: str | None) -> None:
        data = answer.read()
        self.send_response(answer.status)
        for name in ("Content-Type", "Retry-After"):
            if value := answer.getheader(name):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: int(len(data) * TRUNCATED)] if fault == "truncate" else data)
        if fault == "truncate":
            self._drop()

    def _stream(self, answer: http.client.HTTPResponse, fault: str | None) -> None:
        self._begin()
        if fault == "expire":
            code, reason, told = ANSWERS["gone"]
            self._chunk(json.dumps({"type": "ERROR", "object": _status(code, reason, told)}).encode() + b"\n")
            self._drop()
            return
        while not self.proxy.weather.out:
            piece = answer.read1(CHUNK)
            if not piece:
                break
            if fault in {"cut", "truncate"}:
                self._chunk(piece[: int(len(piece) * TRUNCATED)])
                self._drop()
                return
            self._chunk(piece)
        self._chunk(b"")

    def _log(self, pod: str, query: str) -> None:
        lines = self.pod_log(pod, query)
        if lines is None:
            self._refuse(404, "NotFound", f'pods "{pod}" not found')
            return
        self._begin()
        for line in lines:
            self._chunk(line)
        self._chunk(b"")

    def _begin(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def _refuse(self, code: int, reason: str, message: str) -> None:
        data = json.dumps(_status(code, reason, message)).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code == 429:
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(data)

    def _drop(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


def _status(code: int, reason: str, message: str) -> dict[str, Any]:
    known = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    return {**known, "message": message, "reason": reason, "code": code}
