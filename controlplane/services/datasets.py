"""What the planner must know of a dataset: its vocabulary, read from `dataset.json` without numpy or torch.

What makes a run impossible is refused here, before the run exists, with whatever else the spec names on this machine.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from controlplane.domain.errors import InvalidSpec, Problem
from controlplane.domain.spec import RunSpec
from controlplane.services import inputs
from teragpt.config import EMBEDDED_VOCABULARY
from teragpt.sizes import SIZES

MANIFEST = "dataset.json"
POINTER = "/data/uri"
LARGEST_READ = 1 << 30  # bytes of a dataset whose content is compared while a client waits; the trainer compares all


def vocabulary_of(spec: RunSpec) -> int | None:
    """The vocabulary of the spec's dataset; None for the embedded corpus, and where the user reads data by himself.

    For a cluster whose pods see this machine's folders. Raises InvalidSpec for a folder that is no dataset, for one
    that the settings do not go with, and for everything else that the spec names and that is not there.
    """
    if problems := list(inputs.missing(spec)):
        raise InvalidSpec(problems)
    if "loader" in spec.train:
        return None
    if spec.data.uri is None:
        _check_vocabulary(spec, EMBEDDED_VOCABULARY)
        return None
    folder = Path(spec.data.uri)
    if not folder.is_absolute():
        return None  # `resolve` refuses it, with everything else that is wrong
    manifest = _manifest(folder)
    size = SIZES.get(spec.size.lower())
    context = spec.train.get("context", size.context if size else None)
    held = min(int(split["tokens"]) for split in manifest["splits"].values())
    if isinstance(context, int) and context >= held:
        raise _refused("/train/context", context, f"less than the {held:,} tokens of the dataset's smaller split")
    _check_vocabulary(spec, manifest["vocabulary"])
    _check_files(folder, manifest)
    return int(manifest["vocabulary"])


def _check_vocabulary(spec: RunSpec, vocabulary: int) -> None:
    given = spec.train.get("num_tokens")
    if isinstance(given, int | float) and given < vocabulary:
        raise _refused("/train/num_tokens", given, f"at least the dataset's vocabulary of {vocabulary:,}")


def _check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Every file has its size, and as far as `LARGEST_READ` reaches its content."""
    shards = [shard for split in manifest["splits"].values() for shard in split.get("shards", [])]
    left = LARGEST_READ
    for file in [*manifest.get("tokenizer_files", []), *shards]:
        path, size, wanted = folder / str(file["name"]), int(file["size"]), file.get("sha256")
        try:
            found = path.stat()
            if found.st_size != size:
                allowed = f"the {size:,} bytes that {MANIFEST} names"
                raise _refused(POINTER, f"{path}: {found.st_size:,} bytes", allowed)
            left -= size
            if wanted and left >= 0 and (content := _sha256(path, size, found.st_mtime_ns)) != wanted:
                allowed = f"the {wanted} that {MANIFEST} names: prepare the dataset again"
                raise _refused(POINTER, f"{path}: content of SHA-256 {content}", allowed)
        except OSError as error:
            raise _refused(POINTER, f"{path}: {error.strerror}", f"a file of {size:,} bytes") from None


@lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    """Hash of a file's content, read once for each of its states."""
    del size, changed_ns  # they tell the states apart
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text("utf-8"))
        sound = isinstance(content["vocabulary"], int) and all(
            isinstance(split["tokens"], int) for split in content["splits"].values()
        )
    except FileNotFoundError:
        missing = f"it holds no {MANIFEST}" if folder.is_dir() else "no such folder"
        raise _refused(POINTER, str(folder), f"a dataset folder made by `teragpt prepare` ({missing})") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused(POINTER, str(path), f"a readable dataset description ({error})") from None
    if not sound:
        raise _refused(POINTER, str(path), "a dataset description with whole numbers of tokens")
    return dict(content)


def _refused(pointer: str, given: object, allowed: str) -> InvalidSpec:
    return InvalidSpec([Problem(pointer, "invalid_dataset", f"got {given!r}; allowed: {allowed}")])
