from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from teragpt.config import ConfigError
from teragpt.data import ShardedDataset, open_dataset
from teragpt.datasets import blocks, fetch, room, shards
from teragpt.datasets.fetch import open_files
from teragpt.datasets.files import DIGEST_BYTES, MANIFEST
from teragpt.prepare.assembly import write
from teragpt.prepare.documents import Document, Recipe
from teragpt.storage import Bucket, locked
from teragpt.tokenization.tokenizer import Tokenizer, train_bpe

TEXTS = [f"def function_{number}(value):\n    return value + {number}\n" for number in range(60)]
BLOCK = 256


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(TEXTS, 300)


@pytest.fixture
def prepared(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset on this machine of small blocks, and an empty cache that nobody holds."""
    monkeypatch.setenv("TERAGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(room, "held", {})
    monkeypatch.setattr(blocks, "WAITS", 3 * (0.0,))
    monkeypatch.setattr(fetch, "SOON", 3 * (0.0,))
    write((Document((text,)) for text in TEXTS), tmp_path / "made", tokenizer, Recipe(validation=0.2, shard_tokens=300))
    return tmp_path / "made"


def stored(folder: Path) -> str:
    """The URL of a dataset that is put into a store."""
    place = f"{folder.parent.name}/{folder.name}"
    fsspec.filesystem("memory").put(str(folder), f"/{place}", recursive=True)
    return f"memory://{place}"


@pytest.fixture
def url(prepared: Path) -> str:
    """The same dataset in a store."""
    return stored(prepared)


@pytest.fixture
def old_url(prepared: Path) -> str:
    """The same dataset in a store, as it was made before there were blocks."""
    return aged(prepared)


def aged(folder: Path) -> str:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / manifest.pop("blocks")["digests"]["name"]).unlink()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return stored(folder)


def copies(prepared: Path) -> list[Path]:
    folder = prepared.parent / "cache" / "datasets"
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def kept(prepared: Path) -> list[Path]:
    """The blocks that are kept here."""
    return sorted(path for path in (prepared.parent / "cache" / "datasets").glob("*/blocks/*/[0-9]*"))


def batches(dataset: ShardedDataset, steps: int = 30) -> list[list[int]]:
    return [dataset.batch(step, 4, 16, 7, 0, 1)[1].flatten().tolist() for step in range(steps)]


def opened(place: str) -> ShardedDataset:
    found = open_dataset(place)
    assert isinstance(found, ShardedDataset)
    return found


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The parts of objects that were asked for, by name and first byte."""
    asked: list[tuple[str, int]] = []
    read_part = Bucket.read_part

    def noted(self: Bucket, name: str, start: int, stop: int) -> bytes:
        asked.append((name, start))
        return read_part(self, name, start, stop)

    monkeypatch.setattr(Bucket, "read_part", noted)
    return asked


# --- block by block


def test_a_path_is_used_where_it_lies(prepared: Path) -> None:
    assert open_files(str(prepared)).folder == prepared


def test_a_dataset_in_a_store_is_the_same_and_is_read_where_it_is_wanted(
    prepared: Path, url: str, asked: list[tuple[str, int]]
) -> None:
    there, here = opened(url), opened(str(prepared))
    assert there.fingerprint == here.fingerprint
    assert Tokenizer(there.tokenizer).fingerprint == Tokenizer(here.tokenizer).fingerprint
    assert not kept(prepared)
    there.batch(0, 1, 16, 7, 0, 1)
    assert 1 <= len(kept(prepared)) <= 2
    assert batches(there) == batches(here)
    for one, other in zip(there.validation(4, 16, 0, 1), here.validation(4, 16, 0, 1), strict=True):
        assert one.equal(other)
    assert len(asked) == len(set(asked))  # each once
    before = len(asked)
    assert batches(opened(url)) == batches(here)
    assert [name for name, _ in asked[before:]] == ["blocks.bin"]  # the rest lay here already


def test_ranks_of_a_node_share_what_each_has_read(url: str, asked: list[tuple[str, int]]) -> None:
    ranks = [opened(url) for _ in range(4)]
    asked.clear()
    with ThreadPoolExecutor(4) as pool:
        assert len({str(found) for found in pool.map(batches, ranks)}) == 1
    assert len(asked) == len(set(asked))


def test_what_is_kept_stays_within_its_limit_and_what_was_wanted_last_stays(
    prepared: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = opened(str(prepared))
    root = prepared.parent / "cache" / "datasets"
    opened(url)
    monkeypatch.setenv("TERAGPT_CACHE_BYTES", str(sum(one.size for one in room.entries(root)) + 4 * BLOCK))
    over, done = [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            with suppress(FileNotFoundError), locked(root / ".lock"):
                over.append(sum(path.stat().st_size for path in root.glob("*/blocks/*/*")) > 4 * BLOCK)

    watcher = threading.Thread(target=watch)
    watcher.start()
    ranks = [opened(url) for _ in range(3)]
    try:
        with ThreadPoolExecutor(3) as pool:
            assert all(found == batches(here) for found in pool.map(batches, ranks))
    finally:
        done.set()
        watcher.join()
    assert over
    assert not any(over)


def test_the_block_wanted_least_recently_goes_first(prepared: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = prepared.parent / "cache" / "datasets"
    first, second, *_ = opened(url).splits["train"].shards
    monkeypatch.setenv("TERAGPT_CACHE_BYTES", str(sum(one.size for one in room.entries(root)) + 2 * BLOCK))
    monkeypatch.setattr(room, "MORE", 1 << 30)
    for start in (0, BLOCK // 2):
        first.ask(start, start + 1)()
    older, newer = kept(prepared)
    os.utime(older, (2, 2))
    os.utime(newer, (1, 1))
    first.ask(0, 1)()  # wanted again
    second.ask(0, 1)()
    assert older in kept(prepared)
    assert newer not in kept(prepared)


def test_a_torn_block_is_not_taken_for_a_whole_one(prepared: Path, url: str) -> None:
    right = batches(opened(url))
    whole = kept(prepared)[0].read_bytes()
    for torn in (b"", whole[:100], bytes(len(whole)), bytes([whole[0] ^ 1]) + whole[1:]):
        kept(prepared)[0].write_bytes(torn)
        assert batches(opened(url)) == right
        assert kept(prepared)[0].read_bytes() == whole


def test_what_a_killed_process_began_is_removed_and_counts_no_more(prepared: Path, url: str) -> None:
    dataset = opened(url)
    batches(dataset, 1)
    left = kept(prepared)[0].with_name(".000099.123.part")
    left.write_bytes(bytes(10))
    root = prepared.parent / "cache" / "datasets"
    (root / ".taken").write_text("")  # it was killed while it wrote the count, too
    batches(dataset)
    assert not left.exists()
    assert int((root / ".taken").read_text()) == sum(entry.size for entry in room.entries(root))


def test_a_store_that_fails_is_asked_again(
    prepared: Path, url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    right, there, read_part = batches(opened(str(prepared))), opened(url), Bucket.read_part
    fails = iter([TimeoutError("slow"), OSError("503")] * 3)

    def failing(self: Bucket, name: str, start: int, stop: int) -> bytes:
        if error := next(fails, None):
            raise error
        return read_part(self, name, start, stop)

    monkeypatch.setattr(blocks, "WAITS", 8 * (0.0,))
    monkeypatch.setattr(Bucket, "read_part", failing)
    assert batches(there) == right
    assert f"data: {url}/train-0000" in capfd.readouterr().err


def test_a_store_that_fails_for_long_is_one_error_that_names_the_object(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = opened(url)

    def failing(*_: object) -> bytes:
        raise OSError("503 Slow Down")

    monkeypatch.setattr(Bucket, "read_part", failing)
    with pytest.raises(ConnectionError, match=f"data: {url}/train-0000.*could not be read in 4 tries .503 Slow Down"):
        batches(there)


def test_a_block_that_came_broken_is_read_again_and_then_refused(prepared: Path, url: str) -> None:
    there = opened(url)
    fs, path = Bucket(f"{url}/train-00000.bin").open()
    whole = fs.cat_file(path)
    fs.pipe_file(path, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(
        ConfigError, match=r"data: got '.*train-00000.bin'; allowed: the content that dataset.json tells"
    ):
        batches(there)
    fs.pipe_file(path, whole)
    assert batches(there) == batches(opened(str(prepared)))


def test_what_is_missing_in_a_store_is_named(url: str) -> None:
    there = opened(url)
    fs, path = Bucket(f"{url}/validation-00000.bin").open()
    fs.rm(path)
    with pytest.raises(
        ConfigError, match=f"data: got '{url}/validation-00000.bin'; allowed: an object that can be read"
    ):
        there.validation(100, 16, 0, 1)
    with pytest.raises(ConfigError, match=rf"data: got '{url}/none/dataset.json'; allowed: an object that can be read"):
        opened(f"{url}/none")


def test_a_disk_that_takes_no_more_costs_time_but_no_run(
    prepared: Path, url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(blocks, "said_at", {})
    there = opened(url)
    usage = shutil.disk_usage(prepared)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10, total=usage.total))
    assert batches(there) == batches(opened(str(prepared)))
    assert not kept(prepared)
    assert capfd.readouterr().err.count("keeps no more of memory://") == 1


def test_digests_that_do_not_fit_the_shards_are_refused(prepared: Path) -> None:
    content = json.loads((prepared / MANIFEST).read_text())
    content["blocks"]["digests"]["size"] += DIGEST_BYTES
    (prepared / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="blocks with digests of"):
        opened(str(prepared))


# --- copied whole


class Quiet(SimpleHTTPRequestHandler):
    """Python's server, which gives objects only whole."""

    def log_message(self, format: str, *_: object) -> None:
        pass


@pytest.fixture
def plain_url(prepared: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(prepared)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_that_knows_no_parts_is_read_whole_once(prepared: Path, plain_url: str) -> None:
    assert batches(opened(plain_url)) == batches(opened(str(prepared)))
    assert (copies(prepared)[0] / "train-00000.bin").is_file()


def test_an_older_dataset_is_copied_once_and_is_the_same(
    prepared: Path, old_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(4) as ranks:
        assert len({files.folder for files in ranks.map(open_files, 4 * [old_url])}) == 1
    assert len(copies(prepared)) == 1
    monkeypatch.setattr(Bucket, "download", lambda *_: pytest.fail("copied again"))
    assert opened(old_url).fingerprint == opened(str(prepared)).fingerprint
    assert batches(opened(old_url)) == batches(opened(str(prepared)))


def test_a_copy_that_was_broken_off_goes_on_with_what_is_missing(
    prepared: Path, old_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = open_files(old_url).folder
    (copy / MANIFEST).unlink()
    missing, cut = copy / "train-00001.bin", copy / "train-00000.bin"
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:10])
    again: list[str] = []
    download = Bucket.download

    def noted(self: Bucket, name: str, file: Path) -> None:
        again.append(name)
        download(self, name, file)

    monkeypatch.setattr(Bucket, "download", noted)
    assert open_files(old_url).folder == copy
    assert sorted(again) == [cut.name, missing.name]
    assert opened(old_url).fingerprint == opened(str(prepared)).fingerprint


def test_a_shard_that_came_broken_is_refused_and_the_next_try_copies_anew(prepared: Path, old_url: str) -> None:
    fs, path = Bucket(f"{old_url}/train-00000.bin").open()
    whole = fs.cat_file(path)
    fs.pipe_file(path, whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ConfigError, match=r"data: got '.*train-00000.bin'; allowed: content of SHA-256"):
        opened(old_url)
    assert copies(prepared) == []
    fs.pipe_file(path, whole)
    assert opened(old_url).fingerprint == opened(str(prepared)).fingerprint


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/outside.bin"])
def test_a_dataset_that_names_files_outside_itself_is_refused(prepared: Path, url: str, name: str) -> None:
    content = json.loads((prepared / MANIFEST).read_text())
    content["splits"]["train"]["shards"][0]["name"] = name
    Bucket(url).write(MANIFEST, json.dumps(content).encode())
    with pytest.raises(ConfigError, match=f"a file outside the dataset: {name}"):
        opened(url)


def test_a_cache_that_cannot_be_written_is_named(prepared: Path, url: str) -> None:
    shutil.rmtree(prepared.parent / "cache", ignore_errors=True)
    (prepared.parent / "cache").write_text("in the way")
    with pytest.raises(ConfigError, match="TERAGPT_CACHE: got"):
        opened(url)


def another(prepared: Path, tokenizer: Tokenizer, name: str) -> str:
    """The URL of an older dataset of other texts, and of the same number of bytes."""
    texts = [text.replace("value", name) for text in TEXTS]
    write((Document((text,)) for text in texts), prepared.parent / name, tokenizer, Recipe(validation=0.2))
    return aged(prepared.parent / name)


def test_copies_that_nobody_reads_go_when_another_needs_their_room(
    prepared: Path, old_url: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = opened(old_url).folder, opened(another(prepared, tokenizer, "items")).folder
    third = another(prepared, tokenizer, "words")
    os.utime(first.with_suffix(".used"), (0, 0))
    monkeypatch.setenv("TERAGPT_CACHE_BYTES", str(int((room.held_by(first) + room.held_by(second)) * 1.1)))
    with pytest.raises(ConfigError, match=r"TERAGPT_CACHE_BYTES: got .* allowed: a folder with room for"):
        opened(third)
    assert {first, second} <= set(copies(prepared))  # both are being read
    for lock in room.held.values():
        os.close(lock)
    room.held.clear()
    last = opened(third)
    assert {path for path in copies(prepared) if (path / MANIFEST).exists()} == {second, last.folder}
    assert last.tokens("train") > 0


def test_a_limit_that_is_no_number_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERAGPT_CACHE_BYTES", "10GB")
    with pytest.raises(ConfigError, match="TERAGPT_CACHE_BYTES: got '10GB'; allowed: a number of bytes"):
        opened(url)


def test_a_full_disk_is_told_before_anything_is_copied(
    prepared: Path, old_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10, total=100))
    with pytest.raises(ConfigError, match=r"TERAGPT_CACHE: got .* allowed: a folder with room for"):
        opened(old_url)
    assert [path for copy in copies(prepared) for path in copy.iterdir()] == []


def test_an_outage_at_the_start_is_waited_for(prepared: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, began = Bucket.read, time.monotonic()

    def failing(self: Bucket, name: str) -> bytes:
        if time.monotonic() - began < 0.2:
            raise OSError("503")
        return read(self, name)

    monkeypatch.setattr(fetch, "SOON", (0.1, 0.2, 0.2))
    monkeypatch.setattr(Bucket, "read", failing)
    assert opened(url).fingerprint == opened(str(prepared)).fingerprint
