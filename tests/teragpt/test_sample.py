from __future__ import annotations

from pathlib import Path

import pytest
import torch

from teragpt.config import ConfigError
from teragpt.sample import draw, generate, stream
from teragpt.trained import load


def test_a_seed_gives_the_same_text_and_another_gives_another(trained: Path) -> None:
    texts = ["".join(stream(trained, "def ", tokens=20, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_an_empty_prompt_starts_a_document(trained: Path) -> None:
    assert "".join(stream(trained, "", tokens=5, seed=0))


def test_a_prompt_and_its_text_go_on_past_the_context(trained: Path) -> None:
    pieces = list(stream(trained, "x = 1\n" * 60, tokens=80, seed=0))
    assert len(pieces) > 1
    assert not "".join(pieces).startswith("x = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\nx = 1\n" * 9)


def test_greedy_text_is_what_the_model_holds_likeliest(trained: Path) -> None:
    model, tokenizer, config = load(trained)
    prompt = tokenizer.encode("def main(")
    drawn = list(generate(model, prompt, config.context, torch.Generator(), 0.0, 0, 1.0, 8))
    ids = list(prompt)
    with torch.no_grad():
        for _ in drawn:
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert drawn == ids[len(prompt) :]


def test_the_text_ends_where_the_model_ends_its_document(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = load(trained)[1].end
    monkeypatch.setattr("teragpt.sample.draw", lambda *_: end)
    assert list(stream(trained, "def ", tokens=20)) == []


def test_only_the_likeliest_tokens_are_drawn() -> None:
    logits, generator = torch.tensor([0.0, 3.0, 2.0, 1.0]), torch.Generator().manual_seed(0)

    def drawn(top_k: int, top_p: float) -> set[int]:
        return {draw(logits, generator, 1.0, top_k, top_p) for _ in range(200)}

    assert drawn(0, 1.0) == {0, 1, 2, 3}
    assert drawn(2, 1.0) == {1, 2}
    assert drawn(0, 0.5) == {1}
    assert drawn(0, 0.7) == {1, 2}
    assert draw(logits, generator, 0.0, 0, 1.0) == 1


@pytest.mark.parametrize(
    ("field", "value"), [("tokens", 0), ("temperature", -1.0), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5)]
)
def test_numbers_out_of_range_are_refused_by_name(trained: Path, field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{field}: got"):
        next(stream(trained, "x", **{field: value}))  # type: ignore[arg-type]
