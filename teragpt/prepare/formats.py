"""Files in the formats that text comes in, to segments: plain, JSON lines, Parquet and Arrow, compressed or not.

Why: a segment ends where a document may end, so that blocks are cut without knowing what is in a record. Memory holds a
segment or two of a file. It must not know where files lie. Formats' libraries are imported where they are needed.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from importlib import import_module
from typing import IO, Any

from teragpt.datasets.files import fail
from teragpt.prepare.documents import BROKEN, DOCUMENT_BYTES, LINES, TABLE, TEXT, Recipe, Segment, boundary

READ_BYTES = 1 << 20
LINE_BYTES = 64 << 20  # a longer line is no record
COMPRESSED = (".gz", ".bz2", ".zst")
KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}


class Meter(io.RawIOBase):
    """A file that counts what is read of it, whatever way it is read."""

    def __init__(self, file: IO[bytes], stack: ExitStack) -> None:
        self.file, self.count = stack.enter_context(file), 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """As the file is."""
        return self.file.seekable()

    def seek(self, offset: int, whence: int = 0) -> int:
        """As the file does."""
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        """As the file does."""
        return self.file.tell()

    def readinto(self, buffer: Any) -> int:
        """Read, and count."""
        held = self.file.read(len(buffer))
        buffer[: len(held)] = held
        self.count += len(held)
        return len(held)


def decompressed(meter: Meter, name: str, kind: str, suffix: str, stack: ExitStack) -> Any:
    """A file of a source's content. Raises ConfigError for a library that is not installed."""
    if suffix and kind in {"parquet", "arrow"}:
        raise fail("sources", name, f"a {kind} file as it is (it compresses its columns by itself)")
    if not suffix:
        return stack.enter_context(io.BufferedReader(meter, READ_BYTES))
    if suffix == ".gz":
        return stack.enter_context(gzip.GzipFile(fileobj=meter, mode="rb"))
    if suffix == ".bz2":
        return stack.enter_context(bz2.BZ2File(meter, "rb"))
    return ZstdFile(meter, library("zstandard", name))


