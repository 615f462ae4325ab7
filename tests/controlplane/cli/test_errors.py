from __future__ import annotations

import pytest

from controlplane.cli.errors import CliError, Code, from_client, missing_extra
from controlplane.client import ApiError, Unreachable
from teragpt.config import ConfigError, Problem


@pytest.mark.parametrize(
    ("problem", "code", "sentence"),
    [
        ({"status": 404, "detail": "no such run"}, Code.NOT_FOUND, "no such run; try: teragpt runs"),
        (
            {"status": 422, "errors": [{"pointer": "/size", "detail": "got '5g'"}]},
            Code.BAD_INPUT,
            "/size: got '5g'; try: teragpt sizes",
        ),
        (
            {"status": 422, "errors": [{"pointer": "", "detail": "no object"}, {"pointer": "/a", "detail": "b"}]},
            Code.BAD_INPUT,
            "body: no object; /a: b; try: teragpt run --help",
        ),
        (
            {"status": 404, "errors": [{"pointer": "?rank", "detail": "got 7; allowed: 0 to 1"}]},
            Code.NOT_FOUND,
            "?rank: got 7; allowed: 0 to 1; try: teragpt show RUN",
        ),
        (
            {"status": 422, "errors": [{"pointer": "?phase", "detail": "got 'done'"}]},
            Code.BAD_INPUT,
            "?phase: got 'done'; try: teragpt runs --help",
        ),
        *(
            (
                {"status": 422, "instance": instance, "errors": [{"pointer": "/a", "detail": "b"}]},
                Code.BAD_INPUT,
                f"/a: b; try: teragpt {command} --help",
            )
            for instance, command in (
                ("/v1/plans", "plan"),
                ("/sweeps", "sweep create"),
                ("/runs/plans/clone", "clone"),
                ("/runs/plans", "run"),
            )
        ),
        (
            {"status": 404, "detail": "there is no attempt 9: run r has had 1 to 2"},
            Code.NOT_FOUND,
            "there is no attempt 9: run r has had 1 to 2; try: teragpt show RUN",
        ),
        ({"status": 409, "detail": "the name is taken"}, Code.REFUSED, "the name is taken; try: teragpt runs"),
        (
            {"status": 401, "detail": "a token is needed"},
            Code.REFUSED,
            "a token is needed; try: teragpt context add NAME --url URL --token TOKEN",
        ),
        ({"status": 503, "title": "Busy"}, Code.REFUSED, "Busy"),
    ],
)
def test_a_refusal_is_one_line_with_a_code_and_what_to_try(
    problem: dict[str, object], code: Code, sentence: str
) -> None:
    error = from_client(ApiError(problem))
    assert error is not None
    assert (error.code, str(error)) == (code, sentence)


def test_a_question_is_followed_by_what_to_try() -> None:
    assert str(CliError("did you mean this?", next="that")) == "did you mean this? try: that"


def test_silence_names_the_address() -> None:
    error = from_client(Unreachable("http://nowhere", ConnectionError("refused")))
    assert error is not None
    assert error.code == Code.UNREACHABLE
    assert "http://nowhere (refused)" in str(error)


def test_a_bad_setting_of_the_trainer_is_bad_input() -> None:
    error = from_client(ConfigError([Problem("steps", -1, "a whole number")]))
    assert error is not None
    assert (error.code, str(error)) == (Code.BAD_INPUT, "steps: got -1; allowed: a whole number")


def test_any_other_error_is_a_fault_of_ours() -> None:
    assert from_client(ZeroDivisionError()) is None


def test_a_missing_library_names_the_extra() -> None:
    error = missing_extra("sample", "train", ModuleNotFoundError("no", name="torch"))
    assert error.code == Code.MISSING_EXTRA
    assert str(error).startswith("teragpt sample needs the [train] extra, of which torch is not installed; try: pip")
    assert isinstance(error, CliError)
