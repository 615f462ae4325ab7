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


def of(file: Path, *lines: str) -> Tokens:
    """The users of a file with these lines."""
    file.write_text("\n".join(lines))
    return Tokens(file)


def line(name: str, token: str) -> str:
    return f"{name} sha256:{hashlib.sha256(token.encode()).hexdigest()}"


def test_a_token_that_the_command_makes_names_its_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = {}
    for name in ("ada", "bob"):
        assert main(["token", name, "--json"]) == 0
        made[name] = json.loads(capsys.readouterr().out)
    lines = "".join(f"{each['line']}\n" for each in made.values())
    (tmp_path / "tokens").write_text(f"# of the lab\n\n{lines}")
    tokens = Tokens(Path(tokens_file(str(tmp_path / "tokens"))))
    for name, each in made.items():
        assert user(tokens, each["token"]) == name
        assert each["token"] not in lines
    for wrong in ("", made["ada"]["token"][:-1], made["ada"]["line"].partition("sha256:")[2]):
        with pytest.raises(Unauthorized, match="one of --tokens-file"):
            user(tokens, wrong)


def test_a_user_may_have_two_tokens_while_one_takes_the_others_place(tmp_path: Path) -> None:
    tokens = of(tmp_path / "tokens", line("ada", "old"), line("ada", "new"))
    assert user(tokens, "old") == user(tokens, "new") == "ada"


def test_a_changed_file_counts_at_once_and_one_that_cannot_be_read_leaves_what_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "tokens"
    tokens = of(file, line("ada", "first"))
    assert user(tokens, "first") == "ada"
    (tmp_path / "next").write_text(line("bob", "second"))
    (tmp_path / "next").replace(file)
    assert user(tokens, "second") == "bob"
    with pytest.raises(Unauthorized):
        user(tokens, "first")
    file.write_text("no line of a token")
    assert user(tokens, "second") == user(tokens, "second") == "bob"
    file.unlink()
    assert user(tokens, "second") == user(tokens, "second") == "bob"
    assert [one.getMessage().partition(";")[0] for one in caplog.records] == [
        "--tokens-file: what stood in it before counts on"
    ] * 2
    assert "no line" not in caplog.text
    file.write_text(line("eve", "third"))
    assert user(tokens, "third") == "eve"


NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), min_size=1, max_size=20)


@settings(max_examples=25)
@given(st.dictionaries(st.text(min_size=1), NAMES, min_size=1, max_size=8), st.text())
def test_a_token_opens_for_its_own_name_and_nothing_else_does(
    tmp_path_factory: pytest.TempPathFactory, known: dict[str, str], other: str
) -> None:
    lines = [line(name, token) for token, name in known.items()]
    tokens = of(tmp_path_factory.mktemp("known") / "tokens", *lines)
    for token, name in known.items():
        assert user(tokens, token) == name
    if other not in known:
        with pytest.raises(Unauthorized):
            user(tokens, other)


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 254])
def test_a_name_that_no_line_could_hold_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--", name]) == 2
    assert "NAME: got" in capsys.readouterr().err
