"""Text from a trained model, as it comes: `teragpt sample RUN "def main("`.

Why: what generates knows tokens alone; this turns them into text that never shows half a character nor the beginning
of a stop string. It must not know who reads the text.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from teragpt.inference.generate import Drawn, Generation, Sampling
from teragpt.inference.trained import load
from teragpt.parallel import compute_dtype
from teragpt.tokenization.tokenizer import Tokenizer

UNFINISHED = "�"  # what a character decodes to while bytes of it are missing
ANCHOR = 8  # tokens before a text's first, with which that one is decoded


class Piece(NamedTuple):
    """What the prompt at place `row` has gained: text, the tokens drawn since its last piece, and why it ended.

    `finish` is None while it goes on, else "stop" (the model ended the text, or a stop string came) or "length".
    """

    row: int
    text: str
    drawn: tuple[Drawn, ...]
    finish: str | None


@dataclass
class Completion:
    """The text that follows a prompt, its tokens, and why it ended."""

    text: str = ""
    drawn: list[Drawn] = field(default_factory=list)
    finish: str = ""

    def add(self, piece: Piece) -> None:
        """What its prompt has gained."""
        self.text += piece.text
        self.drawn += piece.drawn
        self.finish = piece.finish or ""


class Sampler:
    """A run folder's newest model, ready to write; several threads may have it write at the same time.

    Raises ConfigError for a folder without a checkpoint.
    """

    def __init__(self, folder: Path | str) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, self.tokenizer, config = load(folder, device)
        self.model, self.context = model.to(compute_dtype(config, device)), config.context
        self.turn = threading.Lock()

    def stream(self, prompts: Sequence[str | Sequence[int]], sampling: Sampling) -> Generator[Piece]:
        """Pieces of text that continue the prompts, texts or tokens, until each ends or has `sampling.tokens` more.

        A text is the same whatever other prompts there are, up to rounding. Raises ConfigError.
        """
        given = [self.tokenizer.encode(one) if isinstance(one, str) else list(one) for one in prompts]
        texts = [Text(self.tokenizer, ids, sampling.stop) for ids in given]
        generation = Generation(self.model, [ids or [self.tokenizer.end] for ids in given], self.context, sampling)
        for number in range(1, sampling.tokens + 1):
            with self.turn:
                step = generation.step()
            ended = []
            for row, drawn in step:
                finish = "length" if number == sampling.tokens else None
                text, finish = texts[row].add(drawn.token, finish)
                if finish:
                    ended.append(row)
                yield Piece(row, text, (drawn,), finish)
            if ended:
                generation.finish(ended)
            if not generation.rows:
                return

    def complete(self, prompts: Sequence[str | Sequence[int]], sampling: Sampling) -> list[Completion]:
        """What follows each prompt, whole. Raises ConfigError."""
        made = [Completion() for _ in prompts]
        for piece in self.stream(prompts, sampling):
            made[piece.row].add(piece)
        return made


class Text:
    """A text that grows by tokens. What is shown of it holds no half character and no beginning of a stop string."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.window = list(prompt[-ANCHOR:])  # tokens that are decoded together, since one may change the next
        self.done = len(self.window)  # how many of them have become text
        self.waiting = ""  # text that a stop string may begin with

    def add(self, token: int, finish: str | None) -> tuple[str, str | None]:
        """What can be shown once `token` has come, and whether that ended the text, unless `finish` did already."""
        if token in self.tokenizer.ends:
            shown, waiting, _ = cut(self.waiting + self.decoded(last=True), self.stop)
            return shown + waiting, "stop"
        self.window.append(token)
        shown, self.waiting, stopped = cut(self.waiting + self.decoded(last=finish is not None), self.stop)
        if stopped or finish is None:
            return shown, "stop" if stopped else None
        return shown + self.waiting, finish

    def decoded(self, *, last: bool) -> str:
        """The text of tokens that came since the last one, once their characters are whole or nothing more comes."""
        before = self.tokenizer.decode(self.window[: self.done])
        text = self.tokenizer.decode(self.window)[len(before) :]
        if text.endswith(UNFINISHED) and not last:
            return ""
        self.window = self.window[self.done :] or self.window
        self.done = len(self.window)
        return text


def cut(text: str, stop: Sequence[str]) -> tuple[str, str, bool]:
    """What of a text can be shown, what has to wait since a stop string may begin with it, and whether one is in it."""
    found = [at for one in stop if (at := text.find(one)) >= 0]
    if found:
        return text[: min(found)], "", True
    begun = max((size for one in stop for size in range(1, len(one)) if text.endswith(one[:size])), default=0)
    return text[: len(text) - begun], text[len(text) - begun :], False


def stream(folder: Path | str, prompt: str, **how: Any) -> Iterator[str]:
    """Pieces of text that continue one prompt; `how` are those of `Sampling`. Raises ConfigError."""
    sampling = Sampling(**how)
    for piece in Sampler(folder).stream([prompt], sampling):
        if piece.text:
            yield piece.text


def told(prompt: str, made: Completion, tokenizer: Tokenizer) -> str:
    """A prompt and what follows, as a line of JSON; with log-probabilities, where its tokens have them."""
    said: dict[str, Any] = {"prompt": prompt, "text": made.text, "finish": made.finish}
    if made.drawn and made.drawn[0].logprob is not None:
        said["tokens"] = [
            {
                "token": tokenizer.decode([one.token]),
                "logprob": one.logprob,
                "likeliest": [{"token": tokenizer.decode([name]), "logprob": score} for name, score in one.likeliest],
            }
            for one in made.drawn
        ]
    return json.dumps(said, ensure_ascii=False)
