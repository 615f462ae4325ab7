"""A corpus that every machine has: the text of installed packages, as JSON lines that `teragpt prepare` reads.

`python -m benchmarks.gpu.texts OUT [FOLDER ...] [--mb N]` walks the folders (this Python's packages and its standard
library unless any is named), takes each text once, and writes OUT/NN.jsonl, sixteen files of about one size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

KINDS = frozenset([".py", ".pyi", ".h", ".hpp", ".cuh", ".cu", ".cpp", ".c", ".md", ".rst", ".pyx", ".pxd"])
LARGEST, SMALLEST, FILES = 1 << 20, 200, 16


def texts(folders: Iterable[Path]) -> Iterator[str]:
    """The text of each file of these kinds, once, in an order that the folders' names decide."""
    seen: set[bytes] = set()
    for folder in folders:
        for where, below, names in os.walk(folder):
            below.sort()
            for path in (Path(where) / name for name in sorted(names)):
                if path.suffix not in KINDS or path.is_symlink():
                    continue
                held = path.read_bytes()
                digest = hashlib.blake2b(held, digest_size=16).digest()
                if SMALLEST <= len(held) <= LARGEST and digest not in seen:
                    seen.add(digest)
                    yield held.decode("utf-8", "replace")


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--mb", type=float, default=float("inf"), help="stop after so much text")
    asked = parser.parse_args()
    paths = sysconfig.get_paths()
    asked.out.mkdir(parents=True)
    size = count = 0
    files = [(asked.out / f"{number:02}.jsonl").open("w", encoding="utf-8") for number in range(FILES)]
    for text in texts(asked.folders or [Path(paths["purelib"]), Path(paths["stdlib"])]):
        files[count % FILES].write(json.dumps({"text": text}) + "\n")
        size, count = size + len(text.encode("utf-8", "replace")), count + 1
        if size >= asked.mb * 1e6:
            break
    for file in files:
        file.close()
    print(json.dumps({"documents": count, "mb": round(size / 1e6, 1)}))


if __name__ == "__main__":
    main()
