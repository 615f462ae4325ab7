"""Traces, as a real receiver of OTLP over HTTP gets them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.testclient import TestClient
from ulid import ULID

from controlplane import tracing
from tests.controlplane.plane import BASE, Plane, opened

CALLER = "0af7651916cd43dd8448eb211c80319c"


class Receiver(HTTPServer):
    """Takes spans at /v1/traces, until it is shut down."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Taken)
        self.spans: list[Any] = []
        self.services: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Taken(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        told = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        assert self.path == "/v1/traces"
        for resource in told.resource_spans:
            named = {one.key: one.value.string_value for one in resource.resource.attributes}
            self.server.services.add(named["service.name"])
            self.server.spans += [span for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Tests speak through their assertions."""


@pytest.fixture
def receiver() -> Generator[Receiver]:
    with Receiver() as receiver, ThreadPoolExecutor(1) as pool:
        pool.submit(receiver.serve_forever, 0.01)
        yield receiver
        receiver.shutdown()


@pytest.fixture
def plane(tmp_path: Path, migrated: Path) -> Generator[Plane]:
    with opened(tmp_path / "home", migrated) as plane:
        yield plane


def known(span: Any) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def test_a_run_is_followed_from_its_request_through_the_store_to_its_object(
    receiver: Receiver, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
    monkeypatch.setenv(*next(iter(environ.items())))
    with tracing.exported(environ, "1"), TestClient(plane.app(), base_url=BASE) as client:
        headers = {"traceparent": f"00-{CALLER}-00f067aa0ba902b7-01", "x-request-id": "mine"}
        run = client.post("/v1/runs", json={"size": "tiny"}, headers=headers).json()["id"]
        assert client.get("/v1/runs/nobody").status_code == 404
        plane.start(run)
    assert receiver.services == {"teragpt"}
    post, *others = [span for span in receiver.spans if span.kind == span.SPAN_KIND_SERVER]
    assert [span.name for span in others] == ["GET /runs/{run}"]
    assert (post.name, post.trace_id.hex(), known(post)["teragpt.run"]) == ("POST /runs", CALLER, run)
    assert (known(post)["http.response.status_code"], known(post)["teragpt.request"]) == (201, "mine")
    (write,) = [span for span in receiver.spans if span.parent_span_id == post.span_id]
    assert (write.name, write.trace_id) == ("store write", post.trace_id)
    trace = int(ULID.from_str(run.removeprefix("run_"))).to_bytes(16, "big")
    assert [link.trace_id for link in post.links] == [trace]
    roots = [span for span in receiver.spans if span.trace_id == trace and not span.parent_span_id]
    assert [span.name for span in roots] == ["outbox create", "reconcile", "reconcile"]
    assert [(known(span)["teragpt.run"], known(span)["teragpt.attempt"]) for span in roots] == [(run, 1)] * 3
    inner = {span.name for span in receiver.spans if span.parent_span_id in {root.span_id for root in roots}}
    assert inner == {"store write"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "TRUE"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_traced_unless_it_is_asked_for(environ: dict[str, str]) -> None:
    with tracing.exported(environ), tracing.of_run("look", f"run_{ULID()}", 1), tracing.span("write"):
        assert tracing._tracer is None


def test_a_missing_package_is_named_and_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with caplog.at_level(logging.WARNING), tracing.exported({tracing.ENDPOINTS[1]: "http://127.0.0.1:1"}):
        assert tracing._tracer is None
    assert "pip install '.[otel]'" in caplog.text
