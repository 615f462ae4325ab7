"""The embedded corpus: the source of the running Python's standard library, prepared on first use and cached.

Why: real text is on every machine that can train, so that the first run needs no download. It knows which modules
make good reading for a small model; it must not know how they are trained on.
"""

from __future__ import annotations

import ast
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from teragpt.config import EMBEDDED_VOCABULARY
from teragpt.datasets.embedded import LONGEST_PART, SKIPPED, VALIDATION, folder_in, library
from teragpt.datasets.files import MANIFEST, fail
from teragpt.prepare.documents import Document, Recipe
from teragpt.storage import cache_folder, locked
from teragpt.tokenization.tokenizer import train_bpe


def embedded_dataset(cache: Path | None = None) -> Path:
    """The folder of the embedded dataset, made on first use under `cache` (default: the cache folder).

    Any number of processes may ask at once: one makes it, the others wait. Raises ConfigError if it cannot be made.
    """
    root = cache or cache_folder()
    folder = folder_in(root)
    if (folder / MANIFEST).is_file():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f"{folder.name}.lock"):
            if not (folder / MANIFEST).is_file():
                make(folder)
    except OSError as error:
        raise fail("TERAGPT_CACHE", root, f"a folder that can be written ({error.strerror})") from None
    return folder


def make(folder: Path) -> None:
    """Train the tokenizer on the corpus and write the dataset."""
    from teragpt.prepare.assembly import write  # once a machine: no run after the first has to load what prepares

    documents = list(read_library(library()))
    if not documents:
        raise fail("data", library(), "a Python with its standard library's source, or a dataset of your own")
    size = sum(document.size for document in documents)
    with tqdm(total=2 * size, unit="B", unit_scale=True, desc="prepare the embedded corpus", disable=None) as bar:
        tokenizer = train_bpe((part for one in counted(documents, bar) for part in one.parts), EMBEDDED_VOCABULARY)
        write(counted(documents, bar), folder, tokenizer, Recipe(validation=VALIDATION))


def counted(documents: Iterable[Document], bar: tqdm[NoReturn]) -> Iterator[Document]:
    """The documents, while a bar shows how far they are."""
    for document in documents:
        yield document
        bar.update(document.size)


def read_library(root: Path) -> Iterator[Document]:
    """One document a module, in parts: each function or method is one, and so is what stands between two."""
    for path in sorted(root.rglob("*.py")):
        if SKIPPED.isdisjoint(path.relative_to(root).parts) and not path.name.startswith("_sysconfigdata"):
            parts = tuple(part for part in read_parts(path) if len(part) <= LONGEST_PART)
            if parts:
                yield Document(parts)


def read_parts(path: Path) -> Iterator[str]:
    """A module cut before and after every function, method and class, each part dedented.

    So a model learns that what begins at the margin returns to it. Nothing if it is not UTF-8 or does not parse.
    """
    try:
        text = path.read_text("utf-8")
        with warnings.catch_warnings(action="ignore"):  # on what a newer Python would write differently
            tree = ast.parse(text)
    except (OSError, ValueError, SyntaxError):
        return
    lines = text.split("\n")  # as the parser counts them: a form feed ends none
    for start, end in pairwise(sorted({0, len(lines), *cuts(tree)})):
        part = textwrap.dedent("\n".join(lines[start:end])).strip("\n")
        if part.strip():
            yield part + "\n"


def cuts(scope: ast.Module | ast.ClassDef) -> Iterator[int]:
    """The lines where a definition of the scope, or of a class in it, begins or has ended."""
    for node in scope.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]) - 1
            if isinstance(node, ast.ClassDef):
                yield from cuts(node)
            yield node.end_lineno or node.lineno
