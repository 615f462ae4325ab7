"""What a command says when it cannot do what was asked: one line, an exit code, and the next command to try.

An error's class is looked up only where its module is loaded already, so that no error costs an import.
"""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import TYPE_CHECKING

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


class CliError(Exception):
    """A sentence for a person, with `code` to exit with and, where there is one, the `next` command to try."""

    def __init__(self, sentence: str, code: Code = Code.REFUSED, *, next: str = "") -> None:
        self.code = code
        super().__init__(f"{sentence}; try: {next}" if next else sentence)


def from_client(error: Exception) -> CliError | None:
    """The CliError that an error of the client or of the trainer's settings amounts to; None for any other error."""
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
        return CliError(sentence, Code.NOT_FOUND, next="teragpt runs")
    if error.status in {401, 403}:
        return CliError(sentence, next="teragpt context add NAME --url URL --token TOKEN")
    if error.status in {400, 413, 415, 422}:
        about_size = any(each["pointer"] == "/size" for each in error.errors)
        return CliError(sentence, Code.BAD_INPUT, next="teragpt sizes" if about_size else "teragpt run --help")
    return CliError(sentence, next="teragpt runs" if error.status == 409 else "")


def missing_extra(command: str, extra: str, error: ModuleNotFoundError) -> CliError:
    """For a command whose libraries are not installed here."""
    sentence = f"teragpt {command} needs the [{extra}] extra, of which {error.name} is not installed"
    return CliError(sentence, Code.MISSING_EXTRA, next=f"pip install '.[{extra}]' in a checkout of TeraGPT")
