from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane.cli import main
from teragpt.config import ConfigError
from teragpt.prepare.documents import Recipe
from teragpt.prepare.tokenizer_training import inspect, train_tokenizer
from teragpt.tokenization.tokenizer import Tokenizer

TEXT = "the cat sat on the mat, number 12345; don't say naïve\n\n  again "


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT * 40, "utf-8")
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": f"{TEXT} {n}"}) + "\n" for n in range(30)), "utf-8")
    return folder


def test_a_trained_tokenizer_is_the_same_every_time_and_gives_any_text_back(texts: Path, tmp_path: Path) -> None:
    one, two = (train_tokenizer([texts], tmp_path / name, 300, Recipe(), ["<|user|>"]) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint == Tokenizer(str(tmp_path / "one")).fingerprint
    assert one.vocabulary == 300
    assert one.decode(one.encode(TEXT + "漢字<|user|>")) == TEXT + "漢字<|user|>"
    assert len(one.encode("<|user|>")) > 1  # what a text says is text
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


def test_inspecting_tells_bytes_a_token_by_kind_and_what_is_unused(texts: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer([texts], tmp_path / "made", 300, Recipe())
    said = list(inspect(tokenizer, [texts], Recipe()).lines())
    assert said[0].startswith("300 entries, separator <|end|> (")
    assert said[1] == f"fingerprint {tokenizer.fingerprint}"
    size, tokens = len((TEXT * 40).encode()), len(tokenizer.encode(TEXT * 40))
    assert said[3] == f".txt: {size:,} bytes, {tokens:,} tokens, {size / tokens:.2f} bytes a token"
    assert said[2].startswith(".jsonl: ")
    read = [TEXT * 40, *(f"{TEXT} {number}" for number in range(30))]
    used = {token for text in read for token in tokenizer.encode(text)}
    assert said[4].startswith(f"unused: {300 - 1 - len(used)} entries (")


@pytest.mark.parametrize(
    ("vocabulary", "special", "said"),
    [
        (256, [], "vocabulary: got 256; allowed: at least 257"),
        (300, ["<|end|>"], "special: got"),
        (300, [""], "special"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_leaves_nothing(
    texts: Path, tmp_path: Path, vocabulary: int, special: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        train_tokenizer([texts], tmp_path / "made", vocabulary, Recipe(), special)
    assert [path.name for path in tmp_path.iterdir()] == ["texts"]


def test_the_commands_train_and_inspect(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "made")
    assert main(["tokenizer", "train", str(texts), "-o", out, "--vocabulary", "280", "--special", "<|user|>"]) == 0
    assert main(["tokenizer", "inspect", out, str(texts)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("280 entries, fingerprint ")
    assert "bytes a token" in said
    assert main(["tokenizer", "train", str(texts), "-o", out, "--vocabulary", "280"]) == 2
    assert capsys.readouterr().err.startswith("error: out: got ")
