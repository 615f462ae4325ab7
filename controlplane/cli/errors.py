"""What a command says when it cannot do what was asked: one line, an exit code, and the next command to try.

An error's class is looked up only where its module is loaded already, so that no error costs an import.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controlplane.client import ApiError


class Code(IntEnum):
    """Exit codes of `teragpt`; 130 is Ctrl-C."""

    DONE = 0
    REFUSED = 1
    BAD_INPUT = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    RUN_FAILED = 5
    MISSING_EXTRA = 6


COMMANDS = {  # by the last noun of the API's address that one knows
    "clone": "clone",
    "logs": "logs",
    "measured": "measured",
    "notifications": "notifications",
    "plans": "plan",
    "preparations": "prepare",
    "sweeps": "sweep create",
    "usage": "usage",
}


class CliError(Exception):
    """A sentence for a person, with `code` to exit with and, where there is one, the `next` command to try."""

    def __init__(self, sentence: str, code: Code = Code.REFUSED, *, next: str = "") -> None:
        self.code = code
        super().__init__(f"{sentence}{'' if sentence.endswith('?') else ';'} try: {next}" if next else sentence)


def from_client(error: Exception) -> CliError | None:
    """The CliError that an error of ours, of the client or of the trainer's settings is; None for any other error."""
    if isinstance(error, CliError):
        return error
    if isinstance(error, UnicodeEncodeError) and error.encoding == "utf-8":  # an argument's odd bytes
        return CliError(f"got {error.object!r}; allowed: text in UTF-8", Code.BAD_INPUT)
    if "teragpt.config" in sys.modules:
        from teragpt.config import ConfigError

        if isinstance(error, ConfigError):
            return CliError(str(error), Code.BAD_INPUT)
    if "controlplane.client" in sys.modules:
        from controlplane.client import ApiError, Unreachable

        if isinstance(error, Unreachable):
            return CliError(str(error), Code.UNREACHABLE, next="teragpt up, or --url with the address of one that runs")
        if isinstance(error, ApiError):
            return refused(error)
    return None


def refused(error: ApiError) -> CliError:
    """What the API's refusal means here."""
    fields = "; ".join(f"{each['pointer'] or 'body'}: {each['detail']}" for each in error.errors)
    sentence = fields or str(error.problem.get("detail") or error.problem.get("title"))
    if error.status == 404:
        inside = sentence.startswith("there is no attempt") or any(each["pointer"] == "?rank" for each in error.errors)
        place = str(error.problem.get("instance"))
        others = next((f"teragpt {noun} list" for noun in ("sweep", "queue") if f"/{noun}s/" in place), "teragpt runs")
        return CliError(sentence, Code.NOT_FOUND, next="teragpt show RUN" if inside else others)
    if error.status in {401, 403}:
        return CliError(sentence, next="teragpt context add NAME --url URL --token TOKEN")
    if error.status in {400, 413, 415, 422}:
        pointers = {each["pointer"] for each in error.errors}
        listing = any(pointer.startswith("?") for pointer in pointers)
        usual = "runs" if listing else "run"
        parts = str(error.problem.get("instance")).removeprefix("/v1").split("/")[1:]
        command = next((COMMANDS[part] for part in reversed(parts[::2]) if part in COMMANDS), usual)
        return CliError(
            sentence, Code.BAD_INPUT, next="teragpt sizes" if "/size" in pointers else f"teragpt {command} --help"
        )
    return CliError(sentence, next="teragpt runs" if error.status == 409 else "")


def missing_extra(command: str, extra: str, error: ModuleNotFoundError) -> CliError:
    """For a command whose libraries are not installed here."""
    sentence = f"teragpt {command} needs the [{extra}] extra, of which {error.name} is not installed"
    return CliError(sentence, Code.MISSING_EXTRA, next=f"pip install '.[{extra}]' in a checkout of TeraGPT")


def is_help(error: Exception) -> bool:
    """Whether typer raised its help, for a command that was given nothing; the error's text is that help."""
    return type(error).__name__ == "NoArgsIsHelpError"


def from_usage(error: Any, arguments: Sequence[str]) -> CliError | None:
    """The CliError for a mistake that typer found in a command line; None for any other error.

    Typer's exceptions are known by what they hold, since their classes lie in other modules from version to version.
    """
    if not hasattr(error, "format_message"):
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context else " ".join(["teragpt", *arguments[:1]])
    return CliError(_mistake(error), Code.BAD_INPUT, next=f"{command} --help")


def _mistake(error: Any) -> str:
    """What was given where, and what is allowed."""
    said = str(error.format_message()).rstrip(".")
    parameter, option = getattr(error, "param", None), getattr(error, "option_name", None)
    if parameter is not None:
        name = parameter.opts[0] if parameter.param_type_name == "option" else parameter.get_error_hint().strip("'")
        if hasattr(error, "param_type"):  # it is missing
            told = (parameter.help or "a value").rstrip(".")
            return f"{name}: got nothing; allowed: {told[0].lower()}{told[1:]}"
        found: list[Any] = getattr(error.__cause__, "errors", list[Any])()
        if not found:
            return f"{name}: {error.message}"
        allowed = str(found[0]["msg"]).removeprefix("Input should be ").partition(", unable")[0]
        return f"{name}: got {found[0]['input']!r}; allowed: {allowed}"
    if hasattr(error, "possibilities"):
        close = difflib.get_close_matches(str(option), error.possibilities or [], n=1, cutoff=0.0)
        return f"{option}: there is no such option{f'; did you mean {close[0]}?' if close else ''}"
    if option is not None:
        name = option if option.startswith("-") else f"--{option}"
        return f"{name}: got {'nothing; allowed: a value' if 'requires' in said else 'a value; allowed: none'}"
    usage = f"; allowed: {error.ctx.get_usage().removeprefix('Usage: ')}" if "extra argument" in said else ""
    return f"{said[0].lower()}{said[1:]}{usage}".replace(". Did", "; did")
