"""What the API tells about itself: one log line and one measurement a request, and its Prometheus page.

The outermost layer of the app: it names every request, and an error that nobody caught ends here as a problem
document without a word of its trace, which goes to the log.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlplane import tracing
from controlplane.api.problems import Refusal, render
from controlplane.domain.errors import StoreError
from controlplane.logfmt import about

log = logging.getLogger("controlplane.http")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
QUIET = {("GET", "/readyz"), ("POST", "/runs/{run}/metrics")}  # asked often, by machines, whatever the answer

Gauges = Callable[[], Mapping[str, float]]


class Measurements:
    """The registry of one process's measurements.

    `phases` counts runs by phase, `outbox` objects that wait for the cluster, the longest for `outbox_age` seconds,
    `notifications` those by state, `watch_restarts` by watch, `streams` open streams; they are asked when the page is.
    What is stored is left out while the store does not answer. `scheduling` is measured where it is decided.
    """

    def __init__(
        self,
        *,
        phases: Gauges,
        outbox: Callable[[], float],
        outbox_age: Callable[[], float],
        notifications: Gauges,
        watch_restarts: Gauges,
        streams: Callable[[], float],
        scheduling: Collector,
    ) -> None:
        self.registry = CollectorRegistry()
        self._looked_at: dict[str, float] = {}  # by reconciler
        self.requests = Counter(
            "teragpt_http_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "teragpt_http_request_seconds", "Seconds to answer, streams apart.", ("route",), registry=self.registry
        )
        self.reconcile = Histogram(
            "teragpt_reconcile_seconds", "Seconds of one look at everything that lives.", registry=self.registry
        )
        Gauge("teragpt_http_streams", "Event streams now open.", registry=self.registry).set_function(streams)
        for found in (
            scheduling,
            _Asked("teragpt_outbox_rows", "Objects to be made or ended.", None, lambda: {"": outbox()}),
            _Asked(
                "teragpt_outbox_age_seconds", "Since when the first of them is due.", None, lambda: {"": outbox_age()}
            ),
            _Asked("teragpt_runs", "Runs by phase.", "phase", phases),
            _Asked("teragpt_notifications", "Notifications of 30 days by state.", "state", notifications),
            _Asked("teragpt_reconcile_lag_seconds", "Since the last look that was finished.", None, self._lag),
            _Asked("teragpt_watch_restarts", "Watches begun anew.", "watch", watch_restarts, CounterMetricFamily),
        ):
            self.registry.register(found)

    @contextmanager
    def look(self, cluster: str = "") -> Generator[None]:
        """Around one look of the reconciler of this cluster."""
        self._looked_at.setdefault(cluster, time.monotonic())
        with self.reconcile.time():
            yield
        self._looked_at[cluster] = time.monotonic()

    def rests(self) -> None:
        """This process does not reconcile any more."""
        self._looked_at = {}

    def _lag(self) -> dict[str, float]:
        """Of the cluster that was looked at longest ago; none where this process does not reconcile."""
        looked_at = [*self._looked_at.values()]
        return {"": time.monotonic() - min(looked_at)} if looked_at else {}

    def leads(self, leads: Callable[[], bool]) -> None:
        """Show whether this process leads, where one of several does."""
        gauge = Gauge("teragpt_leader", "1 where this process reconciles for all of them.", registry=self.registry)
        gauge.set_function(leads)

    def page(self) -> bytes:
        """The Prometheus page."""
        return generate_latest(self.registry)


class _Asked(Collector):
    """A measurement of one label at most, read when it is asked for."""

    def __init__(
        self,
        name: str,
        help: str,
        label: str | None,
        read: Gauges,
        family: type[GaugeMetricFamily | CounterMetricFamily] = GaugeMetricFamily,
    ) -> None:
        self.name, self.help, self.labels, self.read, self.family = name, help, [label] if label else [], read, family

    def describe(self) -> Iterable[Metric]:
        """Its name alone, so that registering it reads nothing."""
        return [self.family(self.name, self.help, labels=self.labels)]

    def collect(self) -> Iterable[Metric]:
        """Its values."""
        family = self.family(self.name, self.help, labels=self.labels)
        try:
            values = self.read()
        except StoreError:
            return
        for label, value in values.items():
            family.add_metric([label] if self.labels else [], value)
        yield family


class Telemetry:
    """Names, measures and logs every request."""

    def __init__(self, app: ASGIApp, measurements: Measurements) -> None:
        self.app, self.measurements = app, measurements

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; answer 500 where it fails."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        scope["request_id"] = given if GIVEN_ID.fullmatch(given) else os.urandom(16).hex()
        start, status, streams = time.perf_counter(), 0, False

        async def named(message: Message) -> None:
            nonlocal status, streams
            if message["type"] == "http.response.start":
                status, streams = message["status"], any(map(_streams, message["headers"]))
                own = [(b"x-request-id", scope["request_id"].encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        traced = tracing.request(scope["method"], Headers(scope=scope))
        with about(request=scope["request_id"]), traced as ended:
            try:
                await self.app(scope, receive, named)
            except Exception:
                log.exception("request failed", extra={"request": scope["request_id"], "path": scope["path"]})
                if not status:
                    refusal = Refusal("internal", "see the server's log for the request's id")
                    await render(refusal, scope)(scope, receive, named)
            finally:
                self._record(scope, status, time.perf_counter() - start, streams=streams)
                ended(_route(scope), status, {"url.path": scope["path"], "teragpt.request": scope["request_id"]})

    def _record(self, scope: Scope, status: int, seconds: float, *, streams: bool) -> None:
        route = _route(scope)
        self.measurements.requests.labels(scope["method"], route, str(status)).inc()
        if not streams:
            self.measurements.seconds.labels(route).observe(seconds)
        read = scope["method"] in {"GET", "HEAD"} and status < HTTPStatus.BAD_REQUEST
        quiet = read or (scope["method"], route) in QUIET  # whoever follows a run reads all the time
        level = logging.DEBUG if quiet else logging.INFO
        fields = {"method": scope["method"], "path": scope["path"], "status": status, "ms": round(1000 * seconds, 1)}
        run = scope.get("path_params", {}).get("run")
        log.log(level, "request", extra={**fields, **({"run": run} if run else {}), "request": scope["request_id"]})


def _streams(header: tuple[bytes, bytes]) -> bool:
    return header[0] == b"content-type" and header[1].startswith(b"text/event-stream")


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "(none)")
