"""What a command says when it cannot do what was asked: one line, an exit code, and the next command to try.

Knows the client's errors by their attributes, so that printing one does not cost an import.
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
    client = sys.modules.get("controlplane.client")
    config = sys.modules.get("teragpt.config")
    if client and isinstance(error, client.Unreachable):
        return CliError(str(error), Code.UNREACHABLE, next="teragpt up, or --url with the address of one that runs")
    if client and isinstance(error, client.ApiError):
        return refused(error)
    if config and isinstance(error, config.ConfigError):
        return CliError(str(error), Code.BAD_INPUT)
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
