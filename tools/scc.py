"""Counts a Python file's code lines exactly as `scc` does, so that the claim can be checked where scc is not at hand.

It is scc's state machine for Python (github.com/boyter/scc, v3.5.0), its faults included: a quote inside a docstring
is taken for the docstring's end. `tokens` counts by Python's own tokenizer instead, which has no such fault.
"""

from __future__ import annotations

import io
import tokenize
from enum import Enum

QUOTES = (b'"""', b"'''", b'r"""', b"r'''")  # the openings that scc treats as docstrings where they begin a line
BLANKS = b" \t\r\n"
LAYOUT = {tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.COMMENT}


class State(Enum):
    """What scc takes the text at hand for."""

    BLANK = "blank"
    CODE = "code"
    COMMENT = "comment"
    CODE_THEN_COMMENT = "code, then a comment"
    STRING = "string"
    DOCSTRING = "docstring"


class Scanner:
    """One pass over `text`; `code` collects the numbers (from 1) of the lines that scc counts as code."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.last = len(text) - 1
        self.state = State.BLANK
        self.end = b""
        self.raw = False  # backslashes escape nothing in the string at hand
        self.code: set[int] = set()

    def scan(self) -> set[int]:
        """The code lines."""
        step = {
            State.BLANK: self.blank,
            State.CODE: self.inside_code,
            State.STRING: self.inside_string,
            State.DOCSTRING: self.inside_docstring,
        }
        index, line = 0, 1
        while index <= self.last:
            if self.text[index] not in BLANKS and self.state in step:
                index = step[self.state](index)
            if index > self.last:
                break
            if self.text[index] == ord("\n") or index >= self.last:
                self.finish(line)
                line += 1
            index += 1
        return self.code

    def finish(self, line: int) -> None:
        """Counts a line that has ended; strings and docstrings go on in the next one."""
        if self.state in {State.CODE, State.STRING, State.CODE_THEN_COMMENT}:
            self.code.add(line)
        if self.state not in {State.STRING, State.DOCSTRING}:
            self.state = State.BLANK

    def opening(self, index: int) -> bytes:
        """The quotes that open a string at `index`, the longest that fit; empty where none does."""
        longest = next((quote for quote in QUOTES if self.text.startswith(quote, index)), b"")
        return longest or (self.text[index : index + 1] if self.text[index] in b"\"'" else b"")

    def enter(self, index: int) -> int:
        """Past the opening of a long string; a short one stays where it is."""
        self.raw = False
        for quote in QUOTES:
            if self.text.startswith(quote, index):
                self.raw = True
                index += len(quote)
        return index

    def blank(self, index: int) -> int:
        """The first character of a line decides what the line is."""
        if self.text[index] == ord("#"):
            self.state = State.COMMENT
            return index
        quotes = self.opening(index)
        if not quotes:
            self.state = State.CODE
            return index
        self.end = quotes.removeprefix(b"r")
        self.state = State.DOCSTRING if len(self.end) > 1 else State.STRING
        return self.enter(index)

    def inside_code(self, index: int) -> int:
        """Up to a comment, a string, or the line's end."""
        at = index
        for at in range(index, self.last):
            if self.text[at] == ord("\n"):
                return at
            if self.text[at] == ord("#"):
                self.state = State.CODE_THEN_COMMENT
                return at
            if quotes := self.opening(at):
                self.end = quotes.removeprefix(b"r")
                after = self.enter(at)
                if self.text[after - 1] != ord("\\"):
                    self.state = State.STRING
                return after
        return at

    def inside_string(self, index: int) -> int:
        """Up to the string's end or the line's."""
        at = index
        for at in range(index, self.last):
            if self.text[at] == ord("\n"):
                return at
            if self.text.startswith(self.end, at) and (self.raw or not self.escaped(at)):
                self.state = State.CODE
                return at
        return at

    def escaped(self, index: int) -> bool:
        """Whether an odd number of backslashes stands before `index`."""
        first = index
        while self.text[first - 1] == ord("\\"):
            first -= 1
        return (index - first) % 2 == 1

    def inside_docstring(self, index: int) -> int:
        """Up to the first quote, of any kind: a comment where only blanks follow it on the line, code otherwise."""
        at = index
        for at in range(index, self.last):
            if self.text[at] == ord("\n"):
                return at
            if self.text[at - 1] != ord("\\") and self.opening(at):
                rest = self.text[at + len(self.end) :]
                line, newline, _ = rest.partition(b"\n")
                self.state = State.COMMENT if newline and not line.strip(BLANKS) else State.CODE
                return at
        return at


def lines(text: bytes) -> set[int]:
    """Numbers of the lines that scc counts as code."""
    return Scanner(text).scan()


def tokens(text: bytes) -> set[int]:
    """Numbers of the lines that hold a token other than a comment or a string that stands alone."""
    code: set[int] = set()
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.tokenize(io.BytesIO(text).readline):
        if token.type == tokenize.NEWLINE:
            if [each.type for each in statement] != [tokenize.STRING]:
                code.update(line for each in statement for line in range(each.start[0], each.end[0] + 1))
            statement = []
        elif token.type not in LAYOUT and token.type != tokenize.ENCODING:
            statement.append(token)
    return code
