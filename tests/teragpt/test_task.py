"""What a pod does with a run's folder for a caller who cannot see it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from teragpt import task
from teragpt.storage import Disk, folder_at
from tests.teragpt.ranks import SMALL, train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("task") / "run"
    code, output = train({**SMALL, "steps": 4, "checkpoint_every": 2, "out": out})
    assert code == 0, output
    return out


@contextmanager
def taking(monkeypatch: pytest.MonkeyPatch) -> Generator[list[tuple[str, str, bytes]]]:
    """A control plane that takes what is handed back: path, bearer, body."""
    taken: list[tuple[str, str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            taken.append((self.path, self.headers["Authorization"], body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("TERAGPT_RUN_URL", f"http://127.0.0.1:{server.server_port}/v1/runs/run_1")
    monkeypatch.setenv("TERAGPT_RUN_TOKEN", "secret")
    yield taken
    server.shutdown()
    server.server_close()


def test_a_sample_is_printed_behind_its_prompt(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert task.main(["sample", str(run), "--tokens", "5", "--seed", "1", "--", "--def main("]) == 0
    assert capsys.readouterr().out.startswith("--def main(")


def test_an_export_is_handed_back_as_an_archive(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with taking(monkeypatch) as taken:
        assert task.main(["export", str(run)]) == 0
    ((path, bearer, body),) = taken
    assert (path, bearer) == ("/v1/runs/run_1/output", "Bearer secret")
    with tarfile.open(fileobj=io.BytesIO(body)) as archive:
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(archive.getnames())


def test_a_copy_has_the_newest_checkpoint_alone_and_can_be_sampled_from(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with taking(monkeypatch) as taken:
        assert task.main(["pull", str(run)]) == 0
    with tarfile.open(fileobj=io.BytesIO(taken[0][2])) as archive:
        archive.extractall(tmp_path / "copy", filter="data")
    steps = [path.name for path in (tmp_path / "copy" / "checkpoints").iterdir() if path.is_dir()]
    assert len([path for path in (run / "checkpoints").iterdir() if path.is_dir()]) == 2
    assert steps == ["step-00000004-attempt-1"]
    assert task.main(["sample", str(tmp_path / "copy"), "x", "--tokens", "2"]) == 0
    assert capsys.readouterr().err == ""


def test_a_folder_without_a_checkpoint_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("sample", "export", "pull"):
        assert task.main([name, str(tmp_path), *(["x"] if name == "sample" else [])]) == 2
        assert "a run folder with a published checkpoint" in capsys.readouterr().err


def test_files_have_nowhere_to_go_without_a_control_plane(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TERAGPT_RUN_URL", raising=False)
    assert task.main(["pull", str(run)]) == 2
    assert "TERAGPT_RUN_URL" in capsys.readouterr().err


def test_a_run_in_an_object_store_is_handed_back_and_removed(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"memory://{tmp_path.name}/run_1"
    for path in run.rglob("*"):
        if path.is_file():
            (folder_at(url, "run") / "/".join(path.relative_to(run).parts[:-1])).write(path.name, path.read_bytes())
    with taking(monkeypatch) as taken:
        assert task.main(["pull", url]) == 0
    with tarfile.open(fileobj=io.BytesIO(taken[0][2])) as archive:
        archive.extractall(tmp_path / "copy", filter="data")
    assert task.main(["sample", str(tmp_path / "copy"), "x", "--tokens", "2"]) == 0
    assert [path.name for path in (tmp_path / "copy" / "checkpoints").glob("step-*")] == ["step-00000004-attempt-1"]
    assert task.main(["remove", url, "run_1"]) == 0
    assert not task.files(folder_at(url, "run"))
    assert f"removed {url}" in capsys.readouterr().out


def test_a_folder_is_removed_with_all_that_lies_in_it_there_or_not(tmp_path: Path) -> None:
    folder = tmp_path / "run_1"
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "checkpoints" / "step-1" / "part").write_text("x")
    for _ in range(2):
        assert task.main(["remove", str(folder), "run_1"]) == 0
        assert not folder.exists()


def test_a_folder_of_another_name_and_one_that_stays_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert task.main(["remove", str(tmp_path), "run_1"]) == 2
    assert "allowed: the folder of run run_1, which bears its name" in capsys.readouterr().err
    (tmp_path / "run_1").mkdir()
    (tmp_path / "run_1" / "kept").write_text("x")
    monkeypatch.setattr(Disk, "remove", lambda *_: None)
    assert task.main(["remove", str(tmp_path / "run_1"), "run_1"]) == 2
    assert "kept stayed" in capsys.readouterr().err
