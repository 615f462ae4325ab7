"""A client of the HTTP API: what the command line uses, and what a script or a notebook needs.

It knows the wire and nothing else: no store, no cluster, no pydantic, so that importing it stays cheap. `calls` says
once what every operation sends and what comes back; `sync` and `asynchronous` carry it over, each in its way.

    ClientError
    ├── Unreachable   nobody answers at the URL
    └── ApiError      the API refused: `status`, `code`, `problem` (RFC 9457), `errors` with a pointer each
"""

from controlplane.client.asynchronous import AsyncClient, AsyncRunHandle
from controlplane.client.errors import ApiError, ClientError, Unreachable
from controlplane.client.messages import Messages, ServerEvent
from controlplane.client.sync import Client, RunHandle
from controlplane.replies import TERMINAL, Attempt, Event, JsonObject, Point, Progress, Run

__all__ = [
    "TERMINAL",
    "ApiError",
    "AsyncClient",
    "AsyncRunHandle",
    "Attempt",
    "Client",
    "ClientError",
    "Event",
    "JsonObject",
    "Messages",
    "Point",
    "Progress",
    "Run",
    "RunHandle",
    "ServerEvent",
    "Unreachable",
]
