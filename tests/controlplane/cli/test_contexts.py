from __future__ import annotations

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from controlplane.cli import main
from controlplane.cli.contexts import DEFAULT_URL, Contexts, connect
from controlplane.cli.errors import CliError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TERAGPT_HOME", str(tmp_path / "home"))
    for name in ("TERAGPT_URL", "TERAGPT_CONTEXT", "TERAGPT_TOKEN", "TERAGPT_TOKEN_COMMAND"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def bearer(url: str | None = None, context: str | None = None) -> tuple[str, str | None]:
    with connect(url, context) as client:
        return client.url, client._http.headers.get("authorization")


def test_without_anything_the_default_address_is_tried() -> None:
    assert bearer() == (DEFAULT_URL, None)


def test_this_machines_control_plane_is_found_by_its_home(home: Path) -> None:
    (home / "server.json").write_text('{"url": "http://127.0.0.1:4321"}', "utf-8")
    assert bearer() == ("http://127.0.0.1:4321", None)
    (home / "token").write_text("secret\n", "utf-8")
    assert bearer() == ("http://127.0.0.1:4321", "Bearer secret")


def test_a_torn_server_file_is_as_good_as_none(home: Path) -> None:
    (home / "server.json").write_text('{"url": "ht', "utf-8")
    assert bearer() == (DEFAULT_URL, None)


def test_the_context_in_use_wins_over_this_machine_and_a_named_one_over_both(home: Path) -> None:
    (home / "server.json").write_text('{"url": "http://127.0.0.1:4321"}', "utf-8")
    assert main(["context", "add", "lab", "--url", "https://lab", "--token", "t1"]) == 0
    assert main(["context", "add", "cloud", "--url", "https://cloud"]) == 0
    assert bearer() == ("https://cloud", None)
    assert bearer(context="lab") == ("https://lab", "Bearer t1")
    assert bearer(url="http://elsewhere", context="lab") == ("http://elsewhere", None)
    assert main(["context", "use"]) == 0
    assert bearer() == ("http://127.0.0.1:4321", None)


def test_a_command_prints_the_token(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["context", "add", "lab", "--url", "https://lab", "--token-command", "echo 'a b'"]) == 0
    assert bearer() == ("https://lab", "Bearer a b")
    assert main(["context", "list"]) == 0
    assert "by command" in capsys.readouterr().out
    monkeypatch.setenv("TERAGPT_TOKEN_COMMAND", "echo t2")
    assert bearer() == ("https://lab", "Bearer t2")
    assert bearer(url="http://elsewhere") == ("http://elsewhere", "Bearer t2")
    monkeypatch.setenv("TERAGPT_TOKEN", "t1")
    assert bearer() == ("https://lab", "Bearer t1")
    assert main(["context", "add", "lab", "--url", "https://lab", "--token", "t", "--token-command", "echo"]) == 2


@pytest.mark.parametrize("command", ["false", "no-such-command-anywhere", "true", "echo '"])
def test_a_command_that_prints_no_token_is_named(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERAGPT_TOKEN_COMMAND", command)
    with pytest.raises(CliError, match="the command that prints the token"):
        bearer()


def test_options_win_over_the_environment_and_that_over_the_context_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lab", "cloud"):
        main(["context", "add", name, "--url", f"https://{name}"])
    monkeypatch.setenv("TERAGPT_CONTEXT", "lab")
    assert bearer() == ("https://lab", None)
    monkeypatch.setenv("TERAGPT_URL", "http://elsewhere")
    assert bearer() == ("http://elsewhere", None)
    assert bearer(context="cloud") == ("https://cloud", None)
    assert bearer(url="http://here") == ("http://here", None)


@pytest.mark.parametrize(
    "url", ["ftp://lab", "lab", "https://", "http://[::1", "http://lab:99999", "http://a\udcffb", ""]
)
def test_a_context_has_an_address_that_can_be_called(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["context", "add", "lab", "--url", url]) == 2
    assert capsys.readouterr().err == f"error: --url: got {url!r}; allowed: an address such as {DEFAULT_URL}\n"
    assert not Contexts.path().exists()


def test_an_address_of_the_environment_is_named_as_such(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERAGPT_URL", "lab:8000")
    assert main(["runs"]) == 2
    assert capsys.readouterr().err.startswith("error: TERAGPT_URL: got 'lab:8000'; allowed: ")


def test_a_token_in_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    main(["context", "add", "lab", "--url", "https://lab", "--token", "t1"])
    monkeypatch.setenv("TERAGPT_TOKEN", "t2")
    assert bearer() == ("https://lab", "Bearer t2")


def test_contexts_are_listed_with_the_one_in_use_and_without_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    main(["context", "add", "lab", "--url", "https://lab", "--token", "t1"])
    assert main(["context", "list"]) == 0
    printed = capsys.readouterr().out
    assert "lab" in printed
    assert "*" in printed
    assert "t1" not in printed
    assert main(["context", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"use": "lab", "contexts": {"lab": "https://lab"}}


def test_the_file_is_readable_by_its_user_alone() -> None:
    main(["context", "add", "lab", "--url", "https://lab", "--token", "t1"])
    assert Contexts.path().stat().st_mode & 0o777 == 0o600


def test_removing_the_context_in_use_leaves_none_in_use() -> None:
    main(["context", "add", "lab", "--url", "https://lab"])
    main(["context", "add", "cloud", "--url", "https://cloud"])
    assert main(["context", "remove", "lab"]) == 0
    assert Contexts.load() == Contexts("cloud", {"cloud": {"url": "https://cloud", "token": None}})
    assert main(["context", "remove", "cloud"]) == 0
    assert Contexts.load() == Contexts()


@pytest.mark.parametrize(
    "command", [["context", "use", "lab"], ["context", "remove", "lab"], ["runs", "--context", "lab"]]
)
def test_an_unknown_context_is_named_with_those_that_exist(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["context", "add", "cloud", "--url", "https://cloud"])
    assert main(command) == 2
    assert capsys.readouterr().err == "error: no context 'lab'; there are: cloud; try: teragpt context list\n"


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 100_000, b""])
def test_a_broken_file_is_named(text: bytes) -> None:
    Contexts.path().parent.mkdir(parents=True)
    Contexts.path().write_bytes(text)
    with pytest.raises(CliError, match=r"contexts\.json cannot be read as contexts"):
        Contexts.load()


@pytest.mark.parametrize(
    "text",
    ["[1]", "5", "null", '{"other": 1}', '{"contexts": 5}', '{"contexts": {"lab": 5}}', '{"contexts": {"lab": {}}}'],
)
def test_a_file_of_something_else_is_named_with_what_it_should_hold(text: str) -> None:
    Contexts.path().parent.mkdir(parents=True)
    Contexts.path().write_text(text, "utf-8")
    with pytest.raises(
        CliError, match=r'contexts\.json holds no contexts; allowed: {"use": NAME or null, "contexts": {'
    ):
        Contexts.load()


def test_an_address_that_a_hand_wrote_into_the_file_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    Contexts.path().parent.mkdir(parents=True)
    Contexts.path().write_text('{"use": "lab", "contexts": {"lab": {"url": "lab:8000"}}}', "utf-8")
    assert main(["runs"]) == 2
    assert capsys.readouterr().err.startswith("error: the context 'lab': got 'lab:8000'; allowed: ")


def test_contexts_that_cannot_be_kept_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    assert main(["context", "add", "lab", "--url", "https://lab"]) == 1
    error = capsys.readouterr().err
    assert "contexts.json cannot be " in error
    assert "(" in error
    assert error.count("\n") == 1


def test_a_context_has_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["context", "add", " ", "--url", "https://lab"]) == 2
    assert capsys.readouterr().err == "error: NAME: got ' '; allowed: a word\n"


@pytest.mark.parametrize("token", ["a\nb", "sécret", "a\udcff"])
def test_a_token_that_no_header_can_hold_is_refused_and_not_shown(
    token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERAGPT_TOKEN", token)
    assert main(["runs"]) == 2
    assert capsys.readouterr().err == (
        "error: the token holds a character that no header can; allowed: printable ASCII\n"
    )


def test_an_address_without_a_scheme_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--url", "localhost:8000"]) == 2
    assert capsys.readouterr().err == f"error: --url: got 'localhost:8000'; allowed: an address such as {DEFAULT_URL}\n"


def test_nobody_answering_is_exit_code_3_with_what_to_try(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "--url", "http://127.0.0.1:9"]) == 3
    error = capsys.readouterr().err
    assert error.startswith("error: no control plane answers at http://127.0.0.1:9 (")
    assert "try: teragpt up" in error
    assert error.count("\n") == 1


@contextmanager
def answering(status: int, body: bytes) -> Generator[str]:
    """The address of a program that answers every request so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 - as the library calls it

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>"), (200, b'{"message": "ok"}'), (200, b"[1]"), (404, b"nothing"), (302, b"")],
    ids=["page", "object", "list", "nowhere", "elsewhere"],
)
@pytest.mark.parametrize("command", [["runs"], ["run", "tiny"], ["logs", "x"], ["sizes"], ["doctor"]], ids=" ".join)
def test_what_is_no_control_plane_is_told(
    command: list[str], status: int, body: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(status, body) as url:
        assert main([*command, "--url", url]) == 3
    told = f"error: what answers at {url} is no control plane of TeraGPT; try: --url with its address\n"
    assert capsys.readouterr() == ("", told)


def test_a_control_plane_of_another_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(200, b'{"name": "TeraGPT", "version": "9.9"}') as url:
        assert main(["runs", "--url", url]) == 1
    assert f"error: the control plane at {url} is TeraGPT 9.9, and this command is " in capsys.readouterr().err


def test_a_backup_of_what_is_no_database_is_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(200, b"<html>") as url:
        assert main(["backup", str(tmp_path / "copy.db"), "--url", url]) == 1
    assert "no database of SQLite" in capsys.readouterr().err
    assert list(tmp_path.glob("*.db*")) == []
