"""A conversation with a trained model in a terminal: `teragpt chat RUN`. It must not know how text is drawn."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

from teragpt.config import ConfigError, Problem
from teragpt.generate import Sampling
from teragpt.sample import Sampler

ANEW = "/new"
HINT = f"{ANEW} begins anew, Ctrl-D ends"


def chat(sampler: Sampler, sampling: Sampling, system: str = "", template: str | None = None) -> None:
    """Read a line, write the reply as it comes, and so on until input ends.

    A message that cannot be taken is told, and the conversation goes on without it. Raises ConfigError where the
    tokenizer has no chat template and none is given.
    """
    first = [{"role": "system", "content": system}] if system else []
    messages = list(first)
    sampler.tokenizer.encode_chat([*first, {"role": "user", "content": ""}], template)
    print(HINT, file=sys.stderr)
    while (line := read_line()) is not None:
        if line == ANEW:
            messages = list(first)
        elif line:
            messages.append({"role": "user", "content": line})
            try:
                said = "".join(tell(reply(sampler, sampling, sampler.tokenizer.encode_chat(messages, template))))
            except ConfigError as error:
                print(f"error: {error}", file=sys.stderr)
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": said})


def reply(sampler: Sampler, sampling: Sampling, prompt: list[int]) -> Iterator[str]:
    """Pieces of the reply to a conversation, as far as the context has room. Raises ConfigError where it has none."""
    room = sampler.context - len(prompt)
    if room < 1:
        allowed = f"less than the context's {sampler.context} ({ANEW} begins anew)"
        raise ConfigError([Problem("messages", f"{len(prompt)} tokens", allowed)])
    for piece in sampler.stream([prompt], replace(sampling, tokens=min(sampling.tokens, room))):
        yield piece.text


def tell(pieces: Iterator[str]) -> Iterator[str]:
    """The same pieces, written to the terminal as they come."""
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
        yield piece
    print()


def read_line() -> str | None:
    """What the user says next; None at the end of input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
