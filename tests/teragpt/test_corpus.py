from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import tokenize
from pathlib import Path

import numpy as np
import pytest

from teragpt.config import EMBEDDED_VOCABULARY, ConfigError
from teragpt.data import ShardedDataset, open_dataset
from teragpt.datasets import embedded as naming
from teragpt.datasets.embedded import dataset_info, key, library
from teragpt.datasets.files import read_manifest
from teragpt.datasets.shards import verify
from teragpt.prepare import corpus
from teragpt.prepare.corpus import embedded_dataset, read_library, read_parts
from teragpt.prepare.documents import Document
from teragpt.tokenization.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def embedded(cache: Path) -> Path:
    """The embedded dataset, made by three processes that all want it, after a fourth was killed at it."""
    command = [sys.executable, "-c", "from teragpt.prepare.corpus import embedded_dataset; print(embedded_dataset())"]
    environ = {**os.environ, "TERAGPT_CACHE": str(cache)}
    with subprocess.Popen(command, env=environ, start_new_session=True) as first:
        deadline = time.monotonic() + 60
        while not list(cache.glob(".embedded-*.partial/train-*.bin")):
            assert time.monotonic() < deadline
            assert first.poll() is None
            time.sleep(0.002)
        os.killpg(first.pid, signal.SIGKILL)
    assert not list(cache.glob("embedded-*/dataset.json"))
    others = [subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {other.communicate(timeout=120)[0].strip() for other in others}
    assert [other.returncode for other in others] == [0, 0, 0]
    (folder,) = said
    return Path(folder)


def test_processes_that_ask_at_once_get_one_whole_dataset_though_one_was_killed(embedded: Path, cache: Path) -> None:
    assert embedded == cache / f"embedded-{key()}" == embedded_dataset(cache)
    assert not list(cache.glob(".*"))
    verify(embedded, read_manifest(embedded))


def test_the_embedded_dataset_is_the_default_one(embedded: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERAGPT_CACHE", str(cache))
    dataset = open_dataset("")
    assert isinstance(dataset, ShardedDataset)
    assert dataset.folder == embedded
    assert dataset.vocabulary == EMBEDDED_VOCABULARY
    assert dataset.batch(0, 2, 256, 0, 0, 1)[0].shape == (2, 256)
    assert dataset.validation(64, 256, 0, 1)[0].shape == (64, 256)


def test_it_is_enough_real_text_for_a_tiny_model(embedded: Path) -> None:
    manifest = read_manifest(embedded)
    train, held_out = manifest.splits["train"], manifest.splits["validation"]
    assert train.tokens > 500_000
    assert 0.01 < held_out.tokens / train.tokens < 0.15
    assert 5 < manifest.unigram_entropy < np.log(EMBEDDED_VOCABULARY)


def test_tokens_are_pieces_of_python(embedded: Path) -> None:
    tokenizer = Tokenizer(str(embedded / "tokenizer"))
    text = "def name(self):\n    if self.name is None:\n        return __name__\n"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode([one]) for one in ids[:6]] == ["def", " name", "(", "self", ")", ":"]
    assert {"\n    ", "\n        ", " None", "return"} <= {tokenizer.decode([one]) for one in ids}


def test_its_documents_are_whole_definitions() -> None:
    modules = [library() / name for name in ("ast.py", "inspect.py", "shutil.py")]
    parts = [part for path in modules for part in read_parts(path) if part.startswith("def ")]
    assert len(parts) > 50
    for part in parts:
        assert list(tokenize.generate_tokens(io.StringIO(part).readline))


def test_a_module_is_cut_before_and_after_its_definitions(tmp_path: Path) -> None:
    parts = ["import os\n\f\nX = '\\d'\n", "@decorated\ndef one():\n    pass\n", "class Two:\n    pass\n", "Y = 2\n"]
    (tmp_path / "module.py").write_text("\n\n".join(parts), "utf-8")
    assert list(read_parts(tmp_path / "module.py")) == parts


def test_what_is_no_utf8_or_no_python_or_a_table_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes("x = 'ß'\n".encode("latin-1"))
    (tmp_path / "two.py").write_text("print 'two'\n", "utf-8")
    (tmp_path / "zero.py").write_text("x = 1\0\n", "utf-8")
    (tmp_path / "table.py").write_text("TABLE = [\n" + "    0,\n" * 10_000 + "]\n\n\ndef used():\n    pass\n", "utf-8")
    (tmp_path / "empty.py").touch()
    (tmp_path / "_sysconfigdata_x.py").write_text("x = 1\n", "utf-8")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "tested.py").write_text("x = 1\n", "utf-8")
    assert list(read_library(tmp_path)) == [Document(("def used():\n    pass\n",))]


def test_the_name_in_the_cache_follows_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(naming, "LONGEST_PART", 1)
    assert key() != before


def test_a_python_without_its_source_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "library", lambda: tmp_path)
    with pytest.raises(
        ConfigError, match=f"data: got '{tmp_path}'; allowed: a Python with its standard library's source"
    ):
        embedded_dataset(tmp_path / "cache")


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=f"TERAGPT_CACHE: got '{tmp_path}/file'; allowed: a folder that can be written"
    ):
        embedded_dataset(tmp_path / "file")


def test_a_planner_learns_of_a_dataset_without_torch(embedded: Path, cache: Path) -> None:
    code = (
        "import sys; from teragpt.datasets.embedded import dataset_info\n"
        "told = dataset_info(sys.argv[1])\n"
        "print(told['tokens'], dataset_info('') == told, {'torch', 'numpy', 'tokenizers'} & {*sys.modules})"
    )
    environ = {**os.environ, "TERAGPT_CACHE": str(cache)}
    command = [sys.executable, "-c", code, str(embedded)]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(read_manifest(embedded).splits["train"].tokens), "True", "set()"]


def test_before_it_is_made_only_its_vocabulary_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TERAGPT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert dataset_info("") == {"vocabulary": EMBEDDED_VOCABULARY}
