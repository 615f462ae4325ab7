from __future__ import annotations

import contextlib
import http.client
import json
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from controlplane.client import ApiError, Client
from controlplane.execution import StartError
from controlplane.server import address, bound, ensure_token, main, write_private
from controlplane.settings import Listen, Settings

DEADLINE_S = 60.0
STOPS_WITHIN_S = 15.0  # two seconds on an idle machine
STEPS = 150
READ_ONLY = Path("/sys/teragpt")  # no one can make a folder there, root included


class Server:
    """A control plane in a process of its own."""

    def __init__(self, home: Path, *options: str) -> None:
        self.home, self.log = home, home.with_suffix(".log")
        command = [sys.executable, "-m", "controlplane.server", "--home", str(home), "--port", "0", *options]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stderr=log)

    def facts(self) -> dict[str, Any]:
        """What it says of itself, as soon as it does."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            with contextlib.suppress(OSError):
                facts: dict[str, Any] = json.loads((self.home / "server.json").read_text())
                if facts["pid"] == self.process.pid:
                    return facts
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    @property
    def url(self) -> str:
        return str(self.facts()["url"])

    def stop(self, number: int = signal.SIGTERM) -> str:
        """End it; returns what it logged."""
        self.process.send_signal(number)
        self.process.wait(STOPS_WITHIN_S)
        return self.log.read_text()

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path: Path) -> Generator[Callable[..., Server]]:
    """Starts control planes, all on one home; none outlives the test."""
    servers: list[Server] = []

    def start(*options: str) -> Server:
        servers.append(Server(tmp_path / "home", *options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


Start = Callable[..., Server]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """A control plane that no test changes."""
    server = Server(tmp_path_factory.mktemp("shared") / "home")
    yield server
    server.kill()


def test_it_serves_says_where_and_stops_when_told(start: Start) -> None:
    server = start("--log-level", "debug")
    facts = server.facts()
    with Client(facts["url"]) as client:
        assert client.ready()["ready"]
    told = server.stop()
    assert server.process.returncode == 0
    assert not (server.home / "server.json").exists()
    lines = told.splitlines()
    assert all(line.startswith("time=") for line in lines)
    assert f"msg=ready url={facts['url']}" in told
    assert "msg=request method=GET path=/v1/readyz status=200" in told
    assert "msg=stopped" in lines[-1]


def test_an_idle_connection_is_closed_by_the_client_first(running: Server) -> None:
    kept = httpx.Limits().keepalive_expiry
    assert kept is not None
    with contextlib.closing(http.client.HTTPConnection(urlsplit(running.url).netloc)) as connection:
        connection.request("GET", "/livez")
        assert connection.getresponse().read()
        closed, _, _ = select.select([connection.sock], [], [], kept + 1)
        assert not closed


@pytest.mark.unmeasured
def test_it_is_small_and_imports_no_torch(running: Server) -> None:
    httpx.get(f"{running.url}/openapi.json", timeout=DEADLINE_S).raise_for_status()
    process = psutil.Process(running.process.pid)
    mapped = {Path(entry.path).name for entry in process.memory_maps()}
    assert not any(name.startswith("libtorch") for name in mapped)
    assert process.memory_info().rss < 150e6


@pytest.mark.unmeasured
def test_a_run_trains_to_its_end_whatever_becomes_of_the_control_plane(start: Start) -> None:
    first = start()
    small = {"dim": 64, "depth": 2, "heads": 2, "kv_heads": 1, "ffn": 128, "context": 64, "global_batch_tokens": 1024}
    train = {**small, "steps": STEPS, "eval_every": STEPS, "eval_sequences": 4, "checkpoint_every": STEPS // 2}
    with Client(first.url) as client:
        run = client.create({"size": "tiny", "name": "real", "compute": {"processes_per_node": 1}, "train": train})[
            "id"
        ]
        lines = client.stream_logs(run)
        told = [next(lines)]
        while not told[-1].startswith("step "):
            told.append(next(lines))
        with httpx.stream("GET", f"{client.url}/runs/{run}/events/stream", timeout=DEADLINE_S) as stream:
            news = stream.iter_lines()
            assert next(news) == ": ping"
            first.stop(signal.SIGINT)
            assert "event: end" not in list(news)
        assert first.process.returncode == 0
        port = client.url.rpartition(":")[2]
        second = start("--port", port)
        second.facts()
        second.kill()
        start("--port", port).facts()
        told += lines
        ended = client.run(run)
        assert (ended["phase"], ended["checkpoint_step"]) == ("succeeded", STEPS)
        assert [attempt["phase"] for attempt in client.attempts(run)] == ["succeeded"]
        took = client.measured(run)
        assert took["measured_over_planned"].keys() == {"step_seconds", "tokens_per_second", "mfu", "peak_memory"}
        assert 0.5 < took["measured_over_planned"]["peak_memory"] < 2
        assert told == client.logs(run).splitlines()
        assert [point["step"] for point in client.metrics(run, keys=["loss"])] == list(range(1, STEPS + 1))
        assert client.metrics(run, keys=["val_loss"])[-1]["step"] == STEPS


def test_nothing_heavy_is_imported_to_say_that_it_cannot_start() -> None:
    script = "import sys, controlplane.server; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"fastapi", "sqlalchemy", "alembic", "uvicorn", "torch", "kubernetes", "pydantic"}
    assert not heavy & set(done.stdout.split())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence that a server says that cannot start."""
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert not told.out
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    return told.err


