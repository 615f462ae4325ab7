"""Named control planes of a user, in `$XDG_CONFIG_HOME/teragpt/contexts.json`, and which of them a command talks to.

The order: `--url`; `--context`; TERAGPT_URL; TERAGPT_CONTEXT; the context in use; the control plane that runs on this
machine (its home's `server.json`).
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from controlplane.cli import output
from controlplane.cli.errors import CliError, Code
from controlplane.cli.options import Json

if TYPE_CHECKING:
    from controlplane.client import Client

DEFAULT_URL = "http://127.0.0.1:8000"

commands = typer.Typer(help="Named control planes to talk to.", no_args_is_help=True)


@dataclass
class Contexts:
    """The user's contexts: `{"url", "token", "token_command"}` by name, and the name of the one in `use`."""

    use: str | None = None
    contexts: dict[str, dict[str, str | None]] = field(default_factory=dict[str, dict[str, str | None]])

    @staticmethod
    def path() -> Path:
        """Where they are kept."""
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "teragpt" / "contexts.json"

    @classmethod
    def load(cls) -> Contexts:
        """The contexts as kept; none where there is no file. Raises CliError where the file cannot be read."""
        try:
            kept = json.loads(cls.path().read_text("utf-8"))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, RecursionError) as error:
            raise CliError(f"{cls.path()} cannot be read as contexts ({error}); mend or remove it") from None
        try:
            contexts = {name: {"url": str(each["url"]), **each} for name, each in kept["contexts"].items()}
            return cls(kept.get("use"), contexts)
        except (KeyError, TypeError, AttributeError):
            form = '{"use": NAME or null, "contexts": {NAME: {"url": URL}}}'
            raise CliError(f"{cls.path()} holds no contexts; allowed: {form}; mend or remove it") from None

    def save(self) -> None:
        """Keep them, readable by their user alone, since they may hold tokens."""
        path = self.path()
        fresh = path.with_suffix(".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.touch(mode=0o600)
            fresh.write_text(json.dumps({"use": self.use, "contexts": self.contexts}, indent=2) + "\n", "utf-8")
            fresh.replace(path)
        except OSError as error:
            raise CliError(f"{path} cannot be written ({error.strerror}); set XDG_CONFIG_HOME") from None

    def show(self) -> None:
        """Print them as JSON, without tokens."""
        output.json({"use": self.use, "contexts": {name: each["url"] for name, each in self.contexts.items()}})

    def named(self, name: str) -> dict[str, str | None]:
        """One context. Raises CliError."""
        if name not in self.contexts:
            known = ", ".join(self.contexts) or "none yet"
            raise CliError(f"no context {name!r}; there are: {known}", Code.BAD_INPUT, next="teragpt context list")
        return self.contexts[name]


def local() -> dict[str, Any]:
    """The control plane of this machine, by its home's `server.json` and `token`; its default address else."""
    home = Path(os.environ.get("TERAGPT_HOME") or "~/.teragpt").expanduser()
    try:
        url = json.loads((home / "server.json").read_text("utf-8"))["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return {"url": DEFAULT_URL}
    token = home / "token"
    return {"url": url, "token": token.read_text("utf-8").strip() if token.exists() else None}


def connect(url: str | None, context: str | None) -> Client:
    """The client of the control plane that the options, the environment and the contexts name. Raises CliError."""
    from controlplane.cli.client import CommandClient

    contexts = Contexts.load()
    token = os.environ.get("TERAGPT_TOKEN") or printed(os.environ.get("TERAGPT_TOKEN_COMMAND"))
    source = "--url"
    if not (url or context):
        source, url, context = "TERAGPT_URL", os.environ.get("TERAGPT_URL"), os.environ.get("TERAGPT_CONTEXT")
    if not url:
        name = context or contexts.use
        place = contexts.named(name) if name else local()
        source, url = f"the context {name!r}" if name else "server.json", str(place["url"])
        token = token or place.get("token") or printed(place.get("token_command"))
    if token and not (token.isascii() and token.isprintable()):
        raise CliError("the token holds a character that no header can; allowed: printable ASCII", Code.BAD_INPUT)
    return CommandClient(checked(source, url), token, patience_s=0)  # a person is told at once


def printed(command: str | None) -> str | None:
    """The token that a command prints, such as one of an issuer's own tool; no shell runs it. Raises CliError."""
    if not command:
        return None
    try:
        done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, text=True, check=True)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise CliError(f"the command that prints the token cannot be used: {error}") from None
    if not done.stdout.strip():
        raise CliError(f"the command that prints the token printed nothing: {command}")
    return done.stdout.strip()


def checked(source: str, url: str) -> str:
    """A control plane's address. Raises CliError that says where it came from."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        good = parts.scheme in {"http", "https"} and bool(host) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise CliError(f"{source}: got {url!r}; allowed: an address such as {DEFAULT_URL}", Code.BAD_INPUT)
    return url


def _kept(context: dict[str, str | None]) -> str:
    return "yes" if context.get("token") else "by command" if context.get("token_command") else "no"


@commands.command("list")
def list_(json: Json = False) -> None:
    """List the contexts; the star marks the one in use."""
    contexts = Contexts.load()
    if json:
        contexts.show()
        return
    rows = [
        ["*" if name == contexts.use else "", name, each["url"], _kept(each)]
        for name, each in contexts.contexts.items()
    ]
    output.table(["", "context", "url", "token"], rows)


@commands.command()
def add(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    url: Annotated[str, typer.Option("--url", help="Its address.")],
    token: Annotated[str | None, typer.Option("--token", help="Its bearer token, if it asks for one.")] = None,
    token_command: Annotated[
        str | None, typer.Option("--token-command", help="A command that prints the token, run for every command.")
    ] = None,
    json: Json = False,
) -> None:
    """Add a context, or change it, and use it."""
    if not name.strip():
        raise CliError(f"NAME: got {name!r}; allowed: a word", Code.BAD_INPUT)
    if token and token_command:
        raise CliError("--token and --token-command both give the token: leave one out", Code.BAD_INPUT)
    contexts = Contexts.load()
    contexts.contexts[name] = {"url": checked("--url", url), "token": token}
    if token_command:
        contexts.contexts[name]["token_command"] = token_command
    contexts.use = name
    contexts.save()
    if json:
        contexts.show()


@commands.command()
def use(
    name: Annotated[str | None, typer.Argument(help="A context; without one, this machine's.")] = None,
    json: Json = False,
) -> None:
    """Choose the context that commands talk to."""
    contexts = Contexts.load()
    if name:
        contexts.named(name)
    contexts.use = name
    contexts.save()
    if json:
        contexts.show()


@commands.command()
def remove(name: Annotated[str, typer.Argument(help="A context.")], json: Json = False) -> None:
    """Remove a context."""
    contexts = Contexts.load()
    contexts.named(name)
    del contexts.contexts[name]
    contexts.use = None if contexts.use == name else contexts.use
    contexts.save()
    if json:
        contexts.show()
