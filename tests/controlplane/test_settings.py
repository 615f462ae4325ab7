from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.options import SettingsError
from controlplane.settings import Listen, Settings, build, hosts, leaves, read


def test_nothing_given_is_a_loopback_server_without_a_token() -> None:
    settings = read([], {"HOME": "/somewhere"})
    assert (settings.listen.host, settings.listen.port) == ("127.0.0.1", 8000)
    assert settings.loopback
    assert not settings.token_required
    assert settings.home == Path("~/.teragpt").expanduser()


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_default() -> None:
    environ = {"TERAGPT_PORT": "9001", "TERAGPT_HEARTBEAT_S": "2.5"}
    settings = read(["--port", "9002"], environ)
    assert settings.listen.port == 9002
    assert settings.streams.heartbeat_s == 2.5


@pytest.mark.parametrize("words", [["--require-token"], ["--require-token", "true"]])
def test_a_switch_needs_no_value(words: list[str]) -> None:
    assert read(words, {}).authentication.require_token
    spoken = read(["--require-token", "false"], {"TERAGPT_REQUIRE_TOKEN": "true"})
    assert not spoken.authentication.require_token


@pytest.mark.parametrize(
    ("words", "named", "allowed"),
    [
        (["--port", "-1"], "--port", "0 to 65535"),
        (["--port=65536"], "--port", "0 to 65535"),
        (["--port", "\uff19"], "--port", "0 to 65535"),
        (["--port", "http"], "--port", "0 to 65535"),
        (["--heartbeat-s", "nan"], "--heartbeat-s", "0.05 to 300"),
        (["--heartbeat-s", "soon"], "--heartbeat-s", "0.05 to 300"),
        (["--log-level", "loud"], "--log-level", "debug, info, warning, error"),
        (["--require-token", "maybe"], "--require-token", "true, false"),
        (["--host", ""], "--host", "an IP address or a host name"),
        (["--host", "a b"], "--host", "an IP address or a host name"),
        (["--home", ""], "--home", "the path of a folder"),
        (["--home", "~nobody-of-this-name/x"], "--home", "the path of a folder"),
        (["--hom", "/srv"], "--hom", "--help lists the options"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_what_is_allowed(words: list[str], named: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(words, {})
    assert named in str(caught.value)
    assert allowed in str(caught.value)


def test_a_bad_variable_is_named_as_the_variable() -> None:
    with pytest.raises(SettingsError, match="TERAGPT_PORT: got 'x'"):
        build({}, {"TERAGPT_PORT": "x"})


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(SettingsError, match="--colour"):
        read(["--colour", "red"], {})


def test_the_variable_that_kubernetes_sets_for_a_service_is_not_ours() -> None:
    assert read([], {"TERAGPT_PORT": "tcp://10.0.0.7:8000"}).listen.port == 8000


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_a_bind_that_others_can_reach_demands_a_token(host: str) -> None:
    assert Settings(listen=Listen(host=host)).token_required


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "LOCALHOST"])
def test_loopback_demands_none(host: str) -> None:
    assert not Settings(listen=Listen(host=host)).token_required


def test_brackets_of_an_ipv6_address_are_dropped() -> None:
    assert read(["--host", "[::1]"], {}).listen.host == "::1"


def test_the_api_goes_by_loopback_and_by_what_it_is_bound_to() -> None:
    assert hosts(Settings()) == {"127.0.0.1", "localhost", "::1"}
    assert "box.example" in hosts(Settings(listen=Listen(host="Box.example")))
    assert socket.gethostname().lower() in hosts(Settings(listen=Listen(host="0.0.0.0")))


def test_the_tree_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().home = Path("/")  # type: ignore[misc]


def test_every_setting_says_what_it_means_and_has_a_name_of_its_own() -> None:
    names = [leaf.field.name for leaf in leaves()]
    assert len(set(names)) == len(names)
    assert all(leaf.field.metadata["help"].endswith(".") for leaf in leaves())


def test_every_setting_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "settings.md").read_text("utf-8")
    for leaf in leaves():
        assert f"`{leaf.flag}`" in text
        assert f"`{leaf.variable}`" in text


def test_help_lists_every_flag_and_variable() -> None:
    command = [sys.executable, "-c", "import sys; from controlplane.settings import read; read(['--help'], {})"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    words = "".join(done.stdout.split())
    assert all(leaf.flag in words and leaf.variable in words for leaf in leaves())


POSTGRES = "postgresql://me:hunter2@db:5432/runs"


def test_a_database_comes_from_a_flag_a_variable_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(f"{POSTGRES}\n")
    assert read([], {}).database.url == ""
    assert read(["--database-url", POSTGRES], {}).database.url == POSTGRES
    assert read([], {"TERAGPT_DATABASE_URL": POSTGRES}).database.url == POSTGRES
    assert read([], {"TERAGPT_DATABASE_URL_FILE": str(file)}).database.url == POSTGRES
    with pytest.raises(SettingsError, match="--database-url and --database-url-file are both given"):
        read(["--database-url", POSTGRES, "--database-url-file", str(file)], {})


def test_a_password_stands_in_no_message_and_no_representation(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("mysql://me:hunter2@db/runs")
    assert "hunter2" not in repr(read(["--database-url", POSTGRES], {}))
    for words in (
        ["--database-url", "mysql://me:hunter2@db/runs"],
        ["--database-url", "postgresql://me:hunter2@db:port/runs"],
        ["--database-url", "postgresql://me:hunter2@db"],
        ["--database-url-file", str(file)],
    ):
        with pytest.raises(SettingsError, match="a URL like postgresql://user:password@host:5432/database") as caught:
            read(words, {})
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--database-url-file", "/nowhere"], "a file that exists"),
        (["--database-url-file", "/dev/null"], "a file that exists"),
        (["--role", "api"], "--role api needs a database that processes can share: give Postgres"),
        (["--role", "api", "--database-url", POSTGRES], "--role api needs a cluster that processes can share"),
        (["--role", "leader"], "all, api, reconciler"),
        (["--lease-s", "0.5"], "a number from 1 to 300"),
    ],
)
def test_what_cannot_serve_several_processes_is_refused_with_the_mend(words: list[str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        read(words, {})


def test_a_role_goes_with_a_database_and_a_cluster_that_are_shared() -> None:
    settings = read(["--role", "api", "--cluster", "kubernetes", "--database-url", POSTGRES], {})
    assert (settings.database.role, settings.database.lease_s) == ("api", 15.0)


def test_namespaces_are_named_with_commas_each_once() -> None:
    assert build({"namespace": "team-a,team-b,team-a"}, {}).execution.namespaces == ("team-a", "team-b")
    assert build({}, {}).execution.namespaces == ()
    for wrong in ("team-a,", "team-a, team-b", "Team"):
        with pytest.raises(SettingsError, match="DNS labels with commas between them"):
            build({"namespace": wrong}, {})


def test_users_of_the_cluster_need_one_that_knows_users() -> None:
    assert build({"auth": "kubernetes", "cluster": "kubernetes"}, {}).token_required
    with pytest.raises(SettingsError, match="--auth kubernetes needs a cluster that knows users"):
        build({"auth": "kubernetes"}, {})


DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"auth": "everyone"}, "--auth: got 'everyone'; allowed: one of token, tokens, kubernetes, oidc, proxy, none"),
        ({"auth": "oidc"}, "--auth oidc needs --oidc-issuer"),
        ({"auth": "tokens"}, "--auth tokens needs --tokens-file"),
        ({"auth": "proxy"}, "--auth proxy needs --proxy-networks or --proxy-secret-file"),
        ({"oidc_issuer": "https://id.example.com"}, "--oidc-issuer is of --auth oidc, not token"),
        ({"auth": "none", "proxy_networks": "10.0.0.0/8"}, "--proxy-networks is of --auth proxy, not none"),
        ({"auth": "none", "host": "0.0.0.0"}, "--auth none lets everyone who reaches this address do everything"),
        ({"auth": "none", "require_token": "true"}, "--require-token and --auth none contradict each other"),
        ({"open_to_anyone": "true"}, "--open-to-anyone is of --auth none, not token"),
        ({"oidc_issuer": "http://id.example.com"}, "allowed: a URL that begins with https://"),
        ({"oidc_issuer": "https://id.example.com?x=1"}, "allowed: a URL that begins with https://"),
        ({"oidc_algorithms": "RS256,HS256"}, "got 'RS256,HS256'; allowed: with commas between them, RS256, RS384"),
        ({"oidc_algorithms": "none"}, "got 'none'; allowed"),
        ({"oidc_clock_skew_s": "601"}, "allowed: a number from 0 to 600"),
        ({"proxy_networks": "10.0.0.1/8"}, "allowed: networks with commas between them, such as 10.0.0.0/24"),
        ({"proxy_user_header": "X User"}, "allowed: the name of a header"),
        ({"allowed_hosts": "a.example:80"}, "allowed: host names with commas between them, without ports"),
        ({"tokens_file": "/nowhere"}, "allowed: the path of a file that exists"),
        ({"proxy_secret_file": "/nowhere"}, "allowed: the path of a file that exists"),
    ],
)
def test_means_to_know_users_that_cannot_be_are_refused_at_start(given: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        build(given, {})
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "content", ["", "# none", "ada", f"ada sha256:{DIGEST}x", f"ada {DIGEST}", f"ada sha256:{DIGEST}\nsecret-token"]
)
def test_a_file_of_tokens_with_a_line_that_is_none_is_refused_and_no_line_is_shown(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(SettingsError, match="--tokens-file: got something else; allowed") as caught:
        build({"auth": "tokens", "tokens_file": str(tmp_path / "tokens")}, {})
    assert "secret-token" not in str(caught.value)


def test_means_to_know_users_ask_everyone_for_a_token_on_loopback_too(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"ada   sha256:{DIGEST}\n")
    (tmp_path / "secret").write_text("hush\n")
    for given in (
        {"auth": "oidc", "oidc_issuer": "https://id.example.com/"},
        {"auth": "oidc", "oidc_issuer": "http://localhost:5556/dex"},
        {"auth": "tokens", "tokens_file": str(tmp_path / "tokens")},
        {"auth": "proxy", "proxy_secret_file": str(tmp_path / "secret")},
        {"auth": "proxy", "proxy_networks": "10.0.0.0/24,fd00::/64"},
    ):
        settings = build(given, {})
        assert settings.token_required
        assert settings.authentication.oidc_issuer == given.get("oidc_issuer", "")
        assert "hush" not in repr(settings)


def test_an_open_control_plane_is_one_that_was_asked_for() -> None:
    assert not build({"auth": "none"}, {}).token_required
    assert not build({"auth": "none", "host": "0.0.0.0", "open_to_anyone": "true"}, {}).token_required
    assert hosts(build({"allowed_hosts": "A.example,b"}, {})) >= {"a.example", "b"}
