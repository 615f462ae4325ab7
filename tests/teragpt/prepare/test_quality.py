from __future__ import annotations

import json
from pathlib import Path

import pytest

from teragpt.config import ConfigError
from teragpt.prepare import Recipe, prepare
from teragpt.prepare.quality import repeated, worded
from teragpt.tokenization.tokenizer import train_bpe

KEPT = ["Ein Satz.\nNoch einer.\n", "भाषा कोई भी हो सकती है", "文字與標點。", "value = 3\nother = 4\n"]


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0), (" \n\n", 0), ("one\ntwo\n", 0), ("one\n  one \n", 0.5), ("ab\nab\nab\n\n\nabcd", 0.4), ("a a a", 0)],
)
def test_lines_that_stood_before_are_repeated(text: str, share: float) -> None:
    assert repeated(text) == share


@pytest.mark.parametrize(
    ("text", "share"), [("", 0), ("ab 12", 1), ("a-b- \n", 0.5), ("हिन्दी", 1), ("文字。", 2 / 3), ("=====", 0)]
)
def test_letters_marks_and_digits_of_any_script_spell(text: str, share: float) -> None:
    assert worded(text) == share


def test_what_is_no_running_text_is_dropped_and_counted_with_its_place(tmp_path: Path) -> None:
    menu, rule = "Home | About\n" * 9, "+------+======+\n| 1 | 2 |\n"
    lines = [json.dumps({"text": text}) for text in [*KEPT, menu, rule]]
    (tmp_path / "web.jsonl").write_text("\n".join(lines), "utf-8")
    recipe = Recipe(max_repeated=0.3, min_letters=0.6, validation=0)
    prepare([tmp_path / "web.jsonl"], tmp_path / "out", train_bpe(KEPT, 300), recipe, progress=False)
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["documents"] == len(KEPT)
    for at, (reason, text) in enumerate(
        [("more repeated than max_repeated", menu), ("fewer letters than min_letters", rule)], len(KEPT) + 1
    ):
        dropped = {"documents": 1, "bytes": len(text), "examples": [f"{tmp_path / 'web.jsonl'}, line {at}"]}
        assert report["dropped"][reason] == dropped


@pytest.mark.parametrize("setting", [{"max_repeated": 1.0}, {"min_letters": 1.5}, {"min_letters": -0.1}])
def test_shares_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(setting))}: got .*; allowed: a share from 0"):
        Recipe(**setting)  # type: ignore[arg-type]
