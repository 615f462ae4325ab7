from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import struct
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from teragpt.config import ConfigError
from teragpt.datasets.files import read_manifest
from teragpt.prepare import formats, prepare, sources
from teragpt.prepare.__main__ import main
from teragpt.prepare.documents import Dropped, Recipe, read_segments
from teragpt.prepare.duplicates import later
from teragpt.prepare.formats import ZstdFile
from teragpt.prepare.minhash import bands_for, found
from teragpt.prepare.sources import Source, blocks, find_sources, units
from teragpt.tokenization.tokenizer import Tokenizer, train_bpe

RECORDS = [{"title": f"Straße {number}", "text": f"漢字 number {number}\n" * (number + 1)} for number in range(30)]
TEXTS = [record["text"] for record in RECORDS]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe(TEXTS, 300).save(folder)
    return Tokenizer(str(folder))


def lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def read(*given: Path | str, dropped: Dropped | None = None, **recipe: Any) -> list[str]:
    """The texts that are found in sources."""
    made = Recipe(**recipe)
    segments = [
        segment
        for unit in units(find_sources(list(given), made.format))
        for block in blocks(unit, made)
        for segment in block.segments
    ]
    return ["".join(one.parts) for one in read_segments(segments, made, dropped or Dropped())]


def as_parquet(path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=7)


def as_arrow_file(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, pa.Table.from_pylist(RECORDS).schema) as writer:
        writer.write_table(pa.Table.from_pylist(RECORDS), max_chunksize=9)


def as_arrow_stream(path: Path) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, pa.Table.from_pylist(RECORDS).schema) as writer:
        writer.write_table(pa.Table.from_pylist(RECORDS))


WRITERS: dict[str, Callable[[Path], object]] = {
    "x.jsonl": lambda path: path.write_bytes(lines(RECORDS)),
    "x.ndjson.gz": lambda path: path.write_bytes(gzip.compress(lines(RECORDS))),
    "x.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(lines(RECORDS))),
    "x.jsonl.zst": lambda path: path.write_bytes(
        zstandard.compress(lines(RECORDS[:9])) + zstandard.compress(lines(RECORDS[9:]))
    ),
    "x.parquet": as_parquet,
    "x.arrow": as_arrow_file,
    "x.feather": as_arrow_stream,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS[name](tmp_path / name)
    assert read(tmp_path / name) == TEXTS
    monkeypatch.setattr(formats, "READ_BYTES", 64)  # so that blocks, lines and batches are cut everywhere
    monkeypatch.setattr(sources, "BLOCK_BYTES", 200)
    assert read(tmp_path / name) == TEXTS
    assert read(tmp_path / name, template="{title}: {text}") == [f"{one['title']}: {one['text']}" for one in RECORDS]


def test_text_may_be_compressed_and_a_format_may_be_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"some text"))
    (tmp_path / "b.json").write_bytes(lines(RECORDS))
    assert read(tmp_path / "a.txt.gz") == ["some text"]
    assert read(tmp_path / "b.json", format="jsonl") == TEXTS


def test_a_saved_hugging_face_dataset_is_its_tables(tmp_path: Path) -> None:
    as_arrow_stream(tmp_path / "data-00000-of-00001.arrow")
    for note in ("dataset_info.json", "state.json"):
        (tmp_path / note).write_text("{}", "utf-8")
    assert read(tmp_path) == TEXTS


def test_what_fsspec_opens_is_read_file_folder_and_pattern() -> None:
    store = fsspec.filesystem("memory")
    store.pipe({"/texts/a.txt": b"first", "/texts/below/b.txt": b"second", "/texts/.c.txt": b"hidden"})
    try:
        assert read("memory://texts") == ["first", "second"]
        assert read("memory://texts/a.txt") == ["first"]
        assert read("memory://texts/**/b.*") == ["second"]
        with pytest.raises(ConfigError, match="sources: got 'memory://nowhere'"):
            read("memory://nowhere")
        with pytest.raises(ConfigError, match="sources: got 'nothing://x'; allowed: a path, or a URL that fsspec"):
            read("nothing://x")
    finally:
        store.rm("/texts", recursive=True)


