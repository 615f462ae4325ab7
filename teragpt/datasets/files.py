"""What a dataset consists of: `dataset.json`, and the files that it names with their sizes.

Why: the preparer writes it, the trainer opens it, and the planner, which has no numpy, reads its counts and refuses
what cannot be trained on. It must not know what lies in a shard. No numpy and no torch here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from teragpt.config import ConfigError, Problem

FORMAT, VERSION = "teragpt-dataset", 1
MANIFEST = "dataset.json"
TOKENIZER_FOLDER = "tokenizer"
TRAIN, VALIDATION = "train", "validation"
TOKEN_BYTES = {"uint16": 2, "uint32": 4}
BLOCKS_FILE, BLOCK_BYTES, DIGEST_BYTES = "blocks.bin", 1 << 18, 16


def fail(field: str, given: object, allowed: str) -> ConfigError:
    """The error that one bad input deserves."""
    return ConfigError([Problem(field, str(given), allowed)])


@dataclass(frozen=True)
class File:
    """One file of a dataset: its `name` in the folder, its `size` in bytes, its `sha256`."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, folder: Path, path: Path) -> File:
        """The description of a file that lies under `folder`."""
        return cls(path.relative_to(folder).as_posix(), path.stat().st_size, checksum(path))


@dataclass(frozen=True)
class Split:
    """The documents of one split, one after the other over its `shards`, each followed by the separator."""

    documents: int
    tokens: int
    shards: tuple[File, ...]


