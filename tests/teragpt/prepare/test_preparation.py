from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teragpt.config import ConfigError
from teragpt.datasets.files import read_manifest
from teragpt.datasets.shards import verify
from teragpt.prepare import documents as module
from teragpt.prepare import formats, prepare, sources
from teragpt.prepare.__main__ import main
from teragpt.prepare.assembly import LOCK, publication, published, write
from teragpt.prepare.documents import Document, Dropped, Recipe, boundary, decode, pieces, read_segments
from teragpt.prepare.parts import Part
from teragpt.storage import locked
from teragpt.tokenization.tokenizer import Tokenizer, train_bpe

WORDS = ["def", "return", "class", "Straße", "value", "漢字", "\n", "    "]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["def value():\n    return Straße\n", "class 漢字: pass\n"] * 10, 300)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERAGPT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of 60 text files, some of them in a folder below."""
    draw, folder = random.Random(0), tmp_path / "texts"
    (folder / "below").mkdir(parents=True)
    for number in range(60):
        path = folder / "below" / f"{number}.txt" if number % 3 else folder / f"{number}.txt"
        path.write_text(" ".join(draw.choices(WORDS, k=draw.randint(1, 200))), "utf-8")
    return folder


def stored(folder: Path, split: str) -> list[list[int]]:
    """The documents of a split, as they lie on the disk."""
    manifest = read_manifest(folder)
    shards = [np.fromfile(folder / shard.name, manifest.dtype) for shard in manifest.splits[split].shards]
    documents: list[list[int]] = [[]]
    for token in np.concatenate(shards).tolist() if shards else []:
        if token == manifest.end:
            documents.append([])
        else:
            documents[-1].append(token)
    return documents[:-1]


def test_every_document_lands_whole_in_exactly_one_split(texts: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    prepare([texts], tmp_path / "out", tokenizer, Recipe(validation=0.2), progress=False)
    train, held_out = (stored(tmp_path / "out", split) for split in ("train", "validation"))
    written = sorted(tokenizer.decode(ids) for ids in train + held_out)
    assert written == sorted(path.read_text("utf-8") for path in texts.rglob("*.txt"))
    assert 2 <= len(held_out) <= 25


def test_the_manifest_describes_what_was_written(texts: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    made = prepare([texts], tmp_path / "out", tokenizer, Recipe(validation=0.2), progress=False)
    assert read_manifest(tmp_path / "out") == made
    said = json.loads((tmp_path / "out" / "dataset.json").read_text("utf-8"))
    assert (said["format"], said["version"], said["dtype"]) == ("teragpt-dataset", 1, "uint16")
    train = [token for document in stored(tmp_path / "out", "train") for token in (*document, tokenizer.end)]
    assert made.splits["train"].tokens == len(train)
    assert made.splits["train"].documents + made.splits["validation"].documents == 60
    share = np.bincount(train) / len(train)
    assert made.unigram_entropy == pytest.approx(-sum(one * np.log(one) for one in share if one))
    assert Tokenizer(str(tmp_path / "out" / "tokenizer")).fingerprint == made.tokenizer_fingerprint
    assert not list(tmp_path.glob(".*"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "blocks.bin", "dataset.json", "report.json", "report.svg", "tokenizer", "train-00000.bin",
        "validation-00000.bin",
    }  # fmt: skip


def test_the_same_text_makes_the_same_dataset(texts: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    one = prepare([texts], tmp_path / "one", tokenizer, progress=False)
    two = prepare([texts], tmp_path / "two", tokenizer, progress=False)
    assert one.fingerprint == two.fingerprint
    assert (
        prepare([texts], tmp_path / "three", tokenizer, Recipe(validation=0.5), progress=False).fingerprint
        != one.fingerprint
    )


def test_equal_documents_share_a_split() -> None:
    assert Document(("a", "b")).point == Document(("a", "b")).point != Document(("ab",)).point


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1), unique=True, min_size=1).map(lambda texts: [one.hex() for one in texts]))
def test_a_documents_point_lies_between_nought_and_one(texts: list[str]) -> None:
    points = [Document((text,)).point for text in texts]
    assert all(0 <= point < 1 for point in points)
    assert len(set(points)) == len(points)


def test_shards_are_cut_at_their_size(texts: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    whole = prepare([texts], tmp_path / "whole", tokenizer, Recipe(validation=0.2), progress=False)
    cut = prepare([texts], tmp_path / "cut", tokenizer, Recipe(validation=0.2, shard_tokens=1000), progress=False)
    sizes = [shard.size for shard in cut.splits["train"].shards]
    assert len(sizes) > 2
    assert set(sizes[:-1]) == {2000}
    assert stored(tmp_path / "cut", "train") == stored(tmp_path / "whole", "train")
    assert cut.splits["train"].tokens == whole.splits["train"].tokens


def test_a_single_document_gives_its_end_to_validation(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "one.txt").write_text("def value\n" * 1000, "utf-8")
    made = prepare([tmp_path / "one.txt"], tmp_path / "out", tokenizer, Recipe(validation=0.1), progress=False)
    train, held_out = made.splits["train"], made.splits["validation"]
    assert held_out.tokens == pytest.approx(0.1 * (train.tokens + held_out.tokens), abs=1)
    shards = [np.fromfile(tmp_path / "out" / f"{split}-00000.bin", "<u2") for split in ("train", "validation")]
    assert tokenizer.decode(np.concatenate(shards).tolist()[:-1]) == "def value\n" * 1000


def test_the_first_document_trains_whatever_its_hash_says(tmp_path: Path, tokenizer: Tokenizer) -> None:
    made = write(
        [Document((f"document {number}",)) for number in range(20)],
        tmp_path / "out",
        tokenizer,
        Recipe(validation=0.9999999),
    )
    assert made.splits["train"].documents == 1
    assert made.splits["validation"].documents == 19


def test_validation_zero_holds_nothing_out(texts: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    made = prepare([texts], tmp_path / "out", tokenizer, Recipe(validation=0), progress=False)
    assert (made.splits["train"].documents, made.splits["validation"].tokens) == (60, 0)


def test_a_large_vocabulary_takes_four_bytes_a_token(texts: Path, tmp_path: Path, saved_wide: Tokenizer) -> None:
    made = prepare([texts], tmp_path / "out", saved_wide, progress=False)
    assert made.dtype == np.dtype("<u4")
    assert max(token for document in stored(tmp_path / "out", "train") for token in document) > 1 << 16


@pytest.fixture
def saved_wide(tokenizer: Tokenizer, tmp_path: Path) -> Tokenizer:
    """A tokenizer whose ids begin where two bytes end."""
    tokenizer.save(tmp_path / "wide")
    path = tmp_path / "wide" / "tokenizer.json"
    rules = json.loads(path.read_text("utf-8"))
    rules["model"]["vocab"] = {word: at + (1 << 16) for word, at in rules["model"]["vocab"].items()}
    rules["added_tokens"][0]["id"] += 1 << 16
    path.write_text(json.dumps(rules), "utf-8")
    return Tokenizer(str(path))


# --- sources


def test_globs_folders_and_files_are_read_in_a_fixed_order(texts: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    sources: list[Path | str] = [texts / "0.txt", str(texts / "below" / "*.txt"), f"{texts}/**/3.txt"]
    made = prepare(sources, tmp_path / "out", tokenizer, Recipe(validation=0), progress=False)
    assert made.splits["train"].documents == 1 + 40 + 1


def test_hidden_files_and_empty_ones_in_folders_are_left_out(texts: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    (texts / ".git").mkdir()
    (texts / ".git" / "index").write_bytes(b"\0")
    (texts / ".hidden").write_bytes(b"\0")
    (texts / "empty.txt").touch()
    made = prepare([texts], tmp_path / "out", tokenizer, Recipe(validation=0), progress=False)
    assert made.splits["train"].documents == 60


def test_a_long_file_becomes_documents_that_end_with_a_line(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DOCUMENT_BYTES", 100)
    monkeypatch.setattr(formats, "DOCUMENT_BYTES", 100)
    text = "".join(f"{number} Straße 漢字\n" for number in range(50)) + "x" * 250 + "ß" * 200
    (tmp_path / "long.txt").write_text(text, "utf-8")
    (tmp_path / "long.jsonl").write_text(json.dumps({"text": text}), "utf-8")
    prepare([tmp_path / "long.txt"], tmp_path / "out", tokenizer, Recipe(validation=0), progress=False)
    found = [tokenizer.decode(ids) for ids in stored(tmp_path / "out", "train")]
    assert "".join(found) == text
    assert all(len(piece.encode()) <= 100 for piece in found)
    assert all(piece.endswith("\n") for piece in found[: len(found) - 7])
    prepare([tmp_path / "long.jsonl"], tmp_path / "record", tokenizer, Recipe(validation=0), progress=False)
    assert [tokenizer.decode(ids) for ids in stored(tmp_path / "record", "train")] == found == list(pieces(text))


@settings(deadline=None)
@given(st.text(min_size=30), st.integers(10, 29))
def test_a_cut_never_falls_into_a_character(text: str, size: int) -> None:
    held = text.encode()[:size]
    assert 0 < boundary(held) <= len(held)
    held[: boundary(held)].decode()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"text\xff", r"UTF-8 text \(byte 0xff at offset 4: invalid start byte\)"),
        (
            b"a" * 99 + b"\n" + b"b" * 50 + b"\xe6\xbc",
            r"UTF-8 text \(byte 0xe6 at offset 150: unexpected end of data\)",
        ),
        (b"a" * 120 + b"\0", r"a text file \(binary: a zero byte at offset 120\)"),
        ("UTF-16".encode("utf-16"), r"a text file \(binary: a zero byte at offset 3\)"),
    ],
)
def test_what_is_no_text_is_refused_with_its_offset_and_leaves_nothing(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, content: bytes, problem: str
) -> None:
    monkeypatch.setattr(formats, "DOCUMENT_BYTES", 100)
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"sources: got '{tmp_path}/bad\.txt'; allowed: {problem}"):
        prepare([tmp_path / "bad.txt"], tmp_path / "out", tokenizer, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.txt"]


def test_decoding_says_where_in_the_file_a_byte_stands() -> None:
    with pytest.raises(ValueError, match="offset 1002"):
        decode(1000, b"ab\xff")


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("missing.txt", "no such file"),
        ("*.md", "it has none"),
        ("nothing", "it has none"),
        ("empty.txt", "a text file that is not empty"),
        ("blank", "at least one file that is not empty"),
    ],
)
def test_a_source_that_gives_no_text_is_named(tmp_path: Path, tokenizer: Tokenizer, source: str, problem: str) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "empty.txt").touch()
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ConfigError, match=f"sources: got '.*{source[1:]}'; allowed: .*{problem}"):
        prepare([tmp_path / source], tmp_path / "out", tokenizer, progress=False)
    assert not (tmp_path / "out").exists()


@contextmanager
def closed(path: Path) -> Iterator[None]:
    """Close a path to its reader, who is nobody in particular where root runs the tests."""
    root = os.geteuid() == 0
    path.chmod(0)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(0o755)


def documents_of(source: str) -> Iterator[Document]:
    for block in sources.blocks(sources.find_sources([source]), Recipe()):
        yield from read_segments(block.segments, Recipe(), Dropped())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_may_not_be_read_is_named(kind: str) -> None:
    with TemporaryDirectory() as name:  # not tmp_path, which only its owner may enter
        Path(name).chmod(0o755)
        below = Path(name) / "below"
        below.mkdir()
        (below / "file.txt").write_text("text", "utf-8")
        path = below / "file.txt" if kind == "file" else below
        with closed(path), pytest.raises(ConfigError, match=f"sources: got '{name}.*Permission denied"):
            list(documents_of(name))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("validation", 1.0),
        ("validation", -0.1),
        ("validation", float("nan")),
        ("shard_tokens", 1),
        ("format", "csv"),
        ("column", ""),
        ("template", "no column"),
        ("template", "{text.__class__}"),
        ("template", "{text"),
        ("min_chars", -1),
        ("max_chars", -1),
        ("exact_duplicates", "yes"),
        ("near_duplicates", 1.0),
        ("bad_input", "ignore"),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float | str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: got "):
        Recipe(**{name: value})  # type: ignore[arg-type]


# --- publication


def test_a_dataset_is_never_overwritten(texts: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    made = prepare([texts], tmp_path / "out", tokenizer, progress=False)
    with pytest.raises(ConfigError, match=r"out: got '.*/out'; allowed: .*a dataset is there"):
        prepare([texts], tmp_path / "out", tokenizer, Recipe(validation=0), progress=False)
    assert read_manifest(tmp_path / "out") == made


def test_a_run_that_is_tried_again_finds_what_it_has_published_and_no_other_does(
    texts: Path, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    out = tmp_path / "out"
    command = [str(texts), "-o", str(out), "--tokenizer", str(tmp_path / "tokenizer"), "--workers", "1"]
    monkeypatch.setenv("TERAGPT_RUN_ID", "run_1")
    assert main(command) == 0
    made = (out / "dataset.json").read_bytes()
    (out / LOCK).touch()  # as one that is killed before its last act leaves it
    assert main(command) == 0
    assert not (out / LOCK).exists()
    monkeypatch.setenv("TERAGPT_RUN_ID", "run_2")
    assert main(command) == 2
    monkeypatch.delenv("TERAGPT_RUN_ID")
    assert main(command) == 2
    assert (out / "dataset.json").read_bytes() == made
    assert read_manifest(out).run == "run_1"


def test_a_pod_says_that_it_has_begun_before_it_reads_anything(tmp_path: Path) -> None:
    given = ["nowhere.txt", "-o", str(tmp_path / "out"), "--tokenizer=x"]
    command = [sys.executable, "-X", "importtime", "-m", "teragpt.prepare", *given]
    said = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "TERAGPT_RUN_ID": "run_1"}
    )
    assert said.returncode == 2
    lines = [line for line in said.stderr.splitlines() if line == "prepare: begun" or line.endswith(" numpy")]
    assert (lines[0], len(lines)) == ("prepare: begun", 2)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_something_else_at_the_place_is_refused(texts: Path, tmp_path: Path, tokenizer: Tokenizer, kind: str) -> None:
    kept = tmp_path / "out" / "kept.txt" if kind == "folder" else tmp_path / "out"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("kept", "utf-8")
    with pytest.raises(ConfigError, match="something else is there"):
        prepare([texts], tmp_path / "out", tokenizer, progress=False)
    assert kept.read_text("utf-8") == "kept"


def test_an_empty_folder_is_filled(texts: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "out").mkdir()
    prepare([texts], tmp_path / "out", tokenizer, progress=False)
    assert (tmp_path / "out" / "dataset.json").is_file()


def test_two_preparations_of_one_folder_do_not_mix(texts: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    with published(tmp_path / "out") as draft, pytest.raises(ConfigError, match="no other process is preparing"):
        prepare([texts], draft.with_name("out"), tokenizer, progress=False)
    assert (tmp_path / "out").is_dir()


def test_a_place_that_cannot_be_written_is_named(texts: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"out: got '.*file/out'; allowed: a folder that can be written.*Not a dir"):
        prepare([texts], tmp_path / "file" / "out", tokenizer, progress=False)


@contextmanager
def full_disk(most: int) -> Iterator[None]:
    """Let no file of this process grow beyond `most` bytes: writing fails from there on, as it does under a quota."""
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)


def test_a_full_disk_is_one_line_and_leaves_nothing(
    texts: Path, tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    before = sorted(tmp_path.iterdir())
    with full_disk(4096):
        code = main([str(texts), "-o", str(tmp_path / "out"), "--tokenizer", str(tmp_path / "tokenizer")])
    assert code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: out: got '{tmp_path / 'out'}'; allowed: a folder that can be written, with room")
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_reports_what_it_wrote(texts: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    given = [str(texts), "-o", str(tmp_path / "out"), "--tokenizer", str(tmp_path / "tokenizer"), "--validation", "0.2"]
    command = [sys.executable, "-m", "teragpt.prepare", *given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    train = read_manifest(tmp_path / "out").splits["train"]
    assert f"train: {train.documents} documents, {train.tokens:,} tokens, 1 shard\n" in done.stdout


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main([str(tmp_path / "missing"), "-o", str(tmp_path / "out"), "--tokenizer", str(tmp_path / "none.json")]) == 2
    )
    assert capsys.readouterr().err.startswith("error: tokenizer: got ")


SMALL_BLOCKS = """
import sys
from teragpt.prepare import sources
from teragpt.prepare.__main__ import main
sources.BLOCK_BYTES = 2000
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_preparation_goes_on_with_what_is_whole_and_makes_the_same(
    tmp_path: Path, texts: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    (texts / "much.txt").write_text("def value(): return Straße\n" * 40_000, "utf-8")
    out, draft = tmp_path / "out", tmp_path / ".out.partial"
    given = [str(texts), "-o", str(out), "--tokenizer", str(tmp_path / "tokenizer")]
    command = [sys.executable, "-c", SMALL_BLOCKS, *given]
    for parts in (1, 5):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 60
            while len(list(draft.glob("parts/*.npz"))) < parts:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        assert not out.exists()
    kept = {path: path.stat().st_mtime_ns for path in draft.glob("parts/*.npz")}
    next(iter(kept)).write_bytes(b"torn")  # as a power cut may leave it
    monkeypatch.setattr(sources, "BLOCK_BYTES", 2000)
    made: list[Path] = []
    write_part = Part.write

    def written(part: Part, **arrays: Any) -> None:
        made.append(part.path)
        write_part(part, **arrays)

    monkeypatch.setattr(Part, "write", written)
    again = prepare([texts], out, tokenizer, progress=False)
    assert next(iter(kept)) in made
    assert not set(made) & set(list(kept)[1:])
    verify(out, again)
    assert not draft.exists()
    assert prepare([texts], tmp_path / "whole", tokenizer, progress=False).fingerprint == again.fingerprint


def test_another_recipe_begins_anew(texts: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    part = tmp_path / ".out.partial" / "parts" / "000000-000000.npz"
    with suppress(KeyboardInterrupt), publication(tmp_path / "out", tokenizer, Recipe()):
        part.write_bytes(b"whatever")
        raise KeyboardInterrupt
    assert part.exists()
    with suppress(KeyboardInterrupt), publication(tmp_path / "out", tokenizer, Recipe()):
        raise KeyboardInterrupt
    assert part.exists()
    made = prepare([texts], tmp_path / "out", tokenizer, Recipe(validation=0), progress=False)
    assert made.splits["train"].documents == 60


def test_a_held_lock_refuses_and_a_freed_one_does_not(tmp_path: Path) -> None:
    with locked(tmp_path / LOCK), pytest.raises(BlockingIOError), locked(tmp_path / LOCK, wait=False):
        pass
    with locked(tmp_path / LOCK, wait=False):
        pass


def test_json_lines_may_begin_with_a_byte_order_mark(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for name, marked in (("plain", "utf-8"), ("marked", "utf-8-sig")):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n', marked)
        prepare([tmp_path / f"{name}.jsonl"], tmp_path / name, tokenizer, Recipe(validation=0), progress=False)
    assert [list(one) for one in stored(tmp_path / "marked", "train")] == [
        list(one) for one in stored(tmp_path / "plain", "train")
    ]