def test_standard_input_is_a_source(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    given = ["-", "--format", "jsonl", "-o", str(tmp_path / "out"), "--tokenizer", str(tmp_path / "tokenizer")]
    command = [sys.executable, "-m", "teragpt.prepare", *given, "--workers", "2"]
    done = subprocess.run(command, input=lines(RECORDS), capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert read_manifest(tmp_path / "out").splits["train"].documents == len(RECORDS)
    prepare([write(tmp_path / "x.jsonl", lines(RECORDS))], tmp_path / "same", tokenizer, progress=False)
    assert (tmp_path / "same" / "train-00000.bin").read_bytes() == (tmp_path / "out" / "train-00000.bin").read_bytes()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_small_sources_are_read_together_and_large_ones_alone() -> None:
    small, large, pipe = Source("s", 3 << 20, "text"), Source("l", 9 << 20, "text"), Source("p", None, "text")
    assert list(units([small, small, small, large, small, pipe, small])) == [
        [small, small], [small], [large], [small], [pipe], [small],
    ]  # fmt: skip


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=3000), st.integers(1, 500), st.integers(1, 3))
def test_a_zstd_file_reads_as_it_was_whatever_the_request(content: bytes, size: int, frames: int) -> None:
    file = ZstdFile(io.BytesIO(zstandard.compress(content) * frames), zstandard)  # type: ignore[arg-type]
    held = b"".join(iter(lambda: file.read(size), b""))
    assert held == content * frames


# --- bad input


BAD: dict[str, tuple[bytes, str, int]] = {  # a file's content, what is said of it, and the texts that are good
    "a.jsonl": (b'{"text": "good"}\n{"text": }\n', "a JSON object .* \\(line 2, column 10: Expecting", 1),
    "b.jsonl": (b'{"text": "good"}\n\n[1]\n', "line 3 is a list", 1),
    "c.jsonl": (b'{"body": "x", "id": 1}\n', "a column 'text' \\(line 1 has body, id", 0),
    "d.jsonl": (b'{"text": 5}\n', "text in column 'text' \\(line 1 has a int", 0),
    "e.jsonl": (b'{"text": "good"}\n{"text": "\xff"}', "line 2: byte 0xff", 1),
    "k.jsonl": (b'{"text": "good"}\n{"text": "\\ud83d!"}\n', r"line 2 has half a surrogate pair, \\ud83d", 1),
    "f.txt.gz": (gzip.compress(b"text" * 99)[:-9], "a readable text file \\(", 0),
    "g.txt.zst": (zstandard.compress(bytes(range(33, 127)) * 9)[:-9], "cut short", 0),
    "h.parquet": (b"PAR1 and then nothing", "a readable parquet file", 0),
    "i.txt": ("UTF-16".encode("utf-16"), "binary: a zero byte at offset 3", 0),
    "j.txt": ("Straße".encode("latin-1"), "byte 0xdf at offset 4", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_its_place_or_counted(tmp_path: Path, name: str) -> None:
    content, said, good = BAD[name]
    path = write(tmp_path / name, content)
    with pytest.raises(ConfigError, match=f"sources: got '{path}'; allowed: .*{said}"):
        read(path)
    dropped = Dropped()
    assert len(read(path, dropped=dropped, bad_input="skip")) == good
    assert dropped.reasons["bad input"]["documents"] == 1
    assert str(path) in dropped.reasons["bad input"]["examples"][0]


def test_a_table_without_the_column_is_refused_with_those_it_has(tmp_path: Path) -> None:
    as_parquet(tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=r"a table with one column 'body' \(it has title, text\)"):
        read(tmp_path / "x.parquet", column="body")
    dropped = Dropped()
    assert read(tmp_path / "x.parquet", column="body", bad_input="skip", dropped=dropped) == []
    assert dropped.reasons["bad input"]["documents"] == 1


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_with_two_columns_of_the_name_is_refused(tmp_path: Path, kind: str) -> None:
    table = pa.Table.from_arrays([pa.array(["one"]), pa.array(["other"])], names=["text", "text"])
    if kind == "parquet":
        parquet.write_table(table, tmp_path / "x.parquet")
    else:
        with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(ConfigError, match=r"a table with one column 'text' \(it has text, text\)"):
        read(tmp_path / f"x.{kind}")
    dropped = Dropped()
    assert read(tmp_path / f"x.{kind}", bad_input="skip", dropped=dropped) == []
    assert dropped.reasons["bad input"]["documents"] == 1


def test_a_row_that_is_no_utf_8_is_refused_by_its_number_or_counted(tmp_path: Path) -> None:
    words = [b"first", b"Stra\xdfe", b"third"]
    ends = [sum(map(len, words[:at])) for at in range(len(words) + 1)]
    buffers = [None, pa.py_buffer(struct.pack("<4i", *ends)), pa.py_buffer(b"".join(words))]
    parquet.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 3, buffers)}), tmp_path / "x.parquet")
    with pytest.raises(ConfigError, match=r"UTF-8 text \(row 2: byte 0xdf"):
        read(tmp_path / "x.parquet")
    dropped = Dropped()
    assert read(tmp_path / "x.parquet", bad_input="skip", dropped=dropped) == ["first", "third"]
    assert dropped.reasons["bad input"]["documents"] == 1


