"""Messages of a `text/event-stream` from its lines, whoever reads those (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ServerEvent:
    """One message of a stream: `id` to resume after, `event` its kind, `data` its parsed JSON."""

    id: str
    event: str
    data: Any


@dataclass
class Messages:
    """Takes lines in; a message comes out with the empty line that ends it. One without data is dropped, as there."""

    _id: str = ""
    _event: str = "message"
    _data: list[str] = field(default_factory=list[str])

    def line(self, line: str) -> ServerEvent | None:
        """The message that this line completes."""
        if not line:
            return self._complete()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "id":
            self._id = value
        elif name == "event":
            self._event = value
        return None

    def _complete(self) -> ServerEvent | None:
        data, event = self._data, self._event
        self._data, self._event = [], "message"
        return ServerEvent(self._id, event, json.loads("\n".join(data))) if data else None
