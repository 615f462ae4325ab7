"""How a length of time is written, wherever a person reads one. It knows nothing else."""

from __future__ import annotations


def duration(seconds: float | None) -> str:
    """Seconds as people write them: 0:41, 3:05:00, 2d 03:00."""
    if seconds is None:
        return "-"
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
