"""What the planner must know of a dataset: its vocabulary, read from `dataset.json` without numpy or torch.

What makes a run impossible is refused here, before the run exists, with whatever else the spec names on this machine.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from controlplane.domain.errors import InvalidSpec, Problem
from controlplane.domain.spec import RunSpec
from controlplane.services import inputs
from teragpt.config import EMBEDDED_VOCABULARY, ConfigError
from teragpt.datasets.embedded import dataset_info
from teragpt.datasets.files import Manifest, checksum, fail, measure, read_manifest
from teragpt.sizes import SIZES

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
    if not spec.data.uris:
        _check_vocabulary(spec, EMBEDDED_VOCABULARY)
        if "context" in spec.train and (held := _embedded_tokens()):
            _check_context(spec, held)
        return None
    if not all(Path(uri).is_absolute() for uri in spec.data.uris.values()):
        return None  # `resolve` refuses it, with everything else that is wrong
    manifests = {pointer: _manifest(pointer, Path(uri)) for pointer, uri in spec.data.uris.items()}
    first = next(iter(manifests.values()))
    for pointer, manifest in manifests.items():
        if manifest.tokenizer_fingerprint != first.tokenizer_fingerprint:
            allowed = f"a dataset of the same tokenizer as {next(iter(spec.data.uris.values()))}"
            raise _refused(pointer, spec.data.uris[pointer], allowed)
    _check_context(spec, min(split.tokens for one in manifests.values() for split in one.splits.values()))
    _check_vocabulary(spec, first.vocabulary)
    return first.vocabulary


def _embedded_tokens() -> int | None:
    """Tokens of the embedded corpus's smaller split; None until it was made on this machine."""
    try:
        return dataset_info("").get("smallest_split")
    except ConfigError:  # one that is broken is the trainer's to refuse
        return None


def _manifest(pointer: str, folder: Path) -> Manifest:
    """What the dataset in `folder` consists of, all of it there. Raises InvalidSpec."""
    try:
        manifest = read_manifest(folder)
        _check_files(folder, manifest)
    except ConfigError as error:
        raise InvalidSpec(Problem(pointer, "invalid_dataset", one.detail) for one in error.problems) from None
    except (OSError, OverflowError) as error:
        raise _refused(pointer, str(folder), f"a dataset folder made by `teragpt prepare` ({error})") from None
    return manifest


def _check_context(spec: RunSpec, held: int) -> None:
    size = SIZES.get(spec.size.lower())
    context = spec.train.get("context", size.context if size else None)
    if isinstance(context, int) and context >= held:
        raise _refused("/train/context", context, f"less than the {held:,} tokens of the dataset's smaller split")


def _check_vocabulary(spec: RunSpec, vocabulary: int) -> None:
    given = spec.train.get("num_tokens")
    if isinstance(given, int | float) and given < vocabulary:
        raise _refused("/train/num_tokens", given, f"at least the dataset's vocabulary of {vocabulary:,}")


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Every file has its size, and as far as `LARGEST_READ` reaches its content. Raises ConfigError and OSError."""
    states = [measure(folder, file) for file in manifest.files]
    left = LARGEST_READ
    for file, (_, size, changed_ns) in zip(manifest.files, states, strict=True):
        left -= size
        if left < 0:
            return
        path = folder / file.name
        found = _checksum(path, size, changed_ns)
        if found != file.sha256:
            raise fail("data", path, f"content of SHA-256 {file.sha256}, not {found}: prepare the dataset again")


@lru_cache(maxsize=4096)
def _checksum(path: Path, size: int, changed_ns: int) -> str:
    """Hash of a file's content, read once for each of its states."""
    del size, changed_ns  # they tell the states apart
    return checksum(path)


def _refused(pointer: str, given: object, allowed: str) -> InvalidSpec:
    return InvalidSpec([Problem(pointer, "invalid_dataset", f"got {given!r}; allowed: {allowed}")])
