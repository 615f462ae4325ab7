"""What an operation of the API is to a client: a request with one reply, a list in pages, an event stream, a file.

Nothing here is sent, and nothing here knows which operations there are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from controlplane.replies import JsonObject

PAGE = 100  # runs fetched at once
T = TypeVar("T")


def _whole(response: httpx.Response) -> Any:
    """The reply's JSON."""
    return response.json()


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request. `template` is the operation's path in the OpenAPI document, below /v1; `at` fills its names."""

    template: str
    at: Mapping[str, str] = field(default_factory=dict[str, str])
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    method: str = "GET"
    json: Any = None

    def to(self, http: httpx.Client | httpx.AsyncClient, **more: Any) -> httpx.Request:
        """The request as `http` sends it. What of the query is None is left out."""
        path = self.template.format(**{name: _segment(value) for name, value in self.at.items()})
        params = {name: value for name, value in self.params.items() if value is not None}
        headers = {**self.headers, **more.pop("headers", {})}
        if self.json is not None:  # NaN and odd bytes too, which the API refuses by their fields' names
            more["content"], headers["content-type"] = json.dumps(self.json), "application/json"
        return http.build_request(self.method, path, params=params, headers=headers, **more)


@dataclass(frozen=True, kw_only=True)
class Call(Request, Generic[T]):
    """A request with one reply. `repeats`: sent twice, it does what it does once. `fine`: statuses that are replies."""

    read: Callable[[httpx.Response], T] = _whole
    repeats: bool = True
    fine: tuple[int, ...] = ()
    unhurried: bool = False  # the reply takes as long as the work does


@dataclass
class Pages(Generic[T]):
    """A list in pages, newest first; at most `limit` of it."""

    template: str
    params: JsonObject
    limit: int | None
    at: Mapping[str, str] = field(default_factory=dict[str, str])
    _more: bool = True
    _cursor: str | None = None

    def next(self) -> Call[JsonObject] | None:
        """The next page's call, if one is wanted."""
        if not self._more or self.limit == 0:
            return None
        return Call(
            template=self.template,
            at=self.at,
            params={**self.params, "cursor": self._cursor, "limit": min(self.limit or PAGE, PAGE)},
        )

    def take(self, page: JsonObject) -> list[T]:
        """What is on a page that came."""
        self._cursor = page["next_cursor"]
        self._more = bool(self._cursor)
        self.limit = self.limit and self.limit - len(page["items"])
        return list(page["items"])


@dataclass(frozen=True, kw_only=True)
class Feed(Request, Generic[T]):
    """An event stream. It resumes after the message with the id `after`; `read` gives what a message's data holds."""

    read: Callable[[Any], Iterable[T]]
    after: str | None = None


@dataclass(frozen=True, kw_only=True)
class Download(Request):
    """A reply that is a file."""

    unhurried: bool = False


def _segment(value: str) -> str:
    """A name as one part of a path; `.` and `..` too, which a URL would resolve otherwise."""
    return quote(value, safe="") if value.strip(".") else value.replace(".", "%2E")
