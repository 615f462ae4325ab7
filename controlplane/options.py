"""What a setting may be: how its value is read from a text, and what is said where that cannot be.

A reader raises ValueError, whose text is what is allowed; it knows no flag and no variable.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

POSTGRES = ("postgresql", "postgres")
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
HOST = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
TOKEN_LINE = re.compile(r"([!-~]{1,253})\s+sha256:([0-9a-f]{64})")
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
SIGNATURES = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


class SettingsError(ValueError):
    """A setting that cannot be used; the text names it, what was given and what is allowed. Exit code 2."""


def option(default: object, help: str, read: Callable[[str], object], *, secret: bool = False) -> Any:
    """A leaf of the tree: `read` makes its value of a text, raising ValueError that says what is allowed.

    A `secret` stands in no message and in no `repr`.
    """
    return field(default=default, repr=not secret, metadata={"help": help, "read": read, "secret": secret})


def number(low: float, high: float) -> Callable[[str], float]:
    """Reads a number from `low` to `high`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return value

    return read


def whole(low: int, high: int) -> Callable[[str], int]:
    """Reads a whole number from `low` to `high`."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high):
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return read


def word(*words: str) -> Callable[[str], str]:
    """Reads one of `words`."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return text

    return read


def switch(text: str) -> bool:
    """Reads true or false."""
    return word("true", "false")(text.lower()) == "true"


def folder(text: str) -> Path:
    """Reads the path of a folder; `~` is the user's home."""
    try:
        path = Path(text).expanduser().absolute()
    except RuntimeError:  # ~name, and there is no such user
        path = None
    if not text or "\0" in text or path is None:
        raise ValueError("the path of a folder")
    return path


def file(text: str) -> str:
    """Reads the path of a file that is there; empty is none."""
    if text and not folder(text).is_file():
        raise ValueError("the path of a file that exists")
    return str(folder(text)) if text else ""


def database_url(value: str) -> str:
    """Reads the URL of a Postgres database; empty is none."""
    if not value:
        return ""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in POSTGRES and len(parts.path) > 1 and (parts.port or True)
    except ValueError:  # a port that is no number
        usable = False
    if not usable or any(letter.isspace() for letter in value):
        raise ValueError("a URL like postgresql://user:password@host:5432/database")
    return value


def database_url_file(value: str) -> str:
    """Reads the URL of a Postgres database from the file that it stands in; empty is none."""
    return database_url(file_text(value, holding="a URL"))


def text(value: str) -> str:
    """Reads a text without spaces."""
    if any(letter.isspace() or not letter.isprintable() for letter in value):
        raise ValueError("a text without spaces")
    return value


def json_object(value: str) -> str:
    """Reads a JSON object."""
    try:
        found = json.loads(value)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError("a JSON object")  # noqa: TRY004 (the reader's contract)
    return value


def labels(value: str) -> str:
    """Reads names of namespaces, with commas between them; empty is none."""
    if value and not all(LABEL.fullmatch(name) for name in value.split(",")):
        raise ValueError("DNS labels with commas between them: lower-case letters, digits and dashes, at most 63 each")
    return value


def quotas(value: str) -> str:
    """Reads GPUs of namespaces; empty is no bound."""
    parts = [part.partition("=") for part in value.split(",")] if value else []
    usable = all(LABEL.fullmatch(name) and re.fullmatch("[0-9]{1,6}", count) for name, _, count in parts)
    if not usable or len({name for name, _, _ in parts}) < len(parts):
        raise ValueError("NAMESPACE=GPUS with commas between them, each namespace once, such as team-a=8,team-b=16")
    return value


def url(value: str) -> str:
    """Reads an http or https URL; empty is none."""
    parts = urlsplit(value)
    if value and not (parts.scheme in {"http", "https"} and parts.hostname):
        raise ValueError("a URL that begins with http:// or https://")
    return value.rstrip("/")


def address(text: str) -> str:
    """Reads an IP address or a host name; brackets around an IPv6 address are dropped."""
    if not text or any(letter.isspace() or letter in "/\0" for letter in text):
        raise ValueError("an IP address or a host name")
    return text.removeprefix("[").removesuffix("]")


def host_names(value: str) -> str:
    """Reads host names, with commas between them; empty is none."""
    names = value.lower().split(",") if value else []
    if not all(HOST.fullmatch(name) for name in names):
        raise ValueError("host names with commas between them, without ports, such as teragpt.example.com")
    return ",".join(names)


def networks(value: str) -> str:
    """Reads networks, with commas between them; empty is none."""
    try:
        for network in value.split(",") if value else ():
            ipaddress.ip_network(network)
    except ValueError:
        raise ValueError("networks with commas between them, such as 10.0.0.0/24,fd00::/64") from None
    return value


def header(value: str) -> str:
    """Reads the name of a header."""
    if not HEADER.fullmatch(value):
        raise ValueError("the name of a header: letters, digits and dashes")
    return value


def algorithms(value: str) -> str:
    """Reads algorithms of signatures, with commas between them; those where both sides share a secret are none."""
    if not set(value.split(",")) <= set(SIGNATURES):
        raise ValueError(f"with commas between them, {', '.join(SIGNATURES)}")
    return value


def secure_url(value: str) -> str:
    """Reads an https URL, or one of this machine, exactly as it is; empty is none."""
    parts = urlsplit(value)
    secure = parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    if value and not (secure and parts.hostname and not parts.query and not parts.fragment):
        raise ValueError("a URL that begins with https:// (http:// for this machine alone)")
    return value


def file_text(value: str, holding: str = "something") -> str:
    """Reads what stands in a file, less the spaces around it; empty is none."""
    if not value:
        return ""
    try:
        content = Path(file(value)).read_text("utf-8").strip()
    except OSError as error:
        raise ValueError(f"the path of a file that can be read ({error.strerror})") from None
    if not content:
        raise ValueError(f"the path of a file that holds {holding}; this one is empty")
    return content


def tokens_file(value: str) -> str:
    """Reads the path of a file that `token_lines` can read; empty is none."""
    return value if token_lines(value) else ""


def token_lines(value: str) -> str:
    """The tokens' digests in the file of this path, a line each: NAME sha256:DIGEST; empty lines and # are left out."""
    lines = [line.strip() for line in file_text(value).splitlines()]
    shown = {at: TOKEN_LINE.fullmatch(line) for at, line in enumerate(lines, 1) if line and not line.startswith("#")}
    bad = [at for at, match in shown.items() if match is None]
    if value and (bad or not shown):
        where = f"line {bad[0]} is none" if bad else "it has none"
        raise ValueError(f"the path of a file with lines NAME sha256:DIGEST, as `teragpt token` prints them; {where}")
    return "\n".join(f"{match[1]} sha256:{match[2]}" for match in shown.values() if match)


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine's loopback interface."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in LOOPBACK_NAMES
