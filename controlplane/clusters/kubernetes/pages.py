"""Lists read one object at a time: a page of pods is 1 MB of JSON, and ten times that once it is decoded as a whole.

What is kept of an object lies beside what was decoded for it. Of a page that is decoded at once it would hold the whole
page's memory, of which the process could give nothing back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from controlplane.clusters.kubernetes.connection import Connection, Trouble

DECODER = json.JSONDecoder()
BETWEEN = re.compile(r"[\s,:]*")
Raw = Mapping[str, Any]


class Listing:
    """The objects at `path` that `query` leaves, asked for in pages of `limit`. `version` is that of the whole list.

    To iterate raises Trouble and Refused, also in between: what came until then is not the whole list. `heard` is
    called with each page.
    """

    def __init__(
        self,
        connection: Connection,
        path: str,
        query: Mapping[str, str],
        limit: int,
        heard: Callable[[], None] = lambda: None,
    ) -> None:
        self._connection, self._path, self._heard = connection, path, heard
        self._query = {**query, "limit": str(limit)}
        self.version = ""

    def __iter__(self) -> Iterator[Raw]:
        following = ""
        while following or not self.version:
            query = {**self._query, "continue": following} if following else self._query
            body = self._connection.read("GET", self._path, query=query)
            self._heard()
            beside: dict[str, Any] = {}
            yield from items(body, beside)
            self.version = self.version or beside["version"]
            following = beside["metadata"].get("continue") or ""


def items(body: bytes, beside: dict[str, Any]) -> Iterator[Raw]:
    """Each item of a list; after the last `beside` has its `version` and all else. Raises Trouble where it is none."""
    try:
        yield from _items(body.decode(), beside)
        beside["version"] = str(beside["metadata"]["resourceVersion"])
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise Trouble(f"an answer that is no list: {body[:200]!r}") from error


def _items(text: str, beside: dict[str, Any]) -> Iterator[Raw]:
    at = _after(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = DECODER.raw_decode(text, at)
        at = _after(text, at)
        if key == "items" and text[at] == "[":
            at = _after(text, at + 1)
            while text[at] != "]":
                item, at = DECODER.raw_decode(text, at)
                yield item
                at = _after(text, at)
            at += 1
        else:
            beside[key], at = DECODER.raw_decode(text, at)
        at = _after(text, at)


def _after(text: str, at: int) -> int:
    """Where the next value begins: behind space and punctuation."""
    found = BETWEEN.match(text, at)
    assert found is not None  # it matches nothing at least
    return found.end()