def test_a_pipe_in_a_folder_is_refused_and_one_by_itself_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "folder" / "pipe"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    for source in (pipe.parent, pipe.parent / "p*"):
        with pytest.raises(ConfigError, match=f"sources: got '{pipe}'; allowed: a file: a pipe, socket or device"):
            find_sources([source])
    writer = threading.Thread(target=pipe.write_bytes, args=(b"text",))
    writer.start()
    assert read(pipe) == ["text"]
    writer.join()


def test_a_parquet_file_cut_short_is_refused(tmp_path: Path) -> None:
    as_parquet(tmp_path / "x.parquet")
    write(tmp_path / "x.parquet", (tmp_path / "x.parquet").read_bytes()[:-20])
    with pytest.raises(ConfigError, match="a readable parquet file"):
        read(tmp_path / "x.parquet")


@pytest.mark.parametrize("end", [b"\n" + lines(RECORDS[:1]), b""])
def test_a_line_beyond_bounds_is_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes) -> None:
    monkeypatch.setattr(formats, "LINE_BYTES", 5000)
    monkeypatch.setattr(formats, "READ_BYTES", 1000)
    path = write(tmp_path / "x.jsonl", lines(RECORDS[:3]) + b'{"text": "' + b"x" * 20_000 + b'"}' + end)
    with pytest.raises(ConfigError, match=r"lines of at most 5,000 bytes \(line 4 is longer\)"):
        read(path)
    assert read(path, bad_input="skip") == TEXTS[:3] + (TEXTS[:1] if end else [])


def test_a_source_that_disappears_is_named(tmp_path: Path) -> None:
    found = find_sources([write(tmp_path / "x.txt", b"text")])
    (tmp_path / "x.txt").unlink()
    [block] = blocks(found, Recipe())
    with pytest.raises(ConfigError, match=r"x.txt'; allowed: a readable text file \(No such file"):
        list(read_segments(block.segments, Recipe(), Dropped()))


def test_a_file_that_fails_late_keeps_what_is_done(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 200)
    monkeypatch.setattr(formats, "READ_BYTES", 100)
    path = write(tmp_path / "x.jsonl", lines(RECORDS) + b"{\n")
    with pytest.raises(ConfigError, match="line 31"):
        prepare([path], tmp_path / "out", tokenizer, workers=1, progress=False)
    assert f"kept in {tmp_path / '.out.partial'}: the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    write(path, lines(RECORDS))
    made = prepare([path], tmp_path / "out", tokenizer, workers=1, progress=False)
    assert made.splits["train"].documents == len(RECORDS)


def test_where_no_document_is_left_it_says_why(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "x.jsonl", lines(RECORDS))
    with pytest.raises(ConfigError, match="30 shorter than min_chars"):
        prepare([path], tmp_path / "out", tokenizer, Recipe(min_chars=10**6), progress=False)
    assert [one.name for one in tmp_path.iterdir()] == ["x.jsonl"]


