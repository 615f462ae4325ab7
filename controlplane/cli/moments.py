"""Moments as people give them on a command line: a date, a time, or how long ago it was."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from controlplane.cli.errors import CliError, Code

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
AGO = re.compile(r"(\d{1,6})([mhdw])")


def moment(option: str, text: str | None, now: datetime | None = None) -> str | None:
    """An ISO 8601 moment with its zone, for the API; text without a zone is in this machine's. Raises CliError."""
    if text is None:
        return None
    try:
        if ago := AGO.fullmatch(text):
            then = (now or datetime.now(UTC)) - timedelta(**{UNITS[ago[2]]: int(ago[1])})
        else:
            then = datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        allowed = "a date or time (2026-11-24, 2026-11-24T12:30), or how long ago (30m, 12h, 7d, 4w)"
        raise CliError(f"{option}: got {text!r}; allowed: {allowed}", Code.BAD_INPUT) from None
    return then.astimezone(UTC).isoformat().replace("+00:00", "Z")