class ZstdFile:
    """A zstd file's content. The library's own reader takes a file that is cut short for a whole one."""

    def __init__(self, file: io.RawIOBase, zstandard: Any) -> None:
        self.file, self.make = file, zstandard.ZstdDecompressor().decompressobj
        self.frame: Any = None
        self.held = b""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, and none at the end only. Raises EOFError where a frame is cut short."""
        parts, wanted = [], size
        while wanted:
            if not self.held and not self.refill():
                break
            parts.append(self.held[:wanted])
            self.held = self.held[wanted:]
            wanted -= len(parts[-1])
        return b"".join(parts)

    def refill(self) -> bool:
        """Decompress on; whether there was more."""
        while not self.held:
            rest = self.frame.unused_data if self.frame and self.frame.eof else b""
            chunk = rest or self.file.read(1 << 16)
            if not chunk:
                if self.frame and not self.frame.eof:
                    raise EOFError("it is cut short")
                return False
            if self.frame is None or self.frame.eof:
                self.frame = self.make()
            self.held = self.frame.decompress(chunk)
        return True


def text_segments(name: str, file: Any, recipe: Recipe) -> Iterator[Segment]:
    """A text file, or pieces of a long one that end with a line."""
    del recipe
    position, rest = 0, b""
    while chunk := file.read(DOCUMENT_BYTES - len(rest)):
        held = rest + chunk
        cut = len(held) if len(held) < DOCUMENT_BYTES else boundary(held)
        yield Segment(name, TEXT, position, held[:cut])
        position, rest = position + cut, held[cut:]
    if rest:
        yield Segment(name, TEXT, position, rest)


def line_segments(name: str, file: Any, recipe: Recipe) -> Iterator[Segment]:
    """Whole lines. Of one longer than LINE_BYTES nothing is kept, and it is told."""
    del recipe
    number, rest, overlong = 1, b"", False
    first = file.read(len(codecs.BOM_UTF8))
    rest = b"" if first == codecs.BOM_UTF8 else first
    while chunk := file.read(READ_BYTES):
        held = rest + chunk
        cut = held.rfind(b"\n") + 1
        if overlong and cut:
            first = held.find(b"\n") + 1
            allowed = f"lines of at most {LINE_BYTES:,} bytes (line {number} is longer)"
            yield Segment(name, BROKEN, number, allowed.encode())
            held, cut, number, overlong = held[first:], cut - first, number + 1, False
        if cut:
            yield Segment(name, LINES, number, held[:cut])
            number += held.count(b"\n", 0, cut)
        rest = held[cut:]
        if overlong or len(rest) > LINE_BYTES:
            rest, overlong = b"", True
    if overlong:
        yield Segment(name, BROKEN, number, f"lines of at most {LINE_BYTES:,} bytes (line {number} is longer)".encode())
    elif rest:
        yield Segment(name, LINES, number, rest)


def parquet_segments(name: str, file: Any, recipe: Recipe) -> Iterator[Segment]:
    """The rows of a Parquet file, a few MiB of the wanted columns at a time."""
    library("pyarrow", name)
    from pyarrow import parquet

    table = parquet.ParquetFile(file)
    check_columns(name, table.schema_arrow.names, recipe)
    groups = [table.metadata.row_group(index) for index in range(table.metadata.num_row_groups)]
    rows, size = sum(group.num_rows for group in groups), sum(group.total_byte_size for group in groups)
    at_once = max(1, min(1 << 16, READ_BYTES * rows // max(1, size)))
    number = 1
    for batch in table.iter_batches(at_once, columns=list(recipe.columns)):
        yield Segment(name, TABLE, number, stream_of(batch))
        number += batch.num_rows


def arrow_segments(name: str, file: Any, recipe: Recipe) -> Iterator[Segment]:
    """The rows of an Arrow file or stream, whichever it is."""
    ipc = library("pyarrow", name).ipc
    if file.peek(6)[:6] == b"ARROW1":
        whole = ipc.open_file(file)
        batches: Iterable[Any] = (whole.get_batch(index) for index in range(whole.num_record_batches))
        schema = whole.schema
    else:
        batches = whole = ipc.open_stream(file)
        schema = whole.schema
    check_columns(name, schema.names, recipe)
    number = 1
    for batch in batches:
        wanted = batch.select(list(recipe.columns))
        at_once = max(1, READ_BYTES * wanted.num_rows // max(1, wanted.nbytes))
        for start in range(0, wanted.num_rows, at_once):
            part = wanted.slice(start, at_once)
            yield Segment(name, TABLE, number, stream_of(part))
            number += part.num_rows


def check_columns(name: str, have: Sequence[str], recipe: Recipe) -> None:
    """Raise ConfigError for a table without a column that is wanted, or with two of that name."""
    wrong = [column for column in recipe.columns if have.count(column) != 1]
    if wrong and recipe.bad_input == "fail":
        raise fail("sources", name, f"a table with one column {wrong[0]!r} (it has {', '.join(have)})")
    if wrong:
        raise ValueError(f"it has not one column {wrong[0]!r}, but {', '.join(have)}")


def stream_of(batch: Any) -> bytes:
    """A batch of rows in Arrow's stream format."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def library(name: str, source: str) -> Any:
    """A library that some formats need. Raises ConfigError that names the extra."""
    try:
        return import_module(name)
    except ImportError:
        needed = f"{name}: pip install '.[data]' in a checkout of TeraGPT"
        allowed = f"a format that what is installed here reads (this one needs {needed})"
        raise fail("sources", source, allowed) from None


READERS: dict[str, Callable[[str, Any, Recipe], Iterator[Segment]]] = {
    "text": text_segments,
    "jsonl": line_segments,
    "parquet": parquet_segments,
    "arrow": arrow_segments,
}
