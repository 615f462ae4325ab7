"""Datasets by the name that the Hugging Face hub knows them by, from a hub of this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from teragpt.config import ConfigError
from teragpt.data import open_dataset
from teragpt.prepare import Recipe, prepare
from teragpt.prepare.hub import chosen, hub_files, is_text, readable
from teragpt.prepare.sources import is_name
from teragpt.tokenization.tokenizer import Tokenizer, train_bpe

TEXT = "def value():\n    return one\n" * 200
RECIPE = Recipe(validation=0)
REVISION = "0123456789abcdef0123456789abcdef01234567"
FILES = {"plain/train-0.jsonl": 3, "plain/test-0.jsonl": 2, "other/train-0.jsonl": 1}  # documents of each
CARD: list[dict[str, Any]] = [
    {"config_name": "plain", "data_files": [{"split": one, "path": f"plain/{one}-*"} for one in ("train", "test")]},
    {"config_name": "other", "data_files": "other/*.jsonl"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe([TEXT], 300).save(folder)
    return folder


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as tells of one dataset and serves its files."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply([entry(name) for name in FILES])

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        found = [name for name in FILES if path.endswith(f"/resolve/{REVISION}/{name}")]
        if found:
            self.send(content(found[0]))
        elif path in {
            f"/api/datasets/{name}{at}" for name in ("prose", "us/prose") for at in ("", f"/revision/{REVISION}")
        }:
            siblings = [{"rfilename": name, "size": len(content(name))} for name in (*FILES, "README.md")]
            self.reply({"id": "us/prose", "sha": REVISION, "siblings": siblings, "cardData": {"configs": CARD}})
        elif path.startswith(f"/api/datasets/us/prose/tree/{REVISION}"):
            self.reply([entry(name) for name in FILES])
        else:
            self.send(b"{}", 404)

    def reply(self, value: object) -> None:
        self.send(json.dumps(value).encode())

    def send(self, body: bytes, code: int = 200) -> None:
        first, _, last = self.headers.get("Range", "bytes=0-").partition("=")[2].partition("-")
        part = body[int(first) : int(last) + 1 if last else None]
        self.send_response(206 if code == 200 and "Range" in self.headers else code)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", f'"{len(body):040d}"')
        self.send_header("X-Repo-Commit", REVISION)
        if code == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""


def content(name: str) -> bytes:
    """The lines of a file, each of its documents another."""
    lines = (json.dumps({"text": f"# {name} {at}\n{TEXT}"}) for at in range(FILES.get(name, 0)))
    return "".join(f"{line}\n" for line in lines).encode()


def entry(name: str) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content(name)), "oid": "0" * 40}


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def ask(endpoint: str, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Prepare in a process of its own, whose hub and cache are given."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environ = {**given, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "teragpt.prepare", *words, "--validation", "0", "-o", "made"]
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=120, check=False, cwd=home)


@pytest.mark.unmeasured
@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["prose", "--config", "plain"], "plain/train-0.jsonl"),
        (["us/prose", "--config", "plain", "--split", "test"], "plain/test-0.jsonl"),
    ],
)
def test_a_name_stands_for_the_files_of_its_configuration_and_split(
    hub: str, tmp_path: Path, tokenizer: Path, words: list[str], file: str
) -> None:
    done = ask(hub, tmp_path, *words, "--tokenizer", str(tokenizer))
    assert done.returncode == 0, done.stderr
    (tmp_path / "copy.jsonl").write_bytes(content(file))
    prepare([tmp_path / "copy.jsonl"], tmp_path / "same", Tokenizer(str(tokenizer)), RECIPE, progress=False)
    assert open_dataset(str(tmp_path / "made")).fingerprint == open_dataset(str(tmp_path / "same")).fingerprint


@pytest.mark.unmeasured
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["us/prose"], "config: got nothing; allowed: one of plain, other, as us/prose has them"),
        (["prose", "--config", "third"], "config: got 'third'; allowed: one of plain, other"),
        (["prose", "--config", "plain", "--split", "dev"], "split: got 'dev'; allowed: one of train, test"),
        (["us/verse"], "sources: got 'us/verse'; allowed: a text file, a folder or a glob pattern (no such file), or"),
    ],
)
def test_a_choice_that_a_dataset_has_not_is_refused_with_those_that_it_has(
    hub: str, tmp_path: Path, tokenizer: Path, words: list[str], told: str
) -> None:
    done = ask(hub, tmp_path, *words, "--tokenizer", str(tokenizer))
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "made").exists()


@pytest.mark.unmeasured
def test_no_hub_within_reach_says_what_was_looked_for_where_and_what_would_do_here(
    tmp_path: Path, tokenizer: Path
) -> None:
    with socket.socket() as unheard:  # bound, but not listening: connections are refused at once
        unheard.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        done = ask(endpoint, tmp_path, "wikitext", "--tokenizer", str(tokenizer))
    assert done.returncode == 2
    for said in ("sources: got 'wikitext'", "no such file", endpoint, "refused", "a folder that holds a copy"):
        assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("wikitext", True),
        ("HuggingFaceFW/fineweb-edu", True),
        ("corpus.jsonl", False),
        ("texts/more/deep", False),
        ("./wikitext", False),
        ("/wikitext", False),
        ("tests", False),
        ("*.txt", False),
        ("-", False),
    ],
)
def test_what_is_a_name_at_the_hub(name: str, *, is_one: bool) -> None:
    assert is_name(name) == is_one


def test_files_that_are_no_text_are_passed_over() -> None:
    text = ["a.parquet", "b.JSONL.gz", "c.txt.zst", "license_texts.jsonl", "en/notes.md", "f.csv.gz", "g.json", "h.zip"]
    about = ["README.md", "en/readme_zh.md", "LICENSE", "License.txt", "requirements.txt", "dataset_infos.json"]
    assert [one for one in (*text, *about, "d.py", "e.png") if is_text(one)] == text
    assert [one for one in text if readable(one)] == text[:5]


@pytest.mark.parametrize(
    ("files", "configs", "told"),
    [
        (["data.csv", "LICENSE.txt"], [], r"\(not data.csv\); try .*hf://datasets/us/it@refs/convert/parquet/CONFIG"),
        (["data.csv", "more.txt"], [], r"\(not data.csv\)"),
        (["more.txt"], [{"config_name": "one", "data_files": "data.csv"}], r"\(none is there\)"),
        (["LICENSE.txt", "code.py"], [], r"\(none is there\)"),
        (["a.txt"], [{"config_name": "one", "data_files": "a**"}], r"card is .*\(data_files: Invalid pattern"),
        (["a.txt"], [{"config_name": "one", "data_files": [{"path": "a.txt"}]}], r"card is .*data_files has {'path': "),
        (
            ["a.txt"],
            [{"config_name": "one", "data_files": [{"split": "train"}]}],
            r"card is .*data_files has {'split': ",
        ),
        (
            ["a.txt"],
            [{"config_name": "one", "data_files": ["a.txt", 5]}],
            "card is .*data_files has 5, where a pattern",
        ),
        (["a.txt"], {"config_name": "one"}, "card is .*configs is no list"),
        (["a.txt"], [{"config_name": 2020, "data_dir": 2020}], r"\(none is there\)"),
    ],
)
def test_a_dataset_that_is_not_read_is_refused_whole(
    monkeypatch: pytest.MonkeyPatch, files: list[str], configs: object, told: str
) -> None:
    siblings = [SimpleNamespace(rfilename=name, size=1) for name in files]
    about = SimpleNamespace(id="us/it", sha=REVISION, siblings=siblings, card_data={"configs": configs})
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *_, **__: about)
    with pytest.raises(ConfigError, match=f"sources: got 'us/it'; allowed: a dataset .*{told}"):
        hub_files("us/it", "", "")


@pytest.mark.parametrize(
    ("files", "config", "split", "found"),
    [
        (["a.jsonl", "b.jsonl"], "", "", ["a.jsonl", "b.jsonl"]),
        (["train.jsonl", "test.jsonl"], "", "", ["train.jsonl"]),
        (["data/train-0.parquet", "data/test-0.parquet"], "", "test", ["data/test-0.parquet"]),
        (["en/train/0.jsonl", "de/train/0.jsonl"], "de", "", ["de/train/0.jsonl"]),
        (["test.jsonl"], "", "", "split: got nothing; allowed: one of test"),
        (["a.jsonl"], "", "dev", "split: got 'dev'; allowed: one of none"),
        (["en/0.jsonl"], "fr", "", "config: got 'fr'; allowed: one of en, the folders of us/it"),
    ],
)
def test_without_a_card_names_tell(files: list[str], config: str, split: str, found: list[str] | str) -> None:
    if isinstance(found, list):
        assert chosen(files, [], "us/it", config, split) == found
        return
    with pytest.raises(ConfigError, match=found):
        chosen(files, [], "us/it", config, split)


@pytest.mark.parametrize(
    ("about", "found"),
    [
        ({"config_name": "default", "data_dir": "b"}, ["b/train.jsonl"]),
        ({"config_name": "only", "data_files": ["a/*", "b/*"]}, ["a/train.jsonl", "b/train.jsonl"]),
        ({"config_name": "only", "data_files": [{"split": "train", "path": ["a/**"]}]}, ["a/train.jsonl"]),
        ({"config_name": "only", "data_files": "*.jsonl"}, ["top.jsonl"]),
        ({"config_name": "only", "data_files": "**/t*.jsonl"}, ["a/train.jsonl", "b/train.jsonl", "top.jsonl"]),
    ],
)
def test_a_card_says_which_files_are_meant(about: dict[str, Any], found: list[str]) -> None:
    assert chosen(["a/train.jsonl", "b/train.jsonl", "top.jsonl"], [about], "us/it", "", "") == found


def test_a_choice_without_a_name_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(ConfigError, match="split: got 'test'; allowed: with a dataset's name at the hub"):
        prepare([tmp_path / "text.txt"], tmp_path / "made", Tokenizer(str(tokenizer)), split="test")