@dataclass(frozen=True)
class Blocks:
    """The pieces in which shards are read from afar: `size` bytes each, the last of a shard what is left.

    `digests` is a file of their BLAKE2b-128 digests, shard by shard as `Manifest.shards` has them.
    """

    size: int
    digests: File

    def of(self, file: File) -> int:
        """How many blocks a shard has."""
        return -(-file.size // self.size)


@dataclass(frozen=True)
class Manifest:
    """What `dataset.json` says. `tokenizer_fingerprint`: of the tokenizer that made the shards; `end`: its separator.

    `unigram_entropy`: nats a token costs who knows only how frequent each one is in the training split. `run`: the id
    of the control plane's run that made it, if one did.
    """

    vocabulary: int
    end: int
    tokenizer_fingerprint: str
    tokenizer_files: tuple[File, ...]
    unigram_entropy: float
    splits: dict[str, Split]
    blocks: Blocks | None = None  # datasets made before there were any have none
    run: str | None = None

    @property
    def dtype(self) -> str:
        """Type of a token in the shards: little-endian, two bytes while the vocabulary fits them."""
        return token_type(self.vocabulary)

    @property
    def files(self) -> tuple[File, ...]:
        """Every file that the dataset consists of, but for `dataset.json`."""
        return *self.head, *self.shards

    @property
    def head(self) -> tuple[File, ...]:
        """What is read whole before the first token: the tokenizer's files, and the blocks' digests."""
        return *self.tokenizer_files, *((self.blocks.digests,) if self.blocks else ())

    @property
    def shards(self) -> tuple[File, ...]:
        """The shards of every split."""
        return tuple(shard for split in self.splits.values() for shard in split.shards)

    @cached_property
    def fingerprint(self) -> str:
        """Names the data: the same tokens in the same splits, made by the same tokenizer, have the same one."""
        parts = {
            name: (split.tokens, [shard.sha256 for shard in split.shards])
            for name, split in sorted(self.splits.items())
        }
        return hashlib.sha256(json.dumps([self.tokenizer_fingerprint, parts]).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write `dataset.json`."""
        head = {"format": FORMAT, "version": VERSION, "dtype": self.dtype}
        content = dataclasses.asdict(self)
        text = json.dumps({**head, **{name: value for name, value in content.items() if value is not None}}, indent=2)
        (folder / MANIFEST).write_text(text + "\n", "utf-8")


def token_type(vocabulary: int) -> str:
    """The smaller of the two types of a shard's tokens that holds a vocabulary."""
    return "uint16" if vocabulary <= 1 << 16 else "uint32"


def checksum(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """What the dataset in `folder` consists of. Raises ConfigError that names what is missing or wrong."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise fail("data", folder, "a dataset folder made by `teragpt prepare` (no such folder)")
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise fail("data", folder, f"a dataset folder made by `teragpt prepare` (it holds no {MANIFEST})") from None
    except OSError as error:
        raise fail("data", path, f"a readable JSON file ({error})") from None
    return load_manifest(text, path)


def load_manifest(text: bytes, source: object) -> Manifest:
    """What a `dataset.json` says. Raises ConfigError that names its `source`."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise fail("data", source, f"a readable JSON file ({error})") from None
    try:
        return parse_manifest(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise fail("data", source, f"a {FORMAT} of version {VERSION} ({type(error).__name__}: {error})") from None


def parse_manifest(content: dict[str, Any]) -> Manifest:
    """`dataset.json`'s content as a manifest. Raises KeyError, TypeError, ValueError or AttributeError."""
    if (content["format"], content["version"]) != (FORMAT, VERSION):
        newer = ", which a newer TeraGPT made" if content["format"] == FORMAT and content["version"] > VERSION else ""
        raise ValueError(f"it is a {content['format']} of version {content['version']}{newer}")
    splits = {
        name: Split(int(split["documents"]), int(split["tokens"]), tuple(File(**file) for file in split["shards"]))
        for name, split in content["splits"].items()
    }
    manifest = Manifest(
        vocabulary=int(content["vocabulary"]),
        end=int(content["end"]),
        tokenizer_fingerprint=str(content["tokenizer_fingerprint"]),
        tokenizer_files=tuple(File(**file) for file in content["tokenizer_files"]),
        unigram_entropy=float(content["unigram_entropy"]),
        splits={TRAIN: splits[TRAIN], VALIDATION: splits[VALIDATION]},
        blocks=parse_blocks(content.get("blocks")),
        run=str(run) if (run := content.get("run")) else None,
    )
    if content["dtype"] != manifest.dtype:
        raise ValueError(f"{content['dtype']} tokens for a vocabulary of {manifest.vocabulary}")
    for file in manifest.files:
        if Path(file.name).is_absolute() or ".." in Path(file.name).parts:
            raise ValueError(f"a file outside the dataset: {file.name}")
    for name, split in manifest.splits.items():
        held = sum(shard.size for shard in split.shards)
        if held != split.tokens * TOKEN_BYTES[manifest.dtype]:
            raise ValueError(f"{split.tokens} {name} tokens in shards of {held} bytes")
    if blocks := manifest.blocks:
        count = sum(map(blocks.of, manifest.shards))
        if blocks.digests.size != count * DIGEST_BYTES:
            raise ValueError(f"{count} blocks with digests of {blocks.digests.size} bytes")
    return manifest


def parse_blocks(content: dict[str, Any] | None) -> Blocks | None:
    """What `dataset.json` says of blocks. Raises KeyError, TypeError or ValueError."""
    if content is None:
        return None
    size = int(content["size"])
    if size < 1 or size % max(TOKEN_BYTES.values()):
        raise ValueError(f"blocks of {size} bytes")
    return Blocks(size, File(**content["digests"]))


def measure(folder: Path, file: File) -> list[Any]:
    """A file's name, size and modification time (ns). Raises ConfigError if it is missing or of another size."""
    path = folder / file.name
    try:
        status = path.stat()
    except OSError as error:
        raise fail("data", path, f"a file of {file.size:,} bytes ({error.strerror})") from None
    if status.st_size != file.size:
        raise fail("data", path, f"a file of {file.size:,} bytes, not of {status.st_size:,}: prepare the dataset again")
    return [file.name, status.st_size, status.st_mtime_ns]
