"""What the planner must know of a dataset: its vocabulary, read from `dataset.json` without numpy or torch.

The trainer checks shards and tokenizer; here only what makes a run impossible is refused, before the run exists.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from controlplane.domain.errors import InvalidSpec, Problem
from controlplane.domain.spec import RunSpec
from teragpt.sizes import SIZES

MANIFEST = "dataset.json"
POINTER = "/data/uri"


def vocabulary_of(spec: RunSpec) -> int | None:
    """The vocabulary of the spec's dataset; None for the embedded corpus, and where the user reads data by himself.

    Raises InvalidSpec for a folder that is no dataset.
    """
    if spec.data.uri is None or "loader" in spec.train:
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
    _check_files(folder, manifest)
    return int(manifest["vocabulary"])


def _check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Every file has its size; what is in it, the trainer checks."""
    shards = [shard for split in manifest["splits"].values() for shard in split.get("shards", [])]
    for file in [*shards, *manifest.get("tokenizer_files", [])]:
        path, size = folder / str(file["name"]), int(file["size"])
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            given = f"{path}: {'missing' if found is None else f'{found:,} bytes'}"
            raise _refused(POINTER, given, f"the {size:,} bytes that {MANIFEST} names")


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