# --- filters, duplicates, report


def test_documents_are_dropped_by_length_and_the_report_says_so(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "x.jsonl", lines(RECORDS))
    made = prepare([path], tmp_path / "out", tokenizer, Recipe(min_chars=30, max_chars=200), progress=False)
    kept = [text for text in TEXTS if 30 <= len(text) <= 200]
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert made.splits["train"].documents == report["documents"] == len(kept)
    assert report["bytes"] == sum(len(text.encode()) for text in kept)
    assert report["bytes_per_token"] == pytest.approx(report["bytes"] / report["tokens"], abs=1e-3)
    assert sum(one["documents"] for one in report["lengths"]) == len(kept)
    gone = {reason: one["documents"] for reason, one in report["dropped"].items()}
    assert gone == {
        "shorter than min_chars": sum(len(text) < 30 for text in TEXTS),
        "longer than max_chars": sum(len(text) > 200 for text in TEXTS),
    }
    assert ET.parse(tmp_path / "out" / "report.svg").getroot().tag.endswith("svg")  # noqa: S314 - our own file


def test_of_equal_documents_the_first_is_kept(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "x.jsonl", lines([*RECORDS, *RECORDS[5:9], *RECORDS]))
    alone = write(tmp_path / "alone.jsonl", lines(RECORDS))
    made = prepare([path], tmp_path / "out", tokenizer, Recipe(exact_duplicates="drop"), progress=False)
    assert made.fingerprint == prepare([alone], tmp_path / "alone", tokenizer, progress=False).fingerprint
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["dropped"]["exact duplicate"]["documents"] == len(RECORDS) + 4


def test_documents_like_an_earlier_one_are_dropped_and_others_are_not(tmp_path: Path, tokenizer: Tokenizer) -> None:
    words = np.random.default_rng(0).integers(0, 5000, (20, 400))
    different = [" ".join(f"w{word}" for word in row) for row in words]
    alike = [f"{text} and a word more" for text in different[:7]]
    path = write(tmp_path / "x.jsonl", lines([{"text": text} for text in (*different, *alike)]))
    made = prepare([path], tmp_path / "out", tokenizer, Recipe(near_duplicates=0.8, validation=0), progress=False)
    assert made.splits["train"].documents == len(different)
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["dropped"]["near duplicate"]["documents"] == len(alike)


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_find_half_of_the_pairs_at_the_similarity_and_few_far_below(similarity: float) -> None:
    bands, rows = bands_for(similarity)
    assert bands * rows <= 128
    assert found(similarity, bands, rows) >= 0.5
    assert found(similarity - 0.3, bands, rows) <= 0.12


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1))
def test_what_comes_later_is_found_whatever_the_order(pairs: list[tuple[int, int]]) -> None:
    expected = [place for place, pair in enumerate(pairs) if pair in pairs[:place]]
    assert later(np.array(pairs, np.uint64), np.arange(len(pairs))).tolist() == expected


def test_any_number_of_workers_makes_the_same_bytes(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "BLOCK_BYTES", 500)
    monkeypatch.setattr(formats, "READ_BYTES", 100)
    monkeypatch.setattr("teragpt.prepare.preparation.BLOCK_BYTES", 500)
    path = write(tmp_path / "x.jsonl", lines(RECORDS))
    recipe = Recipe(exact_duplicates="drop", near_duplicates=0.9, validation=0.2)
    for count in (1, 3):
        prepare([path, path], tmp_path / str(count), tokenizer, recipe, workers=count, progress=False)
    one, three = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (tmp_path / "1", tmp_path / "3")
    )
    assert one == three


def test_the_command_takes_every_choice(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    path = write(tmp_path / "x.jsonl", lines(RECORDS) + b"{\n")
    given = [str(path), "-o", str(tmp_path / "out"), "--tokenizer", str(tmp_path / "tokenizer"), "--min-chars", "20"]
    assert main([*given, "--template", "{title} {text}", "--bad-input", "skip"]) == 0
    said = capsys.readouterr().out
    assert "dropped: 1, 1 bytes: bad input" in said
    assert "line 31" in said
    assert "bytes a token" in said
