"""The files of a dataset that the Hugging Face hub has, by its name, configuration and split.

Why: `wikitext` is what people call a dataset, and its card says which of its files are meant. They are then read as any
URL's, a piece at a time, so nothing is downloaded first. It must not know what is in them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from teragpt.config import ConfigError, Problem
from teragpt.datasets.files import fail
from teragpt.prepare.formats import COMPRESSED, KINDS

NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
TIMEOUT_S = 10.0
READ = {*KINDS, ".txt", ".text", ".md"}
UNREAD = {".csv", ".tsv", ".json", ".xml", ".html", ".zip", ".tar", ".tgz", ".xz"}  # text too, which we do not read
ABOUT = re.compile(  # files beside the text
    r"(.*/)?((readme|licen[cs]e|notice)[^/]*\.(md|txt|html)|requirements\.txt"
    r"|(config|dataset_infos?|dataset_dict|state)\.json|dummy_data\.zip)",
    re.IGNORECASE,
)
SPLIT = "train"
SPLITS = re.compile(r"(?:^|[/._-])(train|test|validation|valid|val|dev|eval)(?=[/._\d-]|$)", re.IGNORECASE)


def hub_files(name: str, config: str, split: str) -> dict[str, int | None]:
    """URLs of a dataset's files and their bytes, at the revision that the hub has now.

    `config` is the card's usual one unless given, `split` `train`. Raises ConfigError that says what there is.
    """
    from huggingface_hub import HfApi

    try:
        about = HfApi().dataset_info(name, files_metadata=True, timeout=TIMEOUT_S)
    except Exception as error:  # noqa: BLE001 - it raises what its own libraries do
        raise unreached(name, reason(error)) from None
    sizes = {one.rfilename: one.size for one in about.siblings or [] if is_text(one.rfilename)}
    card: Any = about.card_data or {}
    try:
        picked = chosen(sorted(sizes), configs_of(card.get("configs")), about.id, config, split) if sizes else []
    except BadCard as error:
        raise fail("sources", name, f"a dataset whose card is as the hub takes them ({error})") from None
    if not picked or not all(map(readable, picked)):
        told = next((f"not {file}" for file in picked if not readable(file)), "none is there")
        allowed = f"a dataset with files of {', '.join(sorted(READ))} ({told}); try the hub's own copy"
        raise fail("sources", name, f"{allowed}: hf://datasets/{about.id}@refs/convert/parquet/CONFIG/SPLIT/*.parquet")
    return {f"hf://datasets/{about.id}@{about.sha}/{file}": sizes[file] for file in picked}


def is_text(file: str) -> bool:
    """Whether a dataset's file is of its text, in whatever format, by its name: no card, licence, code or picture."""
    return suffix(file) in READ | UNREAD and not ABOUT.fullmatch(file)


def readable(file: str) -> bool:
    """Whether a file's format is one that we read, by its name."""
    return suffix(file) in READ


def suffix(file: str) -> str:
    """What a file's name ends in, without the suffix of a compression."""
    path = file.lower()
    for compression in COMPRESSED:
        path = path.removesuffix(compression)
    return PurePosixPath(path).suffix


def reason(error: Exception) -> str:
    """What went wrong, in a line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


class BadCard(ValueError):
    """A card that is not as the hub takes them, and in what."""


def configs_of(given: Any) -> list[Mapping[str, Any]]:
    """The configurations that a card has by name. Raises BadCard."""
    if not isinstance(given or [], list):
        raise BadCard(f"configs is no list, but {given!r}")
    named = [one for one in given or [] if isinstance(one, Mapping) and one.get("config_name")]
    return [{**one, "config_name": str(one["config_name"])} for one in named]


def chosen(files: Iterable[str], configs: Iterable[Any], name: str, config: str, split: str) -> list[str]:
    """Of a dataset's files, those of a configuration and split, as its card says, or their names.

    Raises ConfigError that lists the configurations or splits that there are, and BadCard.
    """
    known = {one["config_name"]: one for one in configs}
    below = ""
    if known:
        usual = [one for one, about in known.items() if about.get("default") or one == "default"]
        picked = config or (usual[:1] or list(known))[0]
        if picked not in known or not (config or usual or len(known) == 1):
            raise missing("config", config, f"one of {', '.join(known)}, as {name} has them")
        about = known[picked]
        below = f"{str(about['data_dir']).strip('/')}/" if about.get("data_dir") else ""
        if about.get("data_files"):
            return listed(files, patterns(about["data_files"]), name, split)
    elif config:
        below = f"{config}/"
    mine = [file for file in files if file.startswith(below)]
    if config and not mine:
        folders = sorted({file.partition("/")[0] for file in files if "/" in file})
        raise fail("config", config, f"one of {', '.join(folders) or 'none'}, the folders of {name}")
    return by_name(mine, name, split)


def patterns(given: Any) -> dict[str, list[str]]:
    """The patterns of each split: a card has a pattern, several, or a list of splits with theirs. Raises BadCard."""
    entries = given if isinstance(given, list) else [given]
    found: dict[str, list[str]] = {}
    for entry in entries:
        split, path = (entry.get("split"), entry.get("path")) if isinstance(entry, Mapping) else (SPLIT, entry)
        paths: list[Any] = path if isinstance(path, list) else [path]
        if not split or not all(isinstance(one, str) for one in paths):
            raise BadCard(f"data_files has {entry!r}, where a pattern belongs, or a split and its path")
        found.setdefault(str(split), []).extend(paths)
    return found


def listed(files: Iterable[str], of: Mapping[str, list[str]], name: str, split: str) -> list[str]:
    """The files that fit the patterns of a split. Raises BadCard."""
    wanted = split or SPLIT
    if wanted not in of:
        raise missing("split", split, f"one of {', '.join(of)}, as {name} has them")
    from fsspec.utils import glob_translate

    try:
        meant = [re.compile(glob_translate(pattern)) for pattern in of[wanted]]
    except ValueError as error:
        raise BadCard(f"data_files: {error}") from None
    return [file for file in files if any(one.match(file) for one in meant)]


def by_name(files: Iterable[str], name: str, split: str) -> list[str]:
    """The files whose names have the split's in them; all, where none has any split's and none is asked for."""
    of = {file: {found.lower() for found in SPLITS.findall(file)} for file in files}
    wanted = split or SPLIT
    mine = [file for file, splits in of.items() if wanted in splits]
    if mine or (not split and not any(of.values())):
        return mine or list(of)
    there = sorted({one for splits in of.values() for one in splits})
    raise missing("split", split, f"one of {', '.join(there) or 'none'}, by the names of the files of {name}")


def missing(field: str, given: str, allowed: str) -> ConfigError:
    """What to say of a choice that a dataset has not, or that nobody has made."""
    return ConfigError([Problem(field, given or None, allowed)])


def unreached(name: str, why: object) -> ConfigError:
    """What to say of a name that is no file here, where the hub has no such dataset, or is not reached."""
    where = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    allowed = (
        f"a text file, a folder or a glob pattern (no such file), or the name of a dataset at {where} ({why}); "
        "without a hub, a folder that holds a copy of its files"
    )
    return fail("sources", name, allowed)
