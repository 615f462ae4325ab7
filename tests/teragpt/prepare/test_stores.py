"""Datasets made into an object store: whole or absent, never over another, nothing left of what failed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from teragpt.config import ConfigError
from teragpt.data import open_dataset
from teragpt.datasets.files import MANIFEST
from teragpt.launcher.termination import crash
from teragpt.prepare import assembly, preparation, prepare, report
from teragpt.prepare.__main__ import main
from teragpt.prepare.assembly import CLAIM
from teragpt.prepare.documents import Recipe
from teragpt.storage import Bucket
from teragpt.tokenization.tokenizer import Tokenizer, train_bpe
from tests.teragpt import stores

HOME = f"s3://{stores.BUCKET}"


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory, s3: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3, "TERAGPT_CACHE": str(tmp_path_factory.mktemp("cache"))}.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["def value():\n    return one\n"] * 10, 300)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("def value():\n    return one\n" * 500, "utf-8")
    return path


def test_a_dataset_is_put_into_a_store_whole_and_is_trained_on_there(
    text: Path, tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    out = f"{HOME}/whole"
    assert main([str(text), "-o", out, "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    assert re.search(rf"train: 1 document, .*\n.*more in {out}/report.json", capsys.readouterr().out, re.DOTALL)
    here = prepare([text], tmp_path / "here", tokenizer, progress=False)
    assert open_dataset(out).fingerprint == open_dataset(str(tmp_path / "here")).fingerprint
    names = {path.name for path in (tmp_path / "here").iterdir()}
    assert Bucket(out).entries().keys() == names, "no claim and no draft stays"
    assert here.splits["train"].tokens


@pytest.mark.parametrize(("name", "why"), [(MANIFEST, "a dataset is there"), ("kept.txt", "something else is there")])
def test_nothing_in_a_store_is_overwritten(text: Path, tokenizer: Tokenizer, name: str, why: str) -> None:
    place = Bucket(f"{HOME}/taken-{name}")
    place.write(name, b"kept")
    with pytest.raises(ConfigError, match=why):
        prepare([text], str(place), tokenizer, progress=False)
    assert (place.entries(), place.read(name)) == ({name: 4}, b"kept")


def test_a_run_that_is_tried_again_finds_what_it_has_published_in_a_store(
    text: Path, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    place = Bucket(f"{HOME}/again")
    command = [str(text), f"--out={place}", f"--tokenizer={tmp_path / 'tokenizer'}", "--workers=1"]
    monkeypatch.setenv("TERAGPT_RUN_ID", "run_1")
    assert main(command) == 0
    place.write(CLAIM, b"left")
    assert main(command) == 0
    assert CLAIM not in place.entries()
    monkeypatch.setenv("TERAGPT_RUN_ID", "run_2")
    assert main(command) == 2


def test_what_a_killed_preparation_has_put_there_gives_way(text: Path, tokenizer: Tokenizer) -> None:
    place = Bucket(f"{HOME}/killed")
    for name in (CLAIM, "train-00000.bin", "train-00007.bin"):
        place.write(name, b"half")
    (place / "tokenizer").write("old.json", b"{}")
    made = prepare([text], str(place), tokenizer, progress=False)
    entries = place.entries()
    assert not {CLAIM, "train-00007.bin"} & entries.keys()
    assert entries["train-00000.bin"] == made.splits["train"].shards[0].size
    assert "old.json" not in (place / "tokenizer").entries()


def test_a_preparation_that_fails_leaves_nothing_in_a_store(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "bad.txt").write_bytes(b"text\0" * 10)
    place = Bucket(f"{HOME}/failed")
    with pytest.raises(ConfigError, match=r"bad\.txt"):
        prepare([tmp_path / "bad.txt"], str(place), tokenizer, progress=False)
    assert place.entries() == {}


def test_one_that_another_has_taken_over_from_publishes_nothing(
    text: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, clear = Bucket(f"{HOME}/two"), assembly.clear

    def taken_over(store: Bucket, keep: list[str]) -> None:
        clear(store, keep)
        store.write(CLAIM, b"another")

    monkeypatch.setattr(assembly, "clear", taken_over)
    with pytest.raises(ConfigError, match="no other process is preparing"):
        prepare([text], str(place), tokenizer, progress=False)
    assert MANIFEST not in place.entries()
    assert place.read(CLAIM) == b"another", "which goes on with what is there"


def test_a_url_that_nothing_opens_is_refused(text: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="out: got 'pvc://claim/x'"):
        prepare([text], "pvc://claim/x", tokenizer, progress=False)


def test_one_that_another_is_preparing_is_to_be_tried_again(
    text: Path, tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    command = [str(text), f"--out={tmp_path / 'out'}", f"--tokenizer={tmp_path / 'tokenizer'}", "--workers=1"]
    with assembly.published(tmp_path / "out"):
        assert main(command) == 1
    said = capsys.readouterr().err
    assert crash(said) == "DatasetBusy", said
    assert [main(command), main(command)] == [0, 2]


def test_a_log_is_told_how_far_a_preparation_is(
    text: Path,
    tmp_path: Path,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in (preparation, report):
        monkeypatch.setattr(module, "TOLD_EVERY_S", 0.0)
    prepare([text], tmp_path / "told", tokenizer, Recipe())
    first, last, *more = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"prepare: 0\.0 of 0\.0 MB \(100%\), [\d.]+ MB/s, 0\.0 min left", first)
    assert last == "prepare: all text is read; writing the dataset"
    assert more == ["prepare: documents written, 0 of 1 done"] + [
        f"prepare: shards summed up, {done} of 2 done" for done in range(2)
    ]
    lines = preparation.Lines(None)
    lines.update(3_000_000)
    assert "prepare: 3.0 MB, " in capsys.readouterr().err
