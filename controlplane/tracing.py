"""OpenTelemetry traces, where the standard variables ask for them; else nothing happens here, and nothing is imported.

A request has a trace of its own, or its caller's. What is done about a run afterwards, by whatever thread or process,
goes into the run's trace: its id is the run's ULID, so that nobody has to hand it on. `docs/tracing.md`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ulid import ULID

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

log = logging.getLogger(__name__)
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
RUN, ATTEMPT = "teragpt.run", "teragpt.attempt"
FAILED = 500  # HTTP statuses from here on are our own failures

_tracer: Tracer | None = None
_trace_id: ContextVar[int | None] = ContextVar("trace_id", default=None)


@contextmanager
def exported(environ: Mapping[str, str], version: str = "") -> Generator[None]:
    """Send spans to the endpoint that `environ` names, if it does, for as long as this lasts."""
    global _tracer  # noqa: PLW0603 - one process, one tracer, as one log
    provider = _provider(environ, version) if asked(environ) else None
    if provider is None:
        yield
        return
    _tracer = provider.get_tracer("teragpt")
    try:
        yield
    finally:
        _tracer = None
        provider.shutdown()  # sends what is left


def asked(environ: Mapping[str, str]) -> bool:
    """Whether traces are wanted."""
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    return not off and any(environ.get(name) for name in ENDPOINTS)


@contextmanager
def span(name: str) -> Generator[None]:
    """Around a part of what this thread is doing."""
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(name):
        yield


@contextmanager
def of_run(name: str, run_id: str, attempt: int) -> Generator[None]:
    """Around what is done about a run, in the run's own trace."""
    if _tracer is None:
        yield
        return
    from opentelemetry.context import Context

    token = _trace_id.set(_trace_of(run_id))
    try:
        started = _tracer.start_as_current_span(name, Context(), attributes={RUN: run_id, ATTEMPT: attempt})
        with started:
            yield
    finally:
        _trace_id.reset(token)


def made(run_id: str) -> None:
    """What is going on made this run: link to its trace."""
    if _tracer is None:
        return
    from opentelemetry import trace

    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    there = trace.SpanContext(_trace_of(run_id), 1, is_remote=True, trace_flags=flags)
    trace.get_current_span().add_link(there)
    trace.get_current_span().set_attribute(RUN, run_id)


Ended = Callable[[str, int, Mapping[str, Any]], None]


@contextmanager
def request(method: str, headers: Mapping[str, str]) -> Generator[Ended]:
    """Around a request; what it yields is told its route, its status and what else is known of it at its end."""
    if _tracer is None:
        yield lambda *_: None
        return
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract(headers)
    with _tracer.start_as_current_span(method, parent, SpanKind.SERVER) as active:

        def ended(route: str, status: int, known: Mapping[str, Any]) -> None:
            active.update_name(f"{method} {route}")
            attributes: dict[str, Any] = {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
            }
            active.set_attributes({**attributes, **known})
            if status >= FAILED:
                active.set_status(StatusCode.ERROR)

        yield ended


def _trace_of(run_id: str) -> int:
    """A run's trace: the 128 bits of its ULID."""
    return int(ULID.from_str(run_id.partition("_")[2]))


def _provider(environ: Mapping[str, str], version: str) -> TracerProvider | None:
    """What makes spans and sends them in the background; None, with a warning, where a package is missing."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    except ImportError as error:
        log.warning("traces are asked for, and none are sent: %s (`pip install '.[otel]'`)", error)
        return None

    class Ids(RandomIdGenerator):
        """Random ids, but for a run's trace."""

        def generate_trace_id(self) -> int:
            return _trace_id.get() or super().generate_trace_id()

    own = {"service.version": version, **({} if environ.get("OTEL_SERVICE_NAME") else {"service.name": "teragpt"})}
    provider = TracerProvider(resource=Resource.create(own), id_generator=Ids())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
