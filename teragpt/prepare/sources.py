"""Where text comes from: files, folders, patterns, standard input and what fsspec opens, compressed or not.

Why: everything after it sees segments of bytes, cut where a document may end. Memory holds a few segments of each
source, whatever its size. It must not know what is in a record. Stores' and formats' libraries are imported late.
"""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from teragpt.config import ConfigError
from teragpt.datasets.files import fail
from teragpt.prepare.documents import BLOCK_BYTES, BROKEN, Recipe, Segment
from teragpt.prepare.formats import COMPRESSED, KINDS, READERS, Meter, decompressed
from teragpt.prepare.hub import NAME, hub_files

STDIN = "-"
FILES = {*KINDS, *COMPRESSED, ".txt", ".md", ".csv", ".json", ".html", ".xml", ".py"}  # no dataset's name ends so
NOTES = {"dataset_info.json", "dataset_dict.json", "state.json"}  # of a saved Hugging Face dataset: no text


@dataclass(frozen=True)
class Source:
    """A file to read: its path or URL (or `-`), its size in bytes (None: unknown) and its format."""

    name: str
    size: int | None
    kind: str

    @property
    def compression(self) -> str:
        """The suffix that tells how it is compressed; empty where it is not."""
        suffix = os.path.splitext(self.name)[1].lower()  # noqa: PTH122 - it may be a URL
        return suffix if suffix in COMPRESSED else ""


class Block(NamedTuple):
    """Segments that are tokenized together, and the bytes of sources that were read for them."""

    segments: list[Segment]
    read: int


def find_sources(given: Sequence[Path | str], form: str = "auto", config: str = "", split: str = "") -> list[Source]:
    """The files that sources stand for, in a fixed order. Raises ConfigError for a source that stands for none.

    `config` and `split` choose from what the hub has by the name of a dataset.
    """
    chosen = {name: value for name, value in (("config", config), ("split", split)) if value}
    if chosen and not any(map(is_name, given)):
        name, value = next(iter(chosen.items()))
        raise fail(name, value, "with a dataset's name at the hub as a source, of which none is given")
    found = [source for name in given for source in sources_of(name, form, config, split)]
    if sum(source.name == STDIN for source in found) > 1:
        raise fail("sources", STDIN, "standard input once")
    return found


def is_name(given: Path | str) -> bool:
    """Whether a source is the name of a dataset at the hub: nothing here, and no file's name."""
    name = str(given)
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - it may be a name
    return bool(NAME.fullmatch(name)) and suffix not in FILES and not os.path.lexists(name)


def sources_of(given: Path | str, form: str, config: str = "", split: str = "") -> list[Source]:
    """The files that one source stands for. Raises ConfigError."""
    name = str(given)
    if name == STDIN:
        return [Source(STDIN, None, "text" if form == "auto" else form)]
    try:
        if is_name(given):
            sizes = hub_files(name, config, split)
        else:
            sizes = remote_sizes(name) if "://" in name else local_sizes(Path(given))
    except OSError as error:
        said = f"{error.filename}: {error.strerror}" if error.strerror else str(error)
        raise fail("sources", name, f"files that can be read ({said})") from None
    if not sizes:
        raise fail("sources", name, "a text file, or a folder or glob pattern with files in it (it has none)")
    if list(sizes) == [name] and sizes[name] == 0:
        raise fail("sources", name, "a text file that is not empty")
    return [Source(one, sizes[one], kind_of(one, form)) for one in sorted(sizes)]


def kind_of(name: str, form: str) -> str:
    """A file's format: the given one, or what its name says, without the suffix of a compression."""
    if form != "auto":
        return form
    path = name.lower()
    for suffix in COMPRESSED:
        path = path.removesuffix(suffix)
    return KINDS.get(os.path.splitext(path)[1], "text")  # noqa: PTH122 - it may be a URL


