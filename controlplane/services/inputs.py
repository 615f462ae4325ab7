"""What a spec names on this machine, looked at before a run exists: run folder, tokenizer, model and loader.

Nothing is imported, made or written. What cannot be told from here (a hub's tokenizers, names that a module makes as
it runs) is left to the trainer.
"""

from __future__ import annotations

import ast
import json
import os
import symtable
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import decode_source
from pathlib import Path

from controlplane.domain.errors import Problem
from controlplane.domain.preparations import HUB_NAME
from controlplane.domain.resolve import ResolvedRun
from controlplane.domain.spec import RunSpec
from controlplane.runfolder import beginning, begun_with, is_checkpoint, last_checkpoint, lost
from teragpt.config import TENSORS, kept

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json")
UNSEEN = frozenset({"__getattr__", "globals", "vars", "setattr", "exec"})  # by these a module makes names as it runs


def missing(spec: RunSpec) -> Iterator[Problem]:
    """Everything that the spec names and this machine cannot give. Values of a wrong type are others' to refuse."""
    if spec.checkpoint.uri is not None and (why := _unwritable(spec.checkpoint.uri)):
        yield _refused("/checkpoint/uri", spec.checkpoint.uri, f"a folder that can be made and written ({why})")
    start = spec.train.get("start_from")
    if isinstance(start, str) and start and (why := _no_checkpoint(start)):
        yield _refused(
            "/train/start_from", start, f"a run folder with a complete checkpoint, or the folder of one ({why})"
        )
    name = spec.train.get("tokenizer")
    if isinstance(name, str) and name and "loader" not in spec.train and (why := no_tokenizer(name)):
        yield _refused("/train/tokenizer", name, f"a tokenizer.json, a folder that holds one, or a hub's name ({why})")
    path = next((one.value or "" for one in spec.env if one.name == "PYTHONPATH"), "")
    for setting in ("model", "loader"):
        name = spec.train.get(setting)
        if isinstance(name, str) and (why := _no_attribute(name, path.split(os.pathsep) if path else [])):
            yield _refused(f"/train/{setting}", name, f"module:attribute of a module that can be imported ({why})")


def unfit(spec: RunSpec, run: ResolvedRun) -> Iterator[Problem]:
    """Why the run cannot go on from the checkpoint here that its spec names, as the trainer would find, too."""
    own, start = spec.checkpoint.uri, spec.train.get("start_from")
    given = [("/checkpoint/uri", own), ("/train/start_from", start)]  # what lies in its own folder goes first
    places = ((pointer, uri, beginning(Path(uri))) for pointer, uri in given if isinstance(uri, str) and uri[:1] == "/")
    pointer, uri, found = next((one for one in places if one[2] is not None), ("", "", None))
    if found is None:
        return
    open_here = {*run.left_open, *({"num_tokens"} - spec.train.keys() if "loader" in spec.train else ())}
    other = vars(kept(settings)) if (settings := begun_with(found)) else run.config
    differing = [name for name in TENSORS if name not in open_here and run.config[name] != other[name]]
    if differing:
        told = ", ".join(f"{name} {other[name]!r} and not {run.config[name]!r}" for name in differing)
        detail = f"got {uri!r}, whose checkpoint has {told}; allowed: one of the run's own shape and optimizer"
        yield Problem(pointer, "other_tensors", detail)
    elif why := lost(found):
        yield _refused(pointer, uri, f"a checkpoint with all of its files as they were published ({why})")


def _unwritable(uri: str) -> str | None:
    """Why a folder cannot be made, or written where it is; None where it can, or where it is no folder here."""
    folder = Path(uri)
    if not folder.is_absolute() or "\0" in uri:
        return None
    try:
        place = next(one for one in (folder, *folder.parents) if one.exists())
    except OSError as error:
        return error.strerror or str(error)
    if not place.is_dir():
        return f"{place} is a file"
    allowed = os.access(place, os.W_OK | os.X_OK, effective_ids=True)
    return None if allowed else f"{place} cannot be written"


def _no_checkpoint(name: str) -> str | None:
    """Why a run cannot start from this folder, a run's or one checkpoint's."""
    folder = Path(name)
    try:
        if not folder.is_absolute():
            return "its path is not absolute"
        return "it holds none" if last_checkpoint(folder) is None and not is_checkpoint(folder) else None
    except OSError as error:
        return error.strerror or str(error)


def no_tokenizer(name: str) -> str | None:
    """Why the trainer cannot open this tokenizer; None where it may, as any name that a hub could have."""
    path = Path(name)
    if not path.is_absolute():
        return None if HUB_NAME.fullmatch(name) else "no absolute path, and no name that a hub could have"
    try:
        if path.is_dir():
            return None if any((path / file).is_file() for file in TOKENIZER_FILES) else "the folder holds none"
        json.loads(path.read_bytes())
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:
        return f"the file is not whole: {error}"
    return None


def _no_attribute(name: str, folders: list[str]) -> str | None:
    """Why `module:attribute` cannot be found; `folders` are searched before this interpreter's own path."""
    module, _, attribute = name.partition(":")
    if not (module and attribute):
        return None
    found = _find(module, folders)
    if found is None:
        return f"there is no module {module}"
    if not found.has_location or not str(found.origin).endswith(".py"):
        return None
    try:
        bound = _names(Path(str(found.origin)))
    except (OSError, ValueError, SyntaxError) as error:
        return f"{found.origin} cannot be read as Python: {error}"
    return None if attribute in bound or bound & UNSEEN else f"{found.origin} has no {attribute}"


def _find(module: str, folders: list[str]) -> ModuleSpec | None:
    """Where a module lies, without importing it or its packages."""
    first, *rest = module.split(".")
    if not all(part.isidentifier() for part in (first, *rest)):
        return None
    specs = (finder.find_spec(first, [*folders, *sys.path]) for finder in sys.meta_path)
    found = next((spec for spec in specs if spec is not None), None)
    for part in rest:
        if found is None:
            return None
        found = PathFinder.find_spec(part, list(found.submodule_search_locations or []))
    return found


def _names(file: Path) -> set[str]:
    """The names that a module binds or uses; those of `UNSEEN` stand also for stars and for a replaced module."""
    text = decode_source(file.read_bytes())
    names = {one.get_name() for one in symtable.symtable(text, str(file), "exec").get_symbols() if _counts(one)}
    for node in ast.walk(ast.parse(text)):
        star = isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
        if star or (isinstance(node, ast.Attribute) and node.attr == "modules"):
            names.add("__getattr__")
    return names


def _counts(symbol: symtable.Symbol) -> bool:
    return symbol.is_assigned() or symbol.is_imported() or symbol.get_name() in UNSEEN


def _refused(pointer: str, given: str, allowed: str) -> Problem:
    return Problem(pointer, "not_found_here", f"got {given!r}; allowed: {allowed}")
