"""Text to tokens and back, whatever the tokenizer: a hub name, a local folder or file, or one trained here.

Why: everything after it sees one class with one promise, that `decode(encode(text)) == text`, and that no text can
forge the document separator. It must not know what is done with the tokens. Files are read by the `tokenizers`
library alone; `transformers`, which takes seconds to import, is loaded for hub names only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from teragpt.config import ConfigError, Problem
from teragpt.tokenization.engine import Engine, engine_for
from teragpt.tokenization.formats import foreign
from teragpt.tokenization.pieces import PIECES

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import tokenizers

END = "<|end|>"
KNOWN_ENDS = (END, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|im_end|>")
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|eot|>")  # what a reply in a chat ends with
CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json")
TEMPLATE_FILE = "chat_template.jinja"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(?<!\.json)")
HUB_TIMEOUT_S = 5.0
SOURCES = "a tokenizer.json, a folder that holds one, a SentencePiece or tiktoken file, or the hub's name of one"


class TokenizerError(ConfigError):
    """A tokenizer that cannot be found or read."""

    def __init__(self, given: object, allowed: str) -> None:
        super().__init__([Problem("tokenizer", str(given), allowed)])


class Found(NamedTuple):
    """The rules that a name stands for, and what is configured beside them: the end-of-text token, the chat's form."""

    rules: tokenizers.Tokenizer
    end_token: str | None = None
    chat_template: str | None = None