def local_sizes(source: Path) -> dict[str, int | None]:
    """The files of this machine that a source stands for. Raises ConfigError if it stands for no path; OSError."""
    if source.is_dir():
        paths: Iterable[Path] = walk(source)
    elif source.exists():
        paths = [source]
    elif glob.has_magic(str(source)):
        paths = map(Path, glob.glob(str(source), recursive=True))  # noqa: PTH207 (a Path's glob takes no absolute one)
    else:
        raise fail("sources", source, "a text file, a folder or a glob pattern (no such file)")
    files = [path for path in paths if not path.is_dir()]
    for path in files:
        if path != source and path.exists() and not path.is_file():  # one that nobody writes to would be read for ever
            raise fail("sources", path, "a file: a pipe, socket or device is read where it is named by itself alone")
    return {str(path): path.stat().st_size if path.is_file() else None for path in files}  # a pipe has no size


def walk(folder: Path) -> Iterator[Path]:
    """Every file in a folder and below, but for names that start with a dot. Raises OSError."""

    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith(".") and name not in NOTES)


def remote_sizes(url: str) -> dict[str, int | None]:
    """The files that a URL stands for: itself, what lies below it, or what fits it as a pattern. Raises OSError."""
    fs, path = file_system(url)
    try:
        if glob.has_magic(path):
            found = fs.glob(path, detail=True)
        else:
            found = fs.find(path, detail=True) or {path: fs.info(path)}
    except OSError:
        raise
    except Exception as error:  # stores' libraries raise whatever they like
        raise OSError(f"{type(error).__name__}: {error}") from error
    return {
        fs.unstrip_protocol(name): one.get("size")
        for name, one in found.items()
        if one["type"] == "file"
        and not name.rpartition("/")[2].startswith(".")
        and name.rpartition("/")[2] not in NOTES
    }


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the path as that calls it. Raises ConfigError."""
    from fsspec.core import url_to_fs

    try:
        fs, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        allowed = f"a path, or a URL that fsspec and what is installed beside it open ({error})"
        raise fail("sources", url, allowed) from None
    return fs, path


def units(sources: Iterable[Source]) -> Iterator[list[Source]]:
    """Sources in groups that are read one after the other: small ones together, so that blocks are filled."""
    group: list[Source] = []
    size = 0
    for source in sources:
        large = source.size is None or source.size > BLOCK_BYTES
        if group and (large or size + (source.size or 0) > BLOCK_BYTES):
            yield group
            group, size = [], 0
        group.append(source)
        size += source.size or 0
        if large:
            yield group
            group, size = [], 0
    if group:
        yield group


def blocks(unit: Iterable[Source], recipe: Recipe) -> Iterator[Block]:
    """What the sources of a unit hold, in blocks. Raises ConfigError for a library that is not installed."""
    segments: list[Segment] = []
    size = read = 0
    for source in unit:
        for segment, taken in segments_of(source, recipe):
            segments.append(segment)
            size, read = size + len(segment.content), read + taken
            if size >= BLOCK_BYTES:
                yield Block(segments, read)
                segments, size, read = [], 0, 0
    if segments:
        yield Block(segments, read)


def segments_of(source: Source, recipe: Recipe) -> Iterator[tuple[Segment, int]]:
    """A source's segments, each with the bytes that were read of it; one that breaks ends with a BROKEN one."""
    at = 0
    try:
        with ExitStack() as stack:
            meter = Meter(open_source(source), stack)
            plain = decompressed(meter, source.name, source.kind, source.compression, stack)
            for segment in READERS[source.kind](source.name, plain, recipe):
                yield segment, meter.count - at
                at = meter.count
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - disks, stores and five libraries raise whatever they like
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        yield Segment(source.name, BROKEN, 0, f"a readable {source.kind} file ({said})".encode()), 0
        at = source.size or at


def open_source(source: Source) -> IO[bytes]:
    """The bytes of a source as they lie there. Raises OSError."""
    if source.name == STDIN:
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    if "://" not in source.name:
        return Path(source.name).open("rb")
    fs, path = file_system(source.name)
    opened: IO[bytes] = fs.open(path, "rb")
    return opened
