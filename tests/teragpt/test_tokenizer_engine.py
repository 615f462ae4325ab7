from __future__ import annotations

import json
import pickle
import sys
import unicodedata
from base64 import b64encode
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Rules

from teragpt.tokenization.engine import Engine, cut_of, engine_for
from teragpt.tokenization.formats import ENCODINGS, Encoding, from_tiktoken
from teragpt.tokenization.pieces import CL100K, CUTS, GPT2, PROSE_PIECES
from teragpt.tokenization.tokenizer import END, Found, Tokenizer, train_bpe

LETTERS = st.sampled_from([*"aaabbc 1\n'._", "bc", "'s", "'LL", "\u00e9", "\u4e2d", "\u0300", "\r\n", "  ", END])
WORDS = st.lists(LETTERS, max_size=30).map("".join)
TEXT = "The cat isn't 12 CATS,\n\n  or a dog's d\u00f6g. " * 3
CLASSES = (r"\p{L}", r"\p{N}", r"\s", r"\p{Lu}", r"\p{Lt}", r"\p{Lm}", r"\p{Lo}", r"\p{M}", r"\p{Ll}")
FOLDED = r"(?i:[strevmld])"
Change = Callable[[dict[str, Any]], None]


@cache
def said() -> str:
    """A tokenizer's rules in JSON."""
    with TemporaryDirectory() as folder:
        train_bpe([TEXT], 300, PROSE_PIECES).save(folder)
        return Path(folder, "tokenizer.json").read_text("utf-8")


def changed(change: Change) -> Rules:
    """The rules, but for one thing."""
    rules = json.loads(said())
    change(rules)
    return Rules.from_str(json.dumps(rules))


def same(tokenizer: Tokenizer, text: str) -> None:
    """Both ways make the same tokens."""
    assert [ids.tolist() for ids in tokenizer.encode_batch([text])] == [tokenizer.encode(text)]


@settings(deadline=None, max_examples=60)
@given(corpus=st.lists(WORDS, min_size=1, max_size=4), cut=st.sampled_from(sorted(CUTS)), text=WORDS, extra=st.text())
def test_a_trained_tokenizers_tokens_are_made_by_tiktoken(corpus: list[str], cut: str, text: str, extra: str) -> None:
    tokenizer = train_bpe(corpus, 300, [cut])
    assert tokenizer.engine
    same(tokenizer, text)
    same(tokenizer, text + extra)


@settings(deadline=None, max_examples=30)
@given(tokens=st.lists(st.text("abc", min_size=2, max_size=5), unique=True), text=st.text("abc ", max_size=40))
def test_a_tiktoken_files_tokens_are_made_by_tiktoken(tokens: list[str], text: str) -> None:
    entries = [bytes([byte]) for byte in range(256)] + [token.encode() for token in tokens]
    ranks = {token: rank for rank, token in enumerate(entries)}
    rules = from_tiktoken(tiktoken_file(ranks), Encoding(len(ranks), CL100K, len(ranks)))
    tokenizer = Tokenizer("made", found=Found(rules, "<|endoftext|>"))
    assert tokenizer.engine
    same(tokenizer, text)


def tiktoken_file(ranks: dict[bytes, int]) -> bytes:
    return b"".join(b64encode(token) + f" {rank}\n".encode() for token, rank in ranks.items())


def test_both_libraries_put_every_character_into_the_same_classes() -> None:
    """The expressions of all cuts consist of these classes, and of characters that stand for themselves."""
    every = "".join(
        chr(one) for one in range(sys.maxunicode + 1) if unicodedata.category(chr(one)) not in {"Cn", "Cs", "Co"}
    )
    bytes_alone = {bytes([byte]): byte for byte in range(256)}
    for one in (*CLASSES, FOLDED):
        rust = tiktoken.Encoding("class", pat_str=one, mergeable_ranks=bytes_alone, special_tokens={})
        oniguruma = pre_tokenizers.Split(Regex(one + "+"), "removed", invert=True)
        found = "".join(piece for piece, _ in oniguruma.pre_tokenize_str(every))
        assert found
        assert bytes(rust.encode_ordinary(every)).decode() == found


def test_gpt2s_own_way_of_cutting_is_known() -> None:
    rules = changed(
        lambda said: said.update(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True})
    )
    engine = engine_for(rules)
    assert engine
    assert cut_of(json.loads(rules.to_str())["pre_tokenizer"]) == GPT2
    found = engine.encode(TEXT)
    assert found is not None
    assert found.tolist() == rules.encode(TEXT).ids


def unordered(said: dict[str, Any]) -> None:
    said["model"]["merges"][:2] = reversed(said["model"]["merges"][:2])


def unreachable(said: dict[str, Any]) -> None:
    said["model"]["vocab"]["zzz"] = len(said["model"]["vocab"])


REFUSED: dict[str, Change] = {
    "merges that do not go by their tokens' ids": unordered,
    "an entry that no merge makes": unreachable,
    "a normalizer": lambda said: said.update(normalizer={"type": "NFC"}),
    "another cut": lambda said: said["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": r"\w+|\W+"}),
    "no cut": lambda said: said.update(pre_tokenizer=None),
    "a space before the text": lambda said: said["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
    "dropout": lambda said: said["model"].update(dropout=0.1),
    "a byte that is no token": lambda said: said["model"]["vocab"].pop("!"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_rules_that_may_make_other_tokens_stay_with_their_library(what: str) -> None:
    assert engine_for(changed(REFUSED[what])) is None


def with_a_plain_token(said: dict[str, Any]) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    said["added_tokens"].append({"id": len(said["model"]["vocab"]), "content": "<think>", **flags})


def test_a_text_with_a_token_that_is_no_special_one_goes_to_the_library() -> None:
    tokenizer = Tokenizer("thinks", found=Found(changed(with_a_plain_token), END))
    assert tokenizer.engine
    assert tokenizer.engine.encode("a <think> b") is None
    assert tokenizer.vocabulary - 1 in tokenizer.encode_batch(["a <think> b"])[0]
    same(tokenizer, "a <think> b")
    same(tokenizer, "a <thin> b")


@pytest.mark.parametrize("text", ["a\U000e0fff", " " * 1_000_000 + "a"], ids=["no character yet", "a long run"])
def test_a_text_that_tiktoken_may_see_otherwise_or_not_at_all_goes_to_the_library(text: str) -> None:
    tokenizer = train_bpe([TEXT], 300, PROSE_PIECES)
    assert tokenizer.engine
    assert tokenizer.engine.encode(text) is None
    same(tokenizer, text)


def test_without_tiktoken_the_library_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    tokenizer = train_bpe([TEXT], 300)
    assert tokenizer.engine is None
    same(tokenizer, TEXT)


def test_a_worker_gets_the_same_tokenizer() -> None:
    tokenizer = train_bpe([TEXT], 300)
    there = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301
    assert isinstance(there.engine, Engine)
    for text in (TEXT, f"{END} is text", f"{END} is text\U000e0fff"):
        assert there.encode(text) == tokenizer.encode(text)
        same(there, text)


def test_every_known_encodings_cut_is_known() -> None:
    assert {one.pieces for one in ENCODINGS.values()} <= CUTS
