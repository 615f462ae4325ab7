"""A conversation with a trained model in a terminal: `teragpt chat RUN`. It must not know how text is drawn."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace

from teragpt.config import ConfigError, Problem
from teragpt.inference.generate import Sampling
from teragpt.inference.sample import Sampler

ANEW = "/new"
HINT = f"{ANEW} begins anew, Ctrl-D ends"


def chat(
    sampler: Sampler, sampling: Sampling, system: str = "", template: str | None = None, *, as_json: bool = False
) -> None:
    """Read a line, write the reply as it comes, and so on until input ends.

    A message that cannot be taken is told, and the conversation goes on without it. With `as_json` each message is
    answered by one line, its reply or its error. Raises ConfigError where the tokenizer has no chat template and none
    is given.
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
                pieces = reply(sampler, sampling, sampler.tokenizer.encode_chat(messages, template))
                said = "".join(pieces if as_json else tell(pieces))
            except ConfigError as error:
                told = f"error: {error}"
                print(json.dumps({"error": str(error)}), flush=True) if as_json else print(told, file=sys.stderr)
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": said})
            if as_json:
                print(json.dumps(messages[-1], ensure_ascii=False), flush=True)


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
        return input("> " if sys.stdin.isatty() and sys.stdout.isatty() else "").strip()
    except EOFError:
        return None
