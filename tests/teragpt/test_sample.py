from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teragpt.config import ConfigError
from teragpt.inference.generate import Drawn, Sampling
from teragpt.inference.sample import Sampler, Text, cut, stream
from teragpt.tokenization.tokenizer import Tokenizer, train_bpe


@pytest.fixture(scope="module")
def sampler(trained: Path) -> Sampler:
    return Sampler(trained)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["def value():\n    return Straße\n", "class 漢字: pass\n"] * 10, 300)


def written(sampler: Sampler, prompt: str, **how: Any) -> str:
    (one,) = sampler.complete([prompt], Sampling(**how))
    return one.text


def test_a_seed_gives_the_same_text_and_another_gives_another(trained: Path, sampler: Sampler) -> None:
    texts = [written(sampler, "def ", tokens=20, seed=seed) for seed in (1, 1, 9)]
    assert texts[0] == texts[1] != texts[2]
    assert "".join(stream(trained, "def ", tokens=20, seed=1)) == texts[0]


def test_equal_prompts_of_a_batch_are_drawn_apart_and_the_first_as_if_alone(sampler: Sampler) -> None:
    first, second = sampler.complete(["def ", "def "], Sampling(tokens=20, seed=1))
    assert first.text == written(sampler, "def ", tokens=20, seed=1) != second.text


def test_an_empty_prompt_starts_a_document(sampler: Sampler) -> None:
    assert written(sampler, "", tokens=5, seed=0)


def test_a_prompt_and_its_text_go_on_past_the_context(sampler: Sampler) -> None:
    pieces = list(sampler.stream(["x = 1\n" * 60], Sampling(tokens=80, seed=0)))
    assert len(pieces) == 80
    assert pieces[-1].finish == "length"


def test_the_text_ends_where_the_model_ends_its_document(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    end = sampler.tokenizer.end
    monkeypatch.setattr("teragpt.inference.generate.draw", lambda *_: [Drawn(end)])
    assert [(one.text, one.finish) for one in sampler.stream(["def "], Sampling(tokens=20))] == [("", "stop")]


def test_a_text_ends_before_a_stop_string_and_the_rest_of_the_batch_goes_on(sampler: Sampler) -> None:
    prompts, how = ["def main(", "import "], Sampling(tokens=24, temperature=0)
    free = sampler.complete(prompts, how)
    middle = free[0].text[5:8]
    assert middle
    stopped = sampler.complete(prompts, replace(how, stop=(middle,)))
    assert stopped[0].text == free[0].text[: free[0].text.index(middle)]
    assert stopped[0].finish == "stop"
    if middle not in free[1].text:
        assert stopped[1] == free[1]


def test_each_token_comes_with_its_log_probability(sampler: Sampler) -> None:
    (one,) = sampler.complete(["def main("], Sampling(tokens=6, temperature=0, logprobs=3))
    assert len(one.drawn) == 6
    for drawn in one.drawn:
        assert drawn.likeliest[0] == (drawn.token, drawn.logprob)
        assert len(drawn.likeliest) == 3


def test_a_folder_without_a_checkpoint_and_a_number_out_of_range_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a run folder with a published checkpoint"):
        Sampler(tmp_path)
    with pytest.raises(ConfigError, match="top_p: got"):
        next(stream(trained, "x", top_p=0.0))


@settings(deadline=None)
@given(st.text(alphabet="def Straße漢字🎉\n", max_size=20), st.integers(0, 5))
def test_pieces_are_whole_characters_and_make_the_text(tokenizer: Tokenizer, text: str, start: int) -> None:
    ids = tokenizer.encode(text)
    prompt = tokenizer.encode(text[:start])
    rest = tokenizer.encode(text[start:])
    grown = Text(tokenizer, prompt, ())
    pieces = [grown.add(token, None)[0] for token in rest]
    assert "".join(pieces) == text[start:]
    assert not any("�" in piece for piece in pieces)
    assert tokenizer.decode(ids) == text


def test_what_is_left_of_a_character_is_shown_at_the_end(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("🎉")[:2]
    grown = Text(tokenizer, [], ())
    assert grown.add(half[0], None) == ("", None)
    assert grown.add(half[1], "length") == ("�", "length")


def test_a_text_that_ends_within_a_character_ends_before_a_stop_string_all_the_same() -> None:
    party = train_bpe(["ab🎉", "ab🌍", "ab🍞"] * 9, 262, cut=[".+"])  # with an entry of letters and half a character
    half = next(
        one for one in range(party.vocabulary) if party.decode([one]).rstrip("�") == "ab" != party.decode([one])
    )
    grown = Text(party, [], ("b",))
    assert grown.add(half, None) == ("", None)
    assert grown.add(party.end, None) == ("a", "stop")


@given(st.text(alphabet="abc", max_size=30), st.text(alphabet="abc", min_size=1, max_size=4), st.integers(1, 5))
def test_no_part_of_a_stop_string_is_shown_however_a_text_is_cut(text: str, stop: str, size: int) -> None:
    shown, waiting, stopped = "", "", False
    for start in range(0, len(text), size):
        piece, waiting, stopped = cut(waiting + text[start : start + size], (stop,))
        shown += piece
        if stopped:
            break
    assert stopped == (stop in text)
    assert shown + waiting == text.partition(stop)[0]
