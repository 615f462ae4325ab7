from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.cli import main
from controlplane.domain.errors import Unauthorized
from controlplane.identity.shown import Shown
from controlplane.identity.tokens import Tokens
from controlplane.options import tokens_file


def user(tokens: Tokens, token: str) -> str:
    return asyncio.run(tokens.user(Shown(token, "get", lambda _: [], "")))


def line(name: str, token: str) -> str:
    return f"{name} sha256:{hashlib.sha256(token.encode()).hexdigest()}"


def test_a_token_that_the_command_makes_names_its_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = {}
    for name in ("ada", "bob"):
        assert main(["token", name, "--json"]) == 0
        made[name] = json.loads(capsys.readouterr().out)
    lines = "".join(f"{each['line']}\n" for each in made.values())
    (tmp_path / "tokens").write_text(f"# of the lab\n\n{lines}")
    tokens = Tokens(tokens_file(str(tmp_path / "tokens")))
    for name, each in made.items():
        assert user(tokens, each["token"]) == name
        assert each["token"] not in lines
    for wrong in ("", made["ada"]["token"][:-1], made["ada"]["line"].partition("sha256:")[2]):
        with pytest.raises(Unauthorized, match="one of --tokens-file"):
            user(tokens, wrong)


def test_a_user_may_have_two_tokens_while_one_takes_the_others_place() -> None:
    tokens = Tokens(f"{line('ada', 'old')}\n{line('ada', 'new')}")
    assert user(tokens, "old") == user(tokens, "new") == "ada"


@settings(max_examples=25)
@given(st.dictionaries(st.text(min_size=1), st.from_regex(r"[!-~]{1,20}", fullmatch=True), max_size=8), st.text())
def test_a_token_opens_for_its_own_name_and_nothing_else_does(known: dict[str, str], other: str) -> None:
    tokens = Tokens("\n".join(line(name, token) for token, name in known.items()))
    for token, name in known.items():
        assert user(tokens, token) == name
    if other not in known:
        with pytest.raises(Unauthorized):
            user(tokens, other)


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 254])
def test_a_name_that_no_line_could_hold_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--", name]) == 2
    assert "NAME: got" in capsys.readouterr().err
