"""Tokenizers' files of other libraries, tiktoken's and SentencePiece's, as rules of the `tokenizers` library.

Why: a vocabulary often comes as one of these files alone. After reading there is one kind of tokenizer, which needs
neither library. It must not know what the tokens are for. What is wrong with a file is said in a ValueError.
"""

from __future__ import annotations

import base64
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from teragpt.tokenization.pieces import CL100K, GPT2, O200K

if TYPE_CHECKING:
    import tokenizers

RANKED = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s")  # how a tiktoken file begins
SPACE = "\u2581"  # what SentencePiece writes a space as
UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5  # SentencePiece's types of pieces that no merge makes
UNIGRAM, BPE = 1, 2  # its types of models


class Encoding(NamedTuple):
    """What tiktoken knows of an encoding and its file does not say."""

    ranks: int
    pieces: str
    end: int


END = "<|endoftext|>"
ENCODINGS = {
    "r50k_base": Encoding(50_256, GPT2, 50_256),
    "p50k_base": Encoding(50_280, GPT2, 50_256),
    "cl100k_base": Encoding(100_256, CL100K, 100_257),
    "o200k_base": Encoding(199_998, O200K, 199_999),
}


def foreign(path: Path) -> tokenizers.Tokenizer | None:
    """The rules in a file of tiktoken or SentencePiece; None for any other. Raises ValueError, ImportError, OSError."""
    content = path.read_bytes()
    if path.suffix == ".tiktoken" or RANKED.match(content):
        return from_tiktoken(content, ENCODINGS.get(path.stem))
    return from_sentencepiece(content) if path.suffix == ".model" else None


def from_tiktoken(content: bytes, known: Encoding | None = None) -> tokenizers.Tokenizer:
    """Rules of tiktoken's lines `BASE64 RANK`. The end-of-text token is the one of a `known` encoding, else a new one.

    tiktoken joins the two neighbours that together have the lowest rank, so each pair that makes a token is a merge.
    """
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Rules

    ranks = ranked(content)
    if known and len(ranks) != known.ranks:
        raise ValueError(f"it holds {len(ranks):,} of {known.ranks:,} tokens")
    letters = byte_letters()
    names = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [
        (names[token[:cut]], names[token[cut:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in sorted(range(1, len(token)), key=lambda cut: ranks.get(token[:cut], 0))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    end = known.end if known else max(ranks.values()) + 1
    vocabulary = {names[token]: rank for token, rank in ranks.items()}
    rules = Rules(models.BPE(vocab={**vocabulary, END: end}, merges=merges, ignore_merges=True))
    pieces = pre_tokenizers.Split(Regex(known.pieces if known else CL100K), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rules.pre_tokenizer = pre_tokenizers.Sequence([pieces, to_bytes])
    rules.decoder = decoders.ByteLevel()
    rules.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return rules


def ranked(content: bytes) -> dict[bytes, int]:
    """The ranks by token. Raises ValueError that names the line."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            word, rank = line.split()
            ranks[base64.b64decode(word, validate=True)] = int(rank)
        except ValueError:
            raise ValueError(f"line {number} is no token in base64 and its rank") from None
    if len(set(ranks.values())) < len(ranks) or not all(bytes([byte]) in ranks for byte in range(256)):
        raise ValueError("not every byte is a token, or two tokens have one rank: it was cut short or changed")
    return ranks


def byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary (Radford et al. 2019): itself, where it shows."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in shown else next(others)) for byte in range(256)]


def from_sentencepiece(content: bytes) -> tokenizers.Tokenizer:
    """Rules of a SentencePiece model, BPE or unigram, with its normalisation, bytes and spaces."""
    from tokenizers import AddedToken, models
    from tokenizers import Tokenizer as Rules

    model = parsed(content)
    kind, pieces = model.trainer_spec.model_type, list(model.pieces)
    falls_back = bool(model.trainer_spec.byte_fallback)
    if kind == UNIGRAM:
        scores = [(one.piece, one.score) for one in pieces]
        rules = Rules(models.Unigram(scores, model.trainer_spec.unk_id, falls_back))
    elif kind == BPE:
        vocabulary = {one.piece: at for at, one in enumerate(pieces)}
        merges, unknown = joins(pieces), model.trainer_spec.unk_piece
        rules = Rules(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=falls_back))
    else:
        raise ValueError("it is a model of words or characters, and only BPE and unigram models are read")
    set_normalisation(rules, model.normalizer_spec)
    added = [one for one in pieces if one.type in {UNKNOWN, CONTROL, USER_DEFINED}]
    rules.add_tokens([AddedToken(one.piece, special=one.type != USER_DEFINED, normalized=False) for one in added])
    return rules


def parsed(content: bytes) -> Any:
    """The model in a SentencePiece file. Raises ValueError for a file that is none, or not whole."""
    try:
        from google.protobuf.message import DecodeError

        made_by_protoc = import_module("sentencepiece.sentencepiece_model_pb2")  # which has no types
    except ImportError as error:
        raise ImportError(f"SentencePiece files need the [data] extra ({error})") from None
    model: Any = made_by_protoc.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ValueError(f"it is no SentencePiece model, or not a whole one ({error})") from None
    if not (model.pieces and model.HasField("trainer_spec") and model.HasField("normalizer_spec")):
        raise ValueError("it is no SentencePiece model, or not a whole one")
    return model


def joins(pieces: list[Any]) -> list[tuple[str, str]]:
    """The merges of a BPE model, best piece first: each pair of pieces that makes one."""
    plain = {one.piece for one in pieces if one.type not in {UNKNOWN, CONTROL, USER_DEFINED, UNUSED}}
    return [
        (one.piece[:cut], one.piece[cut:])
        for one in sorted(pieces, key=lambda one: -float(one.score))
        if one.piece in plain
        for cut in range(1, len(one.piece))
        if one.piece[:cut] in plain and one.piece[cut:] in plain
    ]


def set_normalisation(rules: tokenizers.Tokenizer, said: Any) -> None:
    """Have spaces and characters written as SentencePiece does before its model sees them, and back."""
    from tokenizers import Regex, decoders, normalizers

    steps: list[Any] = [normalizers.Precompiled(said.precompiled_charsmap)] if said.precompiled_charsmap else []
    if said.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    steps += [normalizers.Prepend(SPACE)] if said.add_dummy_prefix else []
    rules.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    back: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    rules.decoder = decoders.Sequence([*back, *([decoders.Strip(" ", 1, 0)] if said.add_dummy_prefix else [])])
