from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teragpt.config import FIELDS, TYPES, Config, ConfigError, Problem, check, parse, resolve, shown
from teragpt.plan import TooSmall
from teragpt.sizes import SIZES
from teragpt.tokenization.tokenizer import TokenizerError


def refused(settings: dict[str, object]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        resolve(settings)
    return {problem.field: str(problem) for problem in caught.value.problems}


@pytest.mark.parametrize(
    "error",
    [
        ConfigError([Problem("out", "o", "a folder"), Problem("seed", -1, "0")]),
        TokenizerError("t", "a file"),
        TooSmall(Problem("gpus", 1, "more"), 8),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_the_same_for_ranks_that_are_sent_it(error: ConfigError) -> None:
    sent = copy.copy(error)  # as pickle does it
    assert (type(sent), str(sent), vars(sent)) == (type(error), str(error), vars(error))


def test_a_size_alone_derives_everything() -> None:
    config = resolve({"size": "1.3B"})
    assert config.size == "1.3b"
    assert config.shape == SIZES["1.3b"]
    assert config.tokens == config.steps * config.global_batch_tokens
    assert config.sequences * config.context == config.global_batch_tokens
    assert config.warmup_steps == config.steps // 20
    assert all(getattr(config, name) not in {0, -1} for name in ("dim", "steps", "micro_batch", "eval_every"))


@pytest.mark.parametrize("size", SIZES)
def test_every_size_resolves(size: str) -> None:
    assert resolve({"size": size}).size == size


def test_what_is_given_overrides_what_is_derived() -> None:
    config = resolve({"dim": 64, "steps": 10, "learning_rate": 1})
    assert (config.dim, config.steps, config.learning_rate) == (64, 10, 1.0)
    assert isinstance(config.learning_rate, float)


def test_a_resolved_configuration_resolves_to_itself() -> None:
    config = resolve({"size": "350m", "steps": 100})
    assert resolve(dataclasses.asdict(config)) == config


def test_the_vocabulary_is_the_datasets_or_the_references() -> None:
    assert resolve({}).num_tokens == 2048
    assert resolve({"data": "somewhere"}).num_tokens == 50_304
    assert resolve({"data": "somewhere"}, vocabulary=300).num_tokens == 300


@pytest.mark.parametrize("name", [name for name, kind in TYPES.items() if kind in {int, float}])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**30, -(10**30), "many", None, [], True])
def test_numbers_that_are_none_or_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    problem = check(name, value)
    assert problem is not None
    assert str(problem).startswith(f"{name}: got {shown(value)}; allowed: ")
    assert refused({name: value})[name] == str(problem)


@given(st.sampled_from(sorted(FIELDS)), st.none() | st.booleans() | st.integers() | st.floats() | st.text())
def test_any_value_is_either_fit_or_a_problem_that_names_its_field(name: str, value: object) -> None:
    problem = check(name, value)
    assert problem is None or problem.field == name
    if problem is None:
        with contextlib.suppress(ConfigError):
            assert isinstance(resolve({name: value}), Config)


def test_every_problem_is_reported_at_once() -> None:
    problems = refused({"dim": -1, "heads": 0, "no_such": 1, "schedule": "linear", "tied": 1})
    assert problems.keys() == {"dim", "heads", "no_such", "schedule", "tied"}
    assert "one of cosine, wsd" in problems["schedule"]
    assert "true or false" in problems["tied"]


def test_an_unknown_setting_is_told_which_was_meant_or_which_there_are() -> None:
    assert refused({"stepz": 1})["stepz"] == "stepz: there is no such setting; did you mean steps?"
    assert f"there are {', '.join(FIELDS)}" in refused({"qqqq": 1})["qqqq"]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"size": "9b"}, "size"),
        ({"heads": 3}, "heads"),
        ({"dim": 130, "heads": 2}, "heads"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads"),
        ({"head_dim": 33}, "head_dim"),
        ({"global_batch_tokens": 100}, "global_batch_tokens"),
        ({"warmup_steps": 10, "steps": 5}, "warmup_steps"),
        ({"tokens": 4096, "steps": 5}, "tokens"),
        ({"decay_fraction": 0.5}, "decay_fraction"),
        ({"decay_fraction": 0, "schedule": "cosine"}, "decay_fraction"),
        ({"fp8_recipe": "rowwise"}, "fp8_recipe"),
        ({"fp8_recipe": "rowwise", "precision": "bf16"}, "fp8_recipe"),
        ({"recompute": "full", "recompute_layers": 4}, "recompute_layers"),
        ({"recompute_layers": 1}, "recompute_layers"),
        ({"model": "nowhere"}, "model"),
        ({"loader": "nowhere:"}, "loader"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, object], field: str) -> None:
    assert field in refused(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"decay_fraction": 0.5, "schedule": "wsd"},
        {"decay_fraction": 0.2, "schedule": "cosine"},
        {"fp8_recipe": "rowwise", "precision": "fp8"},
        {"fp8_recipe": "tensorwise"},
        {"recompute": "full", "recompute_layers": 3},
    ],
    ids=str,
)
def test_what_has_its_effect_or_asks_for_none_is_taken(settings: dict[str, object]) -> None:
    config = resolve(settings)
    assert {name: getattr(config, name) for name in settings} == settings


def test_a_run_folder_that_is_empty_text_is_the_one_of_its_size() -> None:
    assert resolve({"out": "", "size": "124m"}).out == "runs/124m"


def test_one_mistake_is_one_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({"heads": 5})
    assert [problem.field for problem in caught.value.problems] == ["heads"]


def test_a_command_line_reaches_every_setting(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"steps": 5, "seed": 3}))
    words = ["--config", str(file), "--steps=7", "--learning-rate", "1e-3", "--set", "data=1", "--tied", "true"]
    assert parse(words) == {"steps": 7, "seed": 3, "learning_rate": 0.001, "data": "1", "tied": True}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steps"], "steps: got 'steps'"),
        (["--set", "=1"], "set: got '=1'; allowed: key=value"),
        (["--steps"], "steps: got nothing; allowed: a value after it"),
        (["--set", "steps"], "set: got 'steps'; allowed: key=value"),
        (["--", "--steps", "1"], "--: got '--'; allowed: --key value"),
        (["--=1"], "--=1: got '--=1'; allowed: --key value"),
        (["--config", "nowhere.json"], "config: got 'nowhere.json'"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(words)


@pytest.mark.parametrize("content", ["{", "[]", "", '{"steps": 1, "steps": 2}', "[" * 100_000])
def test_a_settings_file_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "settings.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"settings\.json"):
        parse(["--config", str(file)])


def test_text_that_is_no_number_is_refused_by_its_setting() -> None:
    assert "steps: got 'ten'" in refused(parse(["--steps", "ten"]))["steps"]


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"steps": 7}', "utf-8-sig")
    assert parse(["--config", str(tmp_path / "config.json")]) == {"steps": 7}
