from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from controlplane.domain.errors import InvalidSpec, Problem
from controlplane.domain.spec import parse_spec
from controlplane.services import datasets
from controlplane.services.datasets import vocabulary_of
from teragpt.datasets.embedded import key
from teragpt.prepare import prepare
from teragpt.prepare.documents import Recipe
from teragpt.tokenization.tokenizer import train_bpe

TEXTS = [f"the cat number {number} sat on the mat, and so did number {number + 1}.\n" * 20 for number in range(100)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset as `teragpt prepare` makes it, of 300 tokens."""
    folder = tmp_path_factory.mktemp("data")
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text, "utf-8")
    prepare([folder], folder / "made", train_bpe(TEXTS, 300), Recipe(validation=0.2, shard_tokens=1000), progress=False)
    return folder / "made"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    copy = tmp_path / "copy"
    for path in made.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(made)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(made)).write_bytes(path.read_bytes())
    return copy


def vocabulary(**spec: Any) -> int | None:
    return vocabulary_of(parse_spec({"size": "tiny", **spec}))


def refused(**spec: Any) -> Problem:
    with pytest.raises(InvalidSpec) as caught:
        vocabulary(**spec)
    (problem,) = caught.value.problems
    return problem


def test_a_dataset_tells_its_vocabulary(made: Path) -> None:
    assert vocabulary(data={"uri": str(made)}) == 300
    assert vocabulary() is None
    assert vocabulary(data={"uri": "data"}) is None  # refused with the rest of the spec
    assert vocabulary(data={"uri": "/nowhere"}, train={"loader": "json:load"}) is None


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such folder"),
        ("", "holds no dataset.json"),
        ("{", "a readable JSON file"),
        ("[]", "a teragpt-dataset of version 1"),
        ('{"format": "teragpt-dataset", "version": 1, "splits": {}}', "a teragpt-dataset of version 1"),
    ],
)
def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path, content: str | None, complaint: str) -> None:
    folder = tmp_path / "data"
    if content is not None:
        folder.mkdir()
    if content:
        (folder / "dataset.json").write_text(content)
    problem = refused(data={"uri": str(folder)})
    assert problem.pointer == "/data/uri"
    assert complaint in problem.detail


def test_a_description_whose_numbers_are_none_is_refused(folder: Path) -> None:
    text = (folder / "dataset.json").read_text("utf-8")
    for said in ("Infinity", "NaN", '"x"', "299"):  # of 299, its files are not the ones
        (folder / "dataset.json").write_text(text.replace('"tokens": ', f'"tokens": {said}, "was": ', 1), "utf-8")
        assert refused(data={"uri": str(folder)}).pointer == "/data/uri"
    assert "too long" in refused(data={"uri": f"/{'x' * 300}"}).detail


def test_a_context_longer_than_the_smaller_split_is_refused(made: Path) -> None:
    held = json.loads((made / "dataset.json").read_text("utf-8"))["splits"]["validation"]["tokens"]
    problem = refused(data={"uri": str(made)}, train={"context": 1 << 20})
    assert problem.pointer == "/train/context"
    assert f"less than the {held:,} tokens" in problem.detail


def test_a_context_longer_than_the_embedded_corpus_is_refused_once_it_is_made(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERAGPT_CACHE", str(tmp_path))
    assert vocabulary(train={"context": 1 << 20}) is None
    (tmp_path / f"embedded-{key()}").symlink_to(made)
    problem = refused(train={"context": 1 << 20})
    assert (problem.pointer, "of the dataset's smaller split" in problem.detail) == ("/train/context", True)
    assert vocabulary(train={"context": 64}) is None


@pytest.mark.parametrize("name", ["train-00001.bin", "tokenizer/tokenizer.json"])
def test_files_that_are_not_whole_are_refused_with_both_sizes(folder: Path, name: str) -> None:
    path = folder / name
    size = path.stat().st_size
    os.truncate(path, size - 1)
    detail = refused(data={"uri": str(folder)}).detail
    assert f"got '{path}'; allowed: a file of {size:,} bytes, not of {size - 1:,}" in detail
    path.unlink()
    assert f"got '{path}'; allowed: a file of {size:,} bytes (No such file" in refused(data={"uri": str(folder)}).detail


@pytest.mark.parametrize("name", ["train-00001.bin", "validation-00000.bin", "tokenizer/tokenizer.json"])
def test_a_flipped_byte_is_refused_with_its_file(folder: Path, name: str) -> None:
    assert vocabulary(data={"uri": str(folder)}) == 300
    content = bytearray((folder / name).read_bytes())
    content[7] ^= 1
    (folder / name).write_bytes(content)
    problem = refused(data={"uri": str(folder)})
    assert problem.pointer == "/data/uri"
    assert f"got '{folder / name}'; allowed: content of SHA-256" in problem.detail
    assert "prepare the dataset again" in problem.detail


def test_content_is_read_once_for_each_of_its_states(folder: Path) -> None:
    vocabulary(data={"uri": str(folder)})
    before = datasets._checksum.cache_info()
    vocabulary(data={"uri": str(folder)})
    after = datasets._checksum.cache_info()
    assert (after.misses, after.hits > before.hits) == (before.misses, True)


def test_content_beyond_the_limit_is_left_to_the_trainer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = max(folder.glob("validation-*.bin"))
    last.write_bytes(bytes(byte ^ 1 for byte in last.read_bytes()))
    whole = sum(path.stat().st_size for path in folder.rglob("*.*") if path.stem not in {"dataset", "report"})
    monkeypatch.setattr(datasets, "LARGEST_READ", whole - 1)
    assert vocabulary(data={"uri": str(folder)}) == 300
    monkeypatch.setattr(datasets, "LARGEST_READ", whole)
    assert "content of SHA-256" in refused(data={"uri": str(folder)}).detail


def test_fewer_tokens_than_the_data_has_are_refused(made: Path) -> None:
    problem = refused(data={"uri": str(made)}, train={"num_tokens": 299})
    assert (problem.pointer, problem.detail) == (
        "/train/num_tokens",
        "got 299; allowed: at least the dataset's vocabulary of 300",
    )
    assert "vocabulary of 2,048" in refused(train={"num_tokens": 2047}).detail
    assert vocabulary(data={"uri": str(made)}, train={"num_tokens": 300}) == 300
    assert vocabulary(train={"num_tokens": 2, "loader": "json:load"}) is None


def test_every_source_of_a_mixture_is_looked_at(made: Path, folder: Path, tmp_path: Path) -> None:
    def mixture(other: Path) -> dict[str, Any]:
        return {"sources": [{"uri": str(made), "weight": 1}, {"uri": str(other), "weight": 2}]}

    assert vocabulary(data=mixture(folder)) == 300
    assert refused(data=mixture(tmp_path)).pointer == "/data/sources/1/uri"
    manifest = json.loads((folder / "dataset.json").read_text("utf-8"))
    (folder / "dataset.json").write_text(json.dumps({**manifest, "tokenizer_fingerprint": "another"}), "utf-8")
    problem = refused(data=mixture(folder))
    assert (problem.pointer, "same tokenizer" in problem.detail) == ("/data/sources/1/uri", True)