class Tokenizer:
    """A tokenizer by `tokenizer_name`: a hub name, a local folder, a `tokenizer.json`, a SentencePiece or tiktoken one.

    A local path wins over the hub, and the hub's local cache over the network. Rules that are at hand already come as
    `found`. `end` is the separator's id, `ends` those of every token that ends a text or a turn, `vocabulary` the
    number of ids. `chat_template` is the Jinja template of a conversation, if it has one. Raises TokenizerError.
    """

    def __init__(self, tokenizer_name: str, *, found: Found | None = None) -> None:
        rules, end_token, self.chat_template = found or look_up(str(tokenizer_name))
        rules.no_padding()
        rules.no_truncation()
        rules.encode_special_tokens = True  # a special token's name in a text is text
        ids = rules.get_vocab(with_added_tokens=True)
        known = [word for word in (end_token, *KNOWN_ENDS) if word in ids]
        if not known:
            raise TokenizerError(tokenizer_name, f"a tokenizer with an end-of-text token ({', '.join(KNOWN_ENDS)})")
        self.name = str(tokenizer_name)
        self.end_token: str = known[0]
        self.end: int = ids[known[0]]
        self.ends = frozenset(ids[word] for word in (self.end_token, *TURN_ENDS) if word in ids)
        self.vocabulary: int = max(ids.values()) + 1
        self._rules = rules

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without special tokens. Raises ConfigError for half of a surrogate pair in it."""
        return ids_of(self._rules, text)

    def encode_batch(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """The tokens of several texts: by tiktoken where they are the same, else by `tokenizers` on all cores."""
        import numpy as np

        made = [self.engine.encode(text) if self.engine else None for text in texts]
        left = [text for text, ids in zip(texts, made, strict=True) if ids is None]
        others = iter(self._rules.encode_batch_fast(left, add_special_tokens=False) if left else ())
        return [np.array(next(others).ids, np.uint32) if ids is None else ids for ids in made]

    @cached_property
    def engine(self) -> Engine | None:
        """What makes the same tokens faster; None where nothing does for sure."""
        return engine_for(self._rules)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens; separators show as what they are called."""
        return str(self._rules.decode(list(ids), skip_special_tokens=False))

    def entry(self, token: int) -> str:
        """What the vocabulary calls a token; bytes that are no character by themselves have a letter of their own."""
        return str(self._rules.id_to_token(token))

    def encode_chat(self, messages: Sequence[Mapping[str, str]], template: str | None = None) -> list[int]:
        """The tokens of a conversation of messages with `role` and `content`, up to where the assistant replies.

        Raises ConfigError as `chat_text` does.
        """
        return ids_of(self._chat_rules, self.chat_text(messages, template, reply=True))

    def encode_chats(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """The tokens of texts that `chat_text` has made, in which special tokens are themselves."""
        import numpy as np

        made = self._chat_rules.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.uint32) for one in made]

    def chat_text(
        self, messages: Sequence[Mapping[str, str]], template: str | None = None, *, reply: bool = False
    ) -> str:
        """What the chat template makes of a conversation; with `reply`, up to where the assistant's next one begins.

        Raises ConfigError where there is no template or it refuses the messages, and for a message with a special
        token's name in it: whoever writes one cannot forge the end of it.
        """
        form = template or self.chat_template
        if form is None:
            raise ConfigError([Problem("chat_template", None, "a tokenizer with one, or a Jinja file of your own")])
        special = [one.content for one in self._rules.get_added_tokens_decoder().values() if one.special]
        for message in messages:
            if held := [word for word in special if any(word in str(said) for said in message.values())]:
                raise ConfigError([Problem("messages", held[0], "text that holds no special token")])
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered = render_jinja_template(
                [[dict(one) for one in messages]],
                chat_template=form,
                add_generation_prompt=reply,
                eos_token=self.end_token,
                bos_token="",
            )
        except Exception as error:  # noqa: BLE001 - a template is a program of whoever wrote it
            allowed = f"what the tokenizer's chat template takes ({first_line(error)})"
            raise ConfigError([Problem("messages", [one["role"] for one in messages], allowed)]) from None
        return str(rendered[0][0])

    @cached_property
    def _chat_rules(self) -> tokenizers.Tokenizer:
        """The same rules, but that names of special tokens are those tokens."""
        from tokenizers import Tokenizer as Rules

        rules = Rules.from_str(self._rules.to_str())
        rules.encode_special_tokens = False
        return rules

    def __getstate__(self) -> dict[str, Any]:
        held = {**self.__dict__, "engine": self.engine}  # found once, not in each worker
        held.pop("_chat_rules", None)
        return held

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rules.encode_special_tokens = True  # which does not travel with them

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides which tokens a text becomes; the same for the same rules wherever they lie."""
        rules = json.loads(self._rules.to_str())
        listed = {name: rules["model"].pop(name) for name in ("vocab", "merges") if name in rules["model"]}
        deciding = ("normalizer", "pre_tokenizer", "model", "decoder", "added_tokens")
        said_of = {part: stated(rules[part]) for part in deciding}
        said_of["model"] |= listed  # in which no option stands
        said = json.dumps([self.end, said_of], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()

    def save(self, folder: Path | str) -> None:
        """Write what `transformers.AutoTokenizer` and this class read as this same tokenizer. Raises OSError."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.end_token,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,
        }
        (folder / "tokenizer.json").write_text(self._rules.to_str(pretty=True), "utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        if self.chat_template is not None:
            (folder / TEMPLATE_FILE).write_text(self.chat_template, "utf-8")


def train_bpe(
    texts: Iterable[str], vocabulary: int, cut: Sequence[str] = PIECES, special: Sequence[str] = ()
) -> Tokenizer:
    """A byte-level BPE of at most `vocabulary` tokens from the texts; the same for the same texts.

    Sennrich et al. 2016 over bytes (Radford et al. 2019). No token spans two of the pieces that texts are cut into.
    `special` tokens stand beside the separator. Raises ConfigError for a vocabulary without room for all bytes.
    """
    own = [END, *special]
    if len(set(own)) < len(own) or not all(special):
        raise ConfigError([Problem("special", ", ".join(special), f"tokens that differ, from {END} too")])
    if vocabulary < 256 + len(own):
        allowed = f"at least {256 + len(own)}: every byte, the separator and special tokens"
        raise ConfigError([Problem("vocabulary", vocabulary, allowed)])
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Rules

    rules = Rules(models.BPE())
    pieces = pre_tokenizers.Split(Regex("|".join(cut)), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rules.pre_tokenizer = pre_tokenizers.Sequence([pieces, to_bytes])
    rules.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=own, initial_alphabet=alphabet, show_progress=False
    )
    rules.train_from_iterator(texts, trainer)
    return Tokenizer(f"bpe-{vocabulary}", found=Found(rules, END))


def ids_of(rules: tokenizers.Tokenizer, text: str) -> list[int]:
    """The tokens of a text by some rules. Raises ConfigError."""
    try:
        return list(rules.encode(text, add_special_tokens=False).ids)
    except TypeError:  # what JSON can write and no file can hold
        raise ConfigError([Problem("text", text, "whole characters: half of a surrogate pair is none")]) from None


def look_up(name: str) -> Found:
    """What a name stands for. Raises TokenizerError."""
    path = Path(name)
    if path.is_file():
        return Found(read_file(path), configured_end(path.parent), configured_template(path.parent))
    if held := named_in(path) if name else None:
        return Found(read_file(held), configured_end(path), configured_template(path))
    if HUB_NAME.fullmatch(name) or (name and path.is_dir()):
        return through_transformers(name)
    raise TokenizerError(name, f"{SOURCES} (no such file or folder, and no name that a hub could know)")


def named_in(folder: Path) -> Path | None:
    """The file of a folder's tokenizer; None where `transformers` has to put it together from several."""
    if (folder / "tokenizer.json").is_file():
        return folder / "tokenizer.json"
    alone = [*folder.glob("tokenizer.model"), *folder.glob("*.tiktoken")]
    return alone[0] if len(alone) == 1 and not any((folder / name).exists() for name in CONFIG_FILES) else None


def read_file(path: Path) -> tokenizers.Tokenizer:
    """The rules in a file: a `tokenizer.json`, or one of SentencePiece or tiktoken. Raises TokenizerError."""
    from tokenizers import Tokenizer as Rules

    try:
        return foreign(path) or Rules.from_str(path.read_text("utf-8"))
    except Exception as error:  # noqa: BLE001 (the library raises bare Exception)
        raise TokenizerError(path, f"a whole tokenizer.json, SentencePiece model or tiktoken file ({error})") from None


def configured_end(folder: Path) -> str | None:
    """The end-of-text token that the files beside a `tokenizer.json` name. Raises TokenizerError."""
    for name in CONFIG_FILES:
        if end := read_object(folder / name).get("eos_token"):
            return str(end["content"] if isinstance(end, dict) else end)
    return None


def configured_template(folder: Path) -> str | None:
    """The chat template beside a `tokenizer.json`: of a file of its own, or the default one of those configured."""
    path = folder / TEMPLATE_FILE
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        found = read_object(folder / CONFIG_FILES[0]).get("chat_template")
    except (OSError, ValueError) as error:
        raise TokenizerError(path, f"a readable text file ({error})") from None
    if isinstance(found, list):
        found = {one.get("name"): one.get("template") for one in found}.get("default")
    return found if isinstance(found, str) else None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is no file. Raises TokenizerError that names the file."""
    try:
        return dict(json.loads(path.read_text("utf-8")).items())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise TokenizerError(path, f"a readable JSON object ({error})") from None


def through_transformers(name: str) -> Found:
    """What `transformers` has for a folder, or for a hub name in the hub's cache or at the hub."""
    # from its own module: type checkers read all 2,000 of `transformers` for a name of the package
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(name, local_files_only=True)
    except Exception as error:  # noqa: BLE001 (foreign files fail in any way)
        if Path(name).is_dir():
            raise TokenizerError(name, f"{SOURCES} ({first_line(error)})") from None
        found = download(name)
    rules = getattr(found, "backend_tokenizer", None)
    if rules is None:
        raise TokenizerError(name, f"a tokenizer that the tokenizers library can run, not a {type(found).__name__}")
    if set(rules.get_vocab()) <= set(
        found.all_special_tokens
    ):  # transformers makes an empty one where files are missing
        raise TokenizerError(name, f"{SOURCES} (there is no vocabulary)")
    template = getattr(found, "chat_template", None)
    return Found(rules, found.eos_token, template if isinstance(template, str) else None)


def download(name: str) -> Any:
    """What the hub has for a name. Raises TokenizerError, and soon where the hub is out of reach."""
    from huggingface_hub import constants, get_session
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)  # the hub's own client would retry for a minute
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # noqa: BLE001 (network, hub and foreign files fail in any way)
        looked = f"looked for the folder {Path(name).absolute()}, in the hub's cache {constants.HF_HUB_CACHE}"
        raise TokenizerError(name, f"{SOURCES}; {looked} and at {constants.ENDPOINT} ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """What an exception says, without its advice."""
    said = str(error).partition("\n")[0].strip() or type(error).__name__
    return "transformers finds none there" if said.endswith(":") else said  # it goes on with a list of what it tried


def stated(value: Any) -> Any:
    """A JSON value without options that are off, so that options a later library adds do not change a hash."""
    if isinstance(value, dict):
        return {key: stated(one) for key, one in value.items() if one is not None and one is not False}
    return [stated(one) for one in value] if isinstance(value, list) else value
