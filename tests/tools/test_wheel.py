"""The wheel builds, holds what it must, and each half of it works where only that half's extra is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.blocks import ROOT

BIN = Path(sys.executable).parent
pytestmark = pytest.mark.deep  # gigabytes are installed twice


def run(*command: str | Path, cwd: Path = ROOT, code: int = 0) -> str:
    result = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True, env=environment())
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def environment() -> dict[str, str]:
    """This process's, without what would lead an interpreter or the command line astray."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TERAGPT_", "COV_"))}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run(BIN / "python", "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT)
    (found,) = out.glob("teragpt-*.whl")
    return found


@pytest.fixture
def installed(request: pytest.FixtureRequest, wheel: Path) -> Iterator[Path]:
    """The programs of an empty environment into which the wheel went with one extra.

    It lies in .venv, on one file system with it, so that uv links gigabytes from its cache where it can.
    """
    with tempfile.TemporaryDirectory(dir=BIN.parent, prefix="empty-") as folder:
        run(BIN / "uv", "venv", "--quiet", "--python", BIN / "python", folder)
        programs = Path(folder, "bin")
        target = ["--python", str(programs / "python"), "-c", "constraints.txt"]
        run(BIN / "uv", "pip", "install", "--quiet", *target, f"{wheel}[{request.param}]")
        yield programs


def test_the_wheel_holds_both_packages_their_data_and_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    ours = {
        str(path.relative_to(ROOT))
        for package in ("teragpt", "controlplane")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours <= set(names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"teragpt", "controlplane"}


@pytest.mark.parametrize("installed", ["train"], indirect=True)
def test_train_alone_trains_and_samples(installed: Path, tmp_path: Path) -> None:
    python = installed / "python"
    missing = "import importlib.util as u; print([n for n in ('fastapi', 'sqlalchemy', 'uvicorn') if u.find_spec(n)])"
    assert run(python, "-c", missing, cwd=tmp_path).strip() == "[]"
    short = ["--size", "tiny", "--steps", "1", "--eval_sequences", "2"]
    run(python, "-m", "teragpt.train", *short, "--out", "run", cwd=tmp_path)
    sample = "from teragpt.inference.sample import stream; print('|'.join(stream('run', 'def ', tokens=3, seed=1)))"
    assert run(python, "-c", sample, cwd=tmp_path)


@pytest.mark.parametrize("installed", ["serve"], indirect=True)
def test_serve_alone_answers_and_names_the_other_extra(installed: Path, tmp_path: Path) -> None:
    teragpt = installed / "teragpt"
    checkpoint = tmp_path / "run/checkpoints/step-00000001-attempt-1"
    checkpoint.mkdir(parents=True)
    for file in (tmp_path / "run/config.json", checkpoint / "meta.json"):
        file.write_text("{}", "utf-8")
    assert "needs the [train] extra, of which torch is not installed" in run(
        teragpt, "sample", "run", cwd=tmp_path, code=6
    )
    command = [str(teragpt), "up", "--home", str(tmp_path / "home"), "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment()) as server:
        try:
            url = address(tmp_path / "home/server.json", server)
            with urllib.request.urlopen(f"{url}/v1/sizes") as reply:  # noqa: S310 - our own server
                assert json.load(reply)["items"]
            assert "124m" in run(teragpt, "sizes", "--url", url, cwd=tmp_path)
        finally:
            server.terminate()
    assert server.returncode == 0


def address(file: Path, server: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert server.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return str(json.loads(file.read_text("utf-8"))["url"])
