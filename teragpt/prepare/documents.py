"""Bytes of a source to documents: text in pieces, JSON objects a line, rows of a table; with a column or a template.

Why: what is a document, what is none, and what is said of it, is decided here and nowhere else. It must not know where
bytes come from, nor how a document is tokenized. Bad input is refused, or counted and passed over, as the user chose.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from string import Formatter
from typing import Any, NamedTuple

from teragpt.config import ConfigError, Problem
from teragpt.datasets.files import fail
from teragpt.prepare.quality import repeated, worded

DOCUMENT_BYTES = 1 << 20  # a longer one becomes several
BLOCK_BYTES = 8 << 20  # of text that becomes one part
SHARD_TOKENS = 1 << 27  # 256 MiB of two-byte tokens
TEXT, LINES, TABLE, BROKEN = "text", "jsonl", "table", "broken"  # kinds of segments
FORMATS = ("auto", "text", "jsonl", "parquet", "arrow")
SURROGATE = re.compile(r"[\ud800-\udfff]")  # JSON can name half of a pair
Conversation = Callable[[list[dict[str, Any]]], str]  # messages to the text that a chat template makes of them
TOLD = "role", "content"  # of each message
EXAMPLES = 5  # of what was dropped for one reason, that are named


@dataclass(frozen=True)
class Recipe:
    """What decides which tokens a dataset holds, but for sources and tokenizer. A number of 0 sets no bound.

    `validation`: share of documents held out; `format`: of every source, `auto` by its name; `column`: the one that
    holds the text, or `template` over several, as `{title} {body}`, or `chat`: the one that holds conversations, lists
    of messages with `role` and `content`, which become what the tokenizer's chat template makes of them; `min_chars`,
    `max_chars`: shorter and longer documents are dropped; `max_repeated`: those of which a larger share is in lines
    that stood before in them; `min_letters`: those of which a smaller share is letters and digits; `exact_duplicates`:
    `drop` all but the first; `near_duplicates`: the similarity (Jaccard's, of five-word shingles) from which a document
    counts as one of an earlier one, and is dropped; `bad_input`: `fail`, or `skip` and count. Raises ConfigError.
    """

    validation: float = 0.01
    shard_tokens: int = SHARD_TOKENS
    format: str = "auto"
    column: str = "text"
    template: str = ""
    chat: str = ""
    min_chars: int = 0
    max_chars: int = 0
    max_repeated: float = 0.0
    min_letters: float = 0.0
    exact_duplicates: str = "keep"
    near_duplicates: float = 0.0
    bad_input: str = "fail"

    def __post_init__(self) -> None:
        rules = (
            ("validation", 0 <= self.validation < 1, "a share from 0 up to, not including, 1"),
            ("shard_tokens", self.shard_tokens >= 2, "at least 2 tokens"),
            ("format", self.format in FORMATS, f"one of {', '.join(FORMATS)}"),
            ("column", bool(self.column), "a column's name"),
            ("template", not self.template or bool(self.columns), "text with columns as {title}, and {{ for a brace"),
            ("min_chars", self.min_chars >= 0, "a number of characters from 0"),
            ("max_chars", self.max_chars == 0 or self.max_chars >= self.min_chars, "at least min_chars, or 0"),
            ("chat", not (self.chat and self.template), "a column's name, with no template beside it"),
            ("max_repeated", 0 <= self.max_repeated < 1, "a share from 0 (keep all) up to, not including, 1"),
            ("min_letters", 0 <= self.min_letters <= 1, "a share from 0 to 1"),
            ("exact_duplicates", self.exact_duplicates in {"keep", "drop"}, "keep or drop"),
            (
                "near_duplicates",
                0 <= self.near_duplicates < 1,
                "a similarity from 0 (keep all) up to, not including, 1",
            ),
            ("bad_input", self.bad_input in {"fail", "skip"}, "fail or skip"),
        )
        if problems := [Problem(name, getattr(self, name), allowed) for name, good, allowed in rules if not good]:
            raise ConfigError(problems)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that a document is made of; none for a template that is not one."""
        if not self.template:
            return (self.chat or self.column,)
        try:
            fields = [name for _, name, *_ in Formatter().parse(self.template) if name is not None]
            plain = all(name and not set(name) & set(".[!:") for name in fields)
        except ValueError:
            return ()
        return tuple(dict.fromkeys(fields)) if plain else ()

    def text(self, record: Mapping[str, Any], where: str, say: Conversation | None = None) -> str:
        """A record's text, of a conversation by `say`. Raises ValueError that says `where` and what is wrong."""
        missing = [name for name in self.columns if name not in record]
        if missing:
            have = ", ".join(map(str, list(record)[:9])) or "none"
            raise ValueError(f"a column {missing[0]!r} ({where} has {have})")
        if self.chat and say:
            return self.said(record[self.chat], where, say)
        values = {name: "" if record[name] is None else record[name] for name in self.columns}
        wrong = [name for name, value in values.items() if not isinstance(value, str)]
        if wrong and not self.template:
            raise ValueError(f"text in column {wrong[0]!r} ({where} has a {type(values[wrong[0]]).__name__})")
        text: str = self.template.format_map(values) if self.template else values[self.column]
        if half := not text.isascii() and SURROGATE.search(text):
            raise ValueError(f"text ({where} has half a surrogate pair, \\u{ord(half[0]):x}, which is no character)")
        return text

    def said(self, messages: Any, where: str, say: Conversation) -> str:
        """The text of a conversation. Raises ValueError."""
        told = messages if isinstance(messages, list) else []
        roles = [isinstance(one, dict) and all(isinstance(one.get(key), str) for key in TOLD) for one in told]
        if not roles or not all(roles):
            kind = f"message {roles.index(False) + 1} is none" if roles else "it has none"
            raise ValueError(f"messages, each with role and content, in column {self.chat!r} ({where}: {kind})")
        try:
            return say([{key: value for key, value in one.items() if value is not None} for one in told])
        except ConfigError as error:
            raise ValueError(f"a conversation in column {self.chat!r} ({where}: {error})") from None

    def unfit(self, text: str) -> str:
        """Why a text is dropped; empty where it is kept."""
        if len(text) < self.min_chars:
            return "shorter than min_chars"
        if self.max_chars and len(text) > self.max_chars:
            return "longer than max_chars"
        if self.max_repeated and repeated(text) > self.max_repeated:
            return "more repeated than max_repeated"
        return "fewer letters than min_letters" if self.min_letters and worded(text) < self.min_letters else ""


@dataclass(frozen=True)
class Document:
    """A document in `parts`, each followed by the separator; all of them go to the same split."""

    parts: tuple[str, ...]

    @property
    def size(self) -> int:
        """Its text in bytes."""
        return self._measured[0]

    @property
    def digest(self) -> bytes:
        """SHA-256 of the content."""
        return self._measured[1]

    @cached_property
    def _measured(self) -> tuple[int, bytes]:
        content = "\0".join(self.parts).encode()
        return len(content) - len(self.parts) + 1, hashlib.sha256(content).digest()

    @property
    def point(self) -> float:
        """A number in [0, 1) drawn by the content, so that equal documents share a split."""
        return int.from_bytes(self.digest[:7], "big") / (1 << 56)


class Segment(NamedTuple):
    """Consecutive bytes of a source: whole lines, a table in Arrow's stream format, a piece of text, or what broke.

    `start` is the offset of its first byte in a text, or the number, from 1, of its first line or row. The content of
    a BROKEN segment says what the source should have been.
    """

    source: str
    kind: str
    start: int
    content: bytes


@dataclass
class Dropped:
    """What was dropped, by reason: documents (or lines, or files), their bytes, and the first of them by name."""

    reasons: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, reason: str, size: int, example: str = "", count: int = 1) -> None:
        """Count what was dropped for a reason."""
        one = self.reasons.setdefault(reason, {"documents": 0, "bytes": 0, "examples": []})
        one["documents"] += count
        one["bytes"] += size
        if example and len(one["examples"]) < EXAMPLES:
            one["examples"].append(example)

    def merge(self, reasons: Mapping[str, Mapping[str, Any]]) -> None:
        """Add what was counted elsewhere."""
        for reason, one in reasons.items():
            self.add(reason, one["bytes"], count=one["documents"])
            mine = self.reasons[reason]["examples"]
            mine.extend(one["examples"][: EXAMPLES - len(mine)])


