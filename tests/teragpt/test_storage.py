from __future__ import annotations

import os
from pathlib import Path

import pytest

from teragpt.config import ConfigError
from teragpt.storage import Bucket, Disk, Folder, appearing, cache_folder, folder_at
from tests.teragpt import stores


@pytest.fixture(params=["disk", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """An empty folder on each kind of storage."""
    if request.param == "disk":
        return Disk(tmp_path / "folder")
    if request.param == "memory":
        return Bucket(f"memory://{tmp_path.name}/{request.node.name}")
    for name, value in request.getfixturevalue("s3").items():
        monkeypatch.setenv(name, value)
    return Bucket(f"s3://{stores.BUCKET}/{request.node.name}")


def test_what_is_written_is_listed_and_read(folder: Folder) -> None:
    assert folder.entries() == {}
    with pytest.raises(FileNotFoundError):
        folder.read("a")
    folder.write("a", b"one")
    folder.write("a", b"other")
    (folder / "inside").write("b", b"")
    assert folder.entries() == {"a": 5, "inside": None}
    assert (folder / "inside").entries() == {"b": 0}
    assert folder.read("a") == b"other"


def test_a_name_is_taken_once(folder: Folder) -> None:
    folder.create("owner", b"first")
    with pytest.raises(FileExistsError):
        folder.create("owner", b"second")
    assert folder.read("owner") == b"first"
    assert folder.entries() == {"owner": 5}  # and no draft is left


def test_a_name_that_two_take_at_once_where_puts_are_unconditional_is_the_last_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = Bucket("memory://both")
    monkeypatch.setattr(Bucket, "read", lambda *_: b"another's")  # put just after ours
    with pytest.raises(FileExistsError, match="at the same time"):
        folder.create("owner", b"ours")


def test_a_folder_goes_with_all_that_lies_in_it(folder: Folder) -> None:
    folder.write("kept", b"")
    gone = folder / "gone"
    gone.remove("meta.json")  # is not there
    for name in ("meta.json", "shard"):
        gone.write(name, b"1")
    gone.remove("meta.json")
    assert gone.entries() == {}
    assert folder.entries() == {"kept": 0}


def test_a_folder_is_filled_and_used_as_files_of_this_machine(folder: Folder, tmp_path: Path) -> None:
    def make(here: Path) -> None:
        here.mkdir(parents=True, exist_ok=True)
        (here / "tokenizer.json").write_text("{}")

    folder.fill(make)
    (folder / "more").write("b", b"")
    with folder.local() as here:
        assert (here / "tokenizer.json").read_text() == "{}"
    assert here.exists() == isinstance(folder, Disk)
    assert tmp_path.exists()


def test_lines_are_added_and_each_part_of_a_store_is_a_file_of_its_own(folder: Folder) -> None:
    for part in (1, 2):
        log = folder.log("metrics.jsonl", part)
        log.add(b"one\n")
        log.publish()
        log.add(b"two\n")
        log.publish()
        log.close()
    if isinstance(folder, Disk):
        assert folder.read("metrics.jsonl") == 2 * b"one\ntwo\n"
    else:
        assert folder.entries() == {"metrics-1.jsonl": 8, "metrics-2.jsonl": 8}
        assert folder.read("metrics-2.jsonl") == b"one\ntwo\n"


def test_a_line_that_was_cut_off_costs_the_next_part_none(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"one\nhal")
    for line in (b"two\n", b"three\n"):
        log = folder_at(tmp_path, "out").log("metrics.jsonl", 2)
        log.add(line)
        log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"one\nhal\ntwo\nthree\n"


@pytest.mark.parametrize("url", ["nothing://bucket/run", "s3x://a"])
def test_a_url_that_nothing_opens_is_refused_by_the_settings_name(url: str) -> None:
    with pytest.raises(ConfigError, match=f"out: got '{url}'; allowed: a path, or a URL that fsspec"):
        folder_at(url, "out")


def test_whatever_a_stores_library_raises_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no credentials")

    folder = Bucket("memory://away")
    monkeypatch.setattr(folder.open()[0], "cat_file", fail)
    with pytest.raises(OSError, match="RuntimeError: no credentials"):
        folder.read("a")


def test_a_draft_that_goes_while_a_folder_is_listed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        name = ".draft"

        def is_dir(self) -> bool:
            return False

        def stat(self) -> os.stat_result:
            raise FileNotFoundError

    (tmp_path / "there").write_text("1")
    scandir = os.scandir

    class Listing:
        def __enter__(self) -> list[object]:
            with scandir(tmp_path) as found:
                return [Gone(), *found]

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", lambda _: Listing())
    assert Disk(tmp_path).entries() == {"there": 1}


def test_the_cache_is_the_users_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/user")
    monkeypatch.setenv("TERAGPT_CACHE", "/given")
    assert cache_folder() == Path("/given")
    monkeypatch.delenv("TERAGPT_CACHE")
    assert cache_folder() == Path("/user/teragpt")


def test_two_makers_of_one_folder_do_not_mix(tmp_path: Path) -> None:
    with appearing(tmp_path / "made", "it") as draft:
        (draft / "mine").write_text("mine")
        with pytest.raises(ConfigError, match=r"out: got .*; allowed: a folder that no other process is making"):
            appearing(tmp_path / "made", "it").__enter__()
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_a_killed_maker_has_left_is_no_part_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".made.part" / "old").mkdir(parents=True)
    with appearing(tmp_path / "made", "it") as draft:
        (draft / "mine").write_text("mine")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["mine"]