def test_a_port_in_use_is_said_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = refused(capsys, "--home", str(tmp_path / "home"), "--port", port)
    assert port in told
    assert "--port" in told
    assert not (tmp_path / "home").exists()


def test_a_home_that_another_process_holds_is_said_with_its_pid(
    running: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    pid = running.facts()["pid"]
    before = {path: path.stat().st_mtime_ns for path in running.home.iterdir() if path.suffix == ".json"}
    told = refused(capsys, "--home", str(running.home), "--port", "0")
    assert str(pid) in told
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_home_that_cannot_be_written_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert str(READ_ONLY) in refused(capsys, "--home", str(READ_ONLY), "--port", "0")
    (tmp_path / "file").write_text("")
    assert "file" in refused(capsys, "--home", str(tmp_path / "file"), "--port", "0")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--port", "http"], "--port"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["--colour", "red"], "--colour"),
        (["--host", "192.0.2.1"], "192.0.2.1"),
        (["--run-defaults", "[]"], "--run-defaults: got '[]'; allowed: a JSON object"),
        (["--run-defaults", '{"compute": {"nodes": 2}}'], "--run-defaults: /compute/nodes"),
    ],
)
def test_a_bad_setting_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert named in refused(capsys, "--home", str(tmp_path / "home"), "--port", "0", *arguments)
    assert not (tmp_path / "home").exists()


@pytest.mark.unmeasured
def test_another_bind_than_loopback_demands_the_token_of_the_home(start: Start) -> None:
    server = start("--host", "0.0.0.0", "--auth", "proxy", "--proxy-networks", "10.0.0.0/8")
    facts = server.facts()
    assert facts["token_required"]
    claimed = {"x-forwarded-for": "10.0.0.7", "x-forwarded-user": "ada"}
    assert httpx.get(f"{facts['url']}/runs", headers=claimed).status_code == 401, "who calls is who is connected"
    path = server.home / "token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Client(facts["url"]) as stranger, pytest.raises(ApiError) as caught:
        list(stranger.runs())
    assert caught.value.status == 401
    with Client(facts["url"], path.read_text().strip()) as client:
        assert list(client.runs()) == []
    assert httpx.get(f"{facts['url']}/livez").status_code == 200


def test_the_token_is_made_once_and_kept_private(tmp_path: Path) -> None:
    token = ensure_token(tmp_path)
    (tmp_path / "token").chmod(0o644)
    assert ensure_token(tmp_path) == token
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert len(token) > 40
    (tmp_path / "token").write_text("")
    with pytest.raises(StartError, match="is empty"):
        ensure_token(tmp_path)


def test_files_of_the_home_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "token").mkdir()
    with pytest.raises(StartError, match="token cannot be used"):
        ensure_token(tmp_path)
    with pytest.raises(StartError, match=r"server\.json cannot be written"):
        write_private(tmp_path / "nowhere" / "server.json", "{}")


def test_a_cluster_folder_that_cannot_be_used_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cluster").write_text("not a folder")
    assert "local cluster" in refused(capsys, "--home", str(tmp_path), "--port", "0")


def test_who_calls_before_it_is_ready_waits_for_it() -> None:
    with bound(Listen(port=0)) as listener, socket.create_connection(listener.getsockname(), timeout=5):
        pass


def test_ipv6_loopback_is_listened_on() -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    listen = Listen(host="::1", port=0)
    with bound(listen) as listener, socket.create_connection(listener.getsockname()[:2], timeout=5):
        assert address(Settings(listen=listen), listener) == f"http://[::1]:{listener.getsockname()[1]}"


def test_what_is_bound_everywhere_is_reached_by_loopback() -> None:
    listen = Listen(host="0.0.0.0", port=0)
    with bound(listen) as listener:
        assert address(Settings(listen=listen), listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