def read_segments(
    segments: Iterable[Segment], recipe: Recipe, dropped: Dropped, say: Conversation | None = None
) -> Iterator[Document]:
    """The documents that a recipe makes of segments; `say` is how a conversation becomes text.

    Raises ConfigError that names what is bad, unless it's skipped.
    """
    for segment in segments:
        for where, text in texts(segment, recipe, dropped, say):
            for piece in pieces(text):
                if not piece:
                    continue
                if reason := recipe.unfit(piece):
                    dropped.add(reason, len(piece.encode()), "" if reason.startswith("shorter") else where)
                else:
                    yield Document((piece,))


def texts(
    segment: Segment, recipe: Recipe, dropped: Dropped, say: Conversation | None = None
) -> Iterator[tuple[str, str]]:
    """The texts of a segment, and where each stands. Raises ConfigError, unless bad input is skipped."""
    readers = {TEXT: text_of, LINES: records_of_lines, TABLE: records_of_table, BROKEN: broken}
    for where, size, make in readers[segment.kind](segment):
        try:
            made = make()
            if say and isinstance(made, str):
                allowed = f"records with a column {recipe.chat!r}: jsonl, parquet or arrow, and no plain text"
                raise ValueError(allowed)  # noqa: TRY301 - counted below
            text = made if isinstance(made, str) else recipe.text(made, where, say)
        except ValueError as error:
            if recipe.bad_input == "fail":
                raise fail("sources", segment.source, str(error)) from None
            dropped.add("bad input", size, f"{segment.source}: {error}")
            continue
        if not text:
            dropped.add("empty", 0)
            continue
        yield f"{segment.source}, {where}", text


