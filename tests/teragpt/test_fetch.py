from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from teragpt import fetch
from teragpt.config import ConfigError
from teragpt.data import open_dataset
from teragpt.dataset_files import MANIFEST
from teragpt.fetch import on_this_node
from teragpt.prepare.assembly import write
from teragpt.prepare.documents import Document, Recipe
from teragpt.storage import Bucket
from teragpt.tokenizer import Tokenizer, train_bpe

TEXTS = [f"def function_{number}(value):\n    return value + {number}\n" for number in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, 300)


@pytest.fixture
def prepared(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset on this machine, and an empty cache."""
    monkeypatch.setenv("TERAGPT_CACHE", str(tmp_path / "cache"))
    write((Document((text,)) for text in TEXTS), tmp_path / "made", tokenizer, Recipe(validation=0.2, shard_tokens=300))
    return tmp_path / "made"


@pytest.fixture
def url(prepared: Path) -> str:
    """The same dataset in a store."""
    place = f"memory://{prepared.parent.name}/dataset"
    fsspec.filesystem("memory").put(str(prepared), f"/{prepared.parent.name}/dataset", recursive=True)
    return place


def copies(prepared: Path) -> list[Path]:
    return [path for path in (prepared.parent / "cache" / "datasets").iterdir() if path.is_dir()]


def test_a_path_is_used_where_it_lies(prepared: Path) -> None:
    assert on_this_node(str(prepared)) == prepared


def test_a_dataset_in_a_store_is_copied_once_and_is_the_same(
    prepared: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(4) as ranks:
        assert len(set(ranks.map(on_this_node, 4 * [url]))) == 1
    assert len(copies(prepared)) == 1
    monkeypatch.setattr(Bucket, "download", lambda *_: pytest.fail("copied again"))
    there, here = open_dataset(url), open_dataset(str(prepared))
    assert there.fingerprint == here.fingerprint
    for one, other in zip(there.batch(3, 4, 16, 7, 0, 1), here.batch(3, 4, 16, 7, 0, 1), strict=True):
        assert one.equal(other)
    assert Tokenizer(there.tokenizer).fingerprint == Tokenizer(here.tokenizer).fingerprint


def test_a_copy_that_was_broken_off_goes_on_with_what_is_missing(
    prepared: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = on_this_node(url)
    (copy / MANIFEST).unlink()
    missing, cut = copy / "train-00001.bin", copy / "train-00000.bin"
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:10])
    asked: list[str] = []
    download = Bucket.download

    def noted(self: Bucket, name: str, file: Path) -> None:
        asked.append(name)
        download(self, name, file)

    monkeypatch.setattr(Bucket, "download", noted)
    assert on_this_node(url) == copy
    assert sorted(asked) == [cut.name, missing.name]
    assert open_dataset(url).fingerprint == open_dataset(str(prepared)).fingerprint


def test_a_shard_that_came_broken_is_refused_and_the_next_try_copies_anew(prepared: Path, url: str) -> None:
    fs, path = Bucket(f"{url}/train-00000.bin").open()
    whole = fs.cat_file(path)
    fs.pipe_file(path, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ConfigError, match=r"data: got '.*train-00000.bin'; allowed: content of SHA-256"):
        on_this_node(url)
    assert copies(prepared) == []
    fs.pipe_file(path, whole)
    assert open_dataset(url).fingerprint == open_dataset(str(prepared)).fingerprint


def test_what_is_missing_in_a_store_is_named(url: str) -> None:
    fs, path = Bucket(f"{url}/validation-00000.bin").open()
    fs.rm(path)
    with pytest.raises(ConfigError, match=f"data: got '{url}/validation-00000.bin'; allowed: a file that can"):
        on_this_node(url)
    with pytest.raises(ConfigError, match=rf"data: got '{url}/none'; allowed: a dataset made by `teragpt prepare`"):
        on_this_node(f"{url}/none")


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/outside.bin"])
def test_a_dataset_that_names_files_outside_itself_is_refused(prepared: Path, url: str, name: str) -> None:
    content = json.loads((prepared / MANIFEST).read_text())
    content["splits"]["train"]["shards"][0]["name"] = name
    Bucket(url).write(MANIFEST, json.dumps(content).encode())
    with pytest.raises(ConfigError, match=f"a file outside the dataset: {name}"):
        on_this_node(url)


def test_a_cache_that_cannot_be_written_is_named(prepared: Path, url: str) -> None:
    shutil.rmtree(prepared.parent / "cache", ignore_errors=True)
    (prepared.parent / "cache").write_text("in the way")
    with pytest.raises(ConfigError, match="TERAGPT_CACHE: got"):
        on_this_node(url)


def another(prepared: Path, tokenizer: Tokenizer, name: str) -> str:
    """The URL of a dataset of other texts, and of the same number of bytes."""
    texts = [text.replace("value", name) for text in TEXTS]
    write((Document((text,)) for text in texts), prepared.parent / name, tokenizer, Recipe(validation=0.2))
    fsspec.filesystem("memory").put(str(prepared.parent / name), f"/{prepared.parent.name}/{name}", recursive=True)
    return f"memory://{prepared.parent.name}/{name}"


def test_copies_that_nobody_reads_go_when_another_needs_their_room(
    prepared: Path, url: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "held", {})
    first, second = on_this_node(url), on_this_node(another(prepared, tokenizer, "items"))
    third = another(prepared, tokenizer, "words")
    os.utime(first.with_suffix(".used"), (0, 0))
    monkeypatch.setenv("TERAGPT_CACHE_BYTES", str(int(fetch.held_by(first.parent) * 1.1)))
    with pytest.raises(ConfigError, match=r"TERAGPT_CACHE_BYTES: got .* allowed: a folder with room for"):
        on_this_node(third)
    assert {first, second} <= set(copies(prepared))  # both are being read
    for lock in fetch.held.values():
        os.close(lock)
    fetch.held.clear()
    last = on_this_node(third)
    assert set(copies(prepared)) == {second, last}
    assert open_dataset(third).tokens("train") > 0


def test_a_limit_that_is_no_number_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "held", {})
    monkeypatch.setenv("TERAGPT_CACHE_BYTES", "10GB")
    with pytest.raises(ConfigError, match="TERAGPT_CACHE_BYTES: got '10GB'; allowed: a number of bytes"):
        on_this_node(url)


def test_a_full_disk_is_told_before_anything_is_copied(
    prepared: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "held", {})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(ConfigError, match=r"TERAGPT_CACHE: got .* allowed: a folder with room for"):
        on_this_node(url)
    assert copies(prepared) == []
