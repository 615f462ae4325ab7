"""One log line an event, as `key=value` pairs that people read and programs parse. It knows what no field means."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+,")
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}

_about: ContextVar[Mapping[str, object]] = ContextVar("about", default={})  # noqa: B039 - nobody changes it


@contextmanager
def about(**fields: object) -> Generator[None]:
    """Put these fields into every line that is logged meanwhile in this context: of which request, of which run."""
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


class Logfmt(logging.Formatter):
    """Time, level, logger and message, what `extra` gave, and what it is about; a traceback stays within its line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        given = {name: value for name, value in vars(record).items() if name not in STANDARD}
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
            **given,
            **{name: value for name, value in _about.get().items() if name not in given},
        }
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return " ".join(f"{name}={quoted(value)}" for name, value in fields.items())


def quoted(value: object) -> str:
    """A value as it stands in a line: quoted where it holds more than letters, digits and plain signs."""
    text = str(value)
    return text if text and BARE.issuperset(text) else json.dumps(text, ensure_ascii=False)


def configure(level: str) -> None:
    """Send every log line of this process to stderr, from `level` on; libraries speak from `warning` on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Logfmt())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("controlplane").setLevel(level.upper())