def text_of(segment: Segment) -> Iterator[tuple[str, int, Any]]:
    """A segment of plain text."""
    yield f"offset {segment.start}", len(segment.content), lambda: decode(segment.start, segment.content)


def records_of_lines(segment: Segment) -> Iterator[tuple[str, int, Any]]:
    """One JSON object a line; blank lines are none."""
    for number, line in enumerate(segment.content.split(b"\n"), segment.start):
        if not line.isspace() and line:
            yield f"line {number}", len(line), lambda line=line, number=number: parse_line(line, number)


def parse_line(line: bytes, number: int) -> dict[str, Any]:
    """A line's JSON object. Raises ValueError that tells its number."""
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise not_text(error, f"line {number}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"a JSON object on every line (line {number}, column {error.colno}: {error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a JSON object on every line (line {number}: {error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"a JSON object on every line (line {number} is a {type(record).__name__})")  # noqa: TRY004
    return record


def records_of_table(segment: Segment) -> Iterator[tuple[str, int, Any]]:
    """The rows of a table."""
    import pyarrow as pa

    table = pa.ipc.open_stream(segment.content).read_all()
    try:
        columns = [table.column(name).to_pylist() for name in table.column_names]
    except UnicodeDecodeError:  # by one of the rows, which is then told
        for at in range(table.num_rows):
            yield f"row {segment.start + at}", 0, lambda at=at: row_of(table, at, segment.start + at)
        return
    for number, row in enumerate(zip(*columns, strict=True), segment.start):
        record = dict(zip(table.column_names, row, strict=True))
        yield f"row {number}", 0, lambda record=record: record


def row_of(table: Any, at: int, number: int) -> dict[str, Any]:
    """The row of a table at a place. Raises ValueError that tells its number."""
    try:
        row: dict[str, Any] = table.slice(at, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        raise not_text(error, f"row {number}") from None
    return row


def not_text(error: UnicodeDecodeError, where: str) -> ValueError:
    """What to say of bytes that are no text."""
    return ValueError(f"UTF-8 text ({where}: byte 0x{error.object[error.start]:02x}: {error.reason})")


def broken(segment: Segment) -> Iterator[tuple[str, int, Any]]:
    """What could not be read at all."""

    def refuse() -> str:
        raise ValueError(segment.content.decode())

    yield "", 0, refuse


def decode(position: int, held: bytes) -> str:
    """The text of bytes that stand at `position` in a file. Raises ValueError with the offset of what is no text."""
    binary = held.find(b"\0")
    if binary >= 0:
        raise ValueError(f"a text file (binary: a zero byte at offset {position + binary})")
    try:
        return held.decode("utf-8")
    except UnicodeDecodeError as error:
        at, byte = position + error.start, held[error.start]
        raise ValueError(f"UTF-8 text (byte 0x{byte:02x} at offset {at}: {error.reason})") from None


def pieces(text: str) -> Iterator[str]:
    """A text in pieces of at most DOCUMENT_BYTES, cut after a line where that is possible."""
    if len(text) <= DOCUMENT_BYTES // 4 or len(held := text.encode()) <= DOCUMENT_BYTES:
        yield text
        return
    while len(held) > DOCUMENT_BYTES:
        cut = boundary(held[:DOCUMENT_BYTES])
        yield held[:cut].decode()
        held = held[cut:]
    yield held.decode()


def boundary(held: bytes) -> int:
    """Where to cut bytes that go on: after the last line, or else before the last character."""
    cut = held.rfind(b"\n") + 1
    if cut:
        return cut
    return next((at for at in range(len(held) - 1, len(held) - 5, -1) if held[at] & 0xC0 != 0x80), len(held))
