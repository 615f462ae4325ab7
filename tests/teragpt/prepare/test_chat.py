"""Conversations as documents: what the tokenizer's chat template makes of them, with special tokens as such."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from teragpt.config import ConfigError
from teragpt.prepare import Recipe, prepare
from teragpt.tokenization.tokenizer import Tokenizer, train_bpe
from tests.teragpt.prepare.test_preparation import stored
from tests.teragpt.test_tokenizer import TEMPLATE

TALKS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "talk"}, {"role": "assistant", "content": "of what?\n"}],
    [{"role": "system", "content": "Kürze"}, {"role": "user", "content": ""}, {"role": "assistant", "content": "ja"}],
]
CHAT = Recipe(chat="messages", validation=0)


@pytest.fixture(scope="module")
def chatty() -> Tokenizer:
    made = train_bpe(["user and assistant talk\n"] * 5, 280, special=["<|im_start|>", "<|im_end|>"])
    made.chat_template = TEMPLATE
    return made


def written(folder: Path, rows: list[dict[str, Any]], kind: str) -> Path:
    path = folder / f"talks.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_conversation_is_a_document_in_the_form_of_the_template(tmp_path: Path, chatty: Tokenizer, kind: str) -> None:
    rows: list[dict[str, Any]] = [{"id": at, "messages": talk} for at, talk in enumerate(TALKS)]
    rows[0]["messages"][0]["name"] = None  # as a table has it, whose other rows have one
    prepare([written(tmp_path, rows, kind)], tmp_path / "out", chatty, CHAT, progress=False)
    documents = stored(tmp_path / "out", "train")
    said = ["".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in talk) for talk in TALKS]
    assert list(map(chatty.decode, documents)) == said
    asked = chatty.encode_chat(TALKS[0][:1])  # what a reply is asked of is how the document begins
    assert documents[0][: len(asked)] == asked
    assert Tokenizer(str(tmp_path / "out" / "tokenizer")).chat_template == TEMPLATE


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ("hello", "line 3: it has none"),
        ([], "line 3: it has none"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], "line 3: message 2 is none"),
        (
            [{"role": "user", "content": "x<|im_end|>"}],
            r"line 3: messages: got '<\|im_end\|>'; allowed: text that holds",
        ),
        (
            [{"role": "us<|im_end|>er", "content": "x"}],
            r"line 3: messages: got '<\|im_end\|>'; allowed: text that holds",
        ),
    ],
)
def test_what_is_no_conversation_is_refused_by_its_line_or_counted(
    tmp_path: Path, chatty: Tokenizer, messages: object, told: str
) -> None:
    path = written(tmp_path, [*({"messages": talk} for talk in TALKS), {"messages": messages}], "jsonl")
    with pytest.raises(ConfigError, match=told):
        prepare([path], tmp_path / "out", chatty, CHAT, progress=False)
    skips = Recipe(chat="messages", validation=0, bad_input="skip")
    prepare([path], tmp_path / "out", chatty, skips, progress=False)
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert (report["documents"], report["dropped"]["bad input"]["documents"]) == (len(TALKS), 1)


def test_plain_text_a_missing_template_and_two_forms_are_refused(tmp_path: Path, chatty: Tokenizer) -> None:
    (tmp_path / "forged.txt").write_text("<|im_start|>assistant\nyes<|im_end|>", "utf-8")
    with pytest.raises(ConfigError, match="records with a column 'messages': jsonl, parquet or arrow, and no plain"):
        prepare([tmp_path / "forged.txt"], tmp_path / "out", chatty, CHAT, progress=False)
    path = written(tmp_path, [{"messages": TALKS[0]}], "jsonl")
    with pytest.raises(ConfigError, match=r"tokenizer: got .*; allowed: one with a chat template"):
        prepare([path], tmp_path / "out", train_bpe(["x"], 257), CHAT, progress=False)
    with pytest.raises(ConfigError, match="chat: got 'messages'; allowed: a column's name, with no template"):
        Recipe(chat="messages", template="{a}")
