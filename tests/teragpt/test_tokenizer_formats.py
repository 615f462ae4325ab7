from __future__ import annotations

import base64
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from teragpt.tokenization.formats import ENCODINGS, Encoding, from_sentencepiece, from_tiktoken
from teragpt.tokenization.pieces import CL100K, O200K
from teragpt.tokenization.tokenizer import Tokenizer, TokenizerError

WORDS = ("cat", "dog", "mat", "house", "tree", "stone")
TEXT = [f"The {word} isn't 12345 {word.upper()}s,  or \u00dcn\u00efc\u00f6de!\n" for word in WORDS]

PARTS = st.sampled_from([*" \n\t", "cat", "HOUSEs", "isn't", "12345", "\u4e2d"])
TEXTS = st.one_of(st.text(max_size=40), st.lists(PARTS).map("".join))
LOSSLESS = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}


@cache
def ranks() -> dict[bytes, int]:
    """Bytes, and what a BPE would make of the text: each word's beginnings."""
    tokens = [bytes([byte]) for byte in range(256)]
    for word in "".join(TEXT).encode().split(b" "):
        ends = range(1, len(word) + 1)
        tokens += [word[:end] for end in ends] + [b" " + word[:end] for end in ends]
    return {token: rank for rank, token in enumerate(dict.fromkeys(tokens))}


def lines(said: dict[bytes, int]) -> bytes:
    return b"".join(base64.b64encode(token) + f" {rank}\n".encode() for token, rank in said.items())


@cache
def model(kind: str, **how: Any) -> bytes:
    """A SentencePiece model of the text."""
    file = io.BytesIO()
    more = {"model_type": kind, "vocab_size": 400, "hard_vocab_limit": False, "minloglevel": 2, **how}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXT * 3), model_writer=file, **more)
    return file.getvalue()


@pytest.mark.parametrize("pieces", [CL100K, O200K])
@settings(deadline=None, max_examples=20)
@given(text=TEXTS)
def test_a_tiktoken_files_tokens_are_tiktokens(pieces: str, text: str) -> None:
    theirs = tiktoken.Encoding("made", pat_str=pieces, mergeable_ranks=ranks(), special_tokens={})
    ours = from_tiktoken(lines(ranks()), Encoding(len(ranks()), pieces, len(ranks()) + 5))
    ids = ours.encode(text).ids
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == text


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@settings(deadline=None, max_examples=20)
@given(text=TEXTS.filter(lambda text: "\0" not in text))
def test_a_sentencepiece_models_tokens_are_sentencepieces(kind: str, text: str) -> None:
    content = model(kind, **LOSSLESS)
    theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=content), from_sentencepiece(content)
    ids = ours.encode(text).ids
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == text


def test_characters_and_spaces_are_normalised_as_the_model_says() -> None:
    content = model("unigram", byte_fallback=True)
    theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=content), from_sentencepiece(content)
    for text in ("  two  spaces ", "\ufb01ne \uff23\uff41t", "tab\tand\nline"):
        assert (ids := ours.encode(text).ids) == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("name", ["tokenizer.model", "mine.tiktoken"])
def test_a_file_its_folder_and_what_is_saved_of_it_are_one_tokenizer(tmp_path: Path, name: str) -> None:
    content = lines(ranks()) if name.endswith("tiktoken") else model("bpe", **LOSSLESS)
    (tmp_path / name).write_bytes(content)
    read = Tokenizer(str(tmp_path / name))
    read.save(tmp_path / "saved")
    assert read.decode(read.encode("The cat <|endoftext|></s>")) == "The cat <|endoftext|></s>"
    assert {Tokenizer(str(tmp_path / one)).fingerprint for one in ("", "saved")} == {read.fingerprint}
    assert read.end_token in {"</s>", "<|endoftext|>"}


def test_a_tiktoken_file_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(lines(ranks()))
    read = Tokenizer(str(tmp_path))
    assert (read.vocabulary, read.end) == (len(ranks()) + 1, len(ranks()))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("half.tiktoken", lines(ranks())[:-6], "line|rank"),
        ("short.tiktoken", lines(ranks())[: 7 * 100 + 10], "not every byte"),
        ("twice.tiktoken", lines({**ranks(), b"zzz": 7}), "two tokens have one rank"),
        ("words.tiktoken", b"IQ== 0\nnot base64\n", "line 2"),
        ("r50k_base.tiktoken", lines(ranks()), f"of {ENCODINGS['r50k_base'].ranks:,} tokens"),
        ("half.model", model("bpe", **LOSSLESS)[:-50], "not a whole one"),
        ("pieces.model", model("bpe", **LOSSLESS)[:2000], "not a whole one"),
        ("empty.model", b"", "not a whole one"),
        ("words.model", model("word", hard_vocab_limit=False), "only BPE and unigram"),
        ("else.bin", b"\x93NUMPY", "whole tokenizer.json"),
    ],
)
def test_a_file_that_is_not_whole_is_named_with_the_reason(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=said) as caught:
        Tokenizer(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)


def test_a_folder_that_transformers_configured_is_left_to_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}), "utf-8")
    with pytest.raises(TokenizerError, match=f"{tmp_path}'; allowed: a tokenizer.json"):
        Tokenizer(str(tmp_path))


@pytest.mark.parametrize("files", [[], ["config.json"]], ids=["empty", "of a model alone"])
def test_a_folder_without_a_tokenizer_is_said_to_have_none(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        (tmp_path / name).write_text("{}", "utf-8")
    with pytest.raises(TokenizerError, match=r"the hub's name of one \(transformers finds none there\)$"):
        Tokenizer(str(tmp_path))
