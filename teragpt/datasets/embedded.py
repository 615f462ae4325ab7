"""What the embedded corpus is called and holds, for who trains on it and for planners, who read no text.

Its name tells one machine's corpus from another's: which Python's library it is, made by which rules. How it is made is
`corpus.py`'s business alone.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from pathlib import Path
from typing import Any

from teragpt.config import EMBEDDED_VOCABULARY
from teragpt.datasets.files import BLOCK_BYTES, MANIFEST, TRAIN, read_manifest
from teragpt.storage import cache_folder
from teragpt.tokenization.pieces import PIECES

VALIDATION = 0.05  # of some 400 modules
SKIPPED = {
    "__pycache__", "site-packages", "dist-packages", "test", "tests",  # not the library
    "idlelib", "tkinter", "turtledemo", "distutils", "lib2to3", "ensurepip", "__phello__",  # not with every Python
    "encodings", "pydoc_data",  # tables, and prose kept in strings
}  # fmt: skip
CUT = "methods"  # names how modules are cut, since datasets made by another cut are others
LONGEST_PART = 40_000  # characters; what is longer is a table


def key() -> str:
    """Names the corpus: which Python's library, made by which rules."""
    version = platform.python_version()
    recipe = (CUT, str(library()), EMBEDDED_VOCABULARY, PIECES, VALIDATION, sorted(SKIPPED), LONGEST_PART, BLOCK_BYTES)
    return f"py{version}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:8]}"


def folder_in(cache: Path) -> Path:
    """Where the dataset lies in a cache folder, made or not."""
    return cache / f"embedded-{key()}"


def library() -> Path:
    """The folder of the standard library's source."""
    return Path(sysconfig.get_path("stdlib"))


def dataset_info(path: str) -> dict[str, Any]:
    """What a planner asks of a dataset, without torch and without making one: vocabulary, tokens, fingerprints.

    An empty path means the embedded dataset, of which only the vocabulary is sure before it is made. Raises
    ConfigError.
    """
    folder = Path(path) if path else folder_in(cache_folder())
    if not path and not (folder / MANIFEST).is_file():
        return {"vocabulary": EMBEDDED_VOCABULARY}
    manifest = read_manifest(folder)
    return {
        "vocabulary": manifest.vocabulary,
        "tokens": manifest.splits[TRAIN].tokens,
        "smallest_split": min(split.tokens for split in manifest.splits.values()),
        "fingerprint": manifest.fingerprint,
        "tokenizer_fingerprint": manifest.tokenizer_fingerprint,
    }
