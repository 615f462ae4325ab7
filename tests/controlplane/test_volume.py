"""A data folder on a volume that fills up, or that cannot be written: a real file system of a few megabytes."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.client import ApiError, Client
from tests.controlplane.clusters.kubernetes.hands import kubeconfig

PRIVATE = ["unshare", "--user", "--map-root-user", "--mount"]
DEADLINE_S = 60.0


class Volume:
    """A control plane in a mount namespace of its own, where `home` is a small file system."""

    def __init__(self, home: Path, options: str, config: Path) -> None:
        home.mkdir()
        plane = [sys.executable, "-m", "controlplane.server", "--home", str(home), "--port", "0"]
        plane += ["--cluster", "kubernetes", "--kubeconfig", str(config), "--storage", "pvc://runs"]  # nobody answers
        mount = f"mount -t tmpfs -o {options} none {shlex.quote(str(home))} && exec {shlex.join(plane)}"
        self.process = subprocess.Popen([*PRIVATE, "sh", "-c", mount], stderr=subprocess.PIPE, text=True)
        self.seen = Path(f"/proc/{self.process.pid}/root{home}")

    def url(self) -> str:
        """Where it answers, as soon as it does."""
        deadline = time.monotonic() + DEADLINE_S
        while not (self.seen / "server.json").exists():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        facts: dict[str, Any] = json.loads((self.seen / "server.json").read_text())
        return str(facts["url"])

    def fill(self) -> None:
        """Leave no byte."""
        with (self.seen / "filler").open("wb", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def make_room(self) -> None:
        (self.seen / "filler").unlink()


def create_many(client: Client) -> None:
    """As many runs as a database's log may still take that has room of its own."""
    for _ in range(20):
        client.create({"size": "tiny", "notes": "x" * 10_000})


@pytest.fixture(autouse=True)
def _mountable(tmp_path: Path) -> None:
    if subprocess.run([*PRIVATE, "mount", "-t", "tmpfs", "none", str(tmp_path)], check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system in a namespace of their own")


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    """A control plane on a volume of 48 MiB."""
    volume = Volume(tmp_path / "home", "size=48m", kubeconfig(tmp_path / "config", "http://127.0.0.1:9"))
    yield volume
    volume.process.kill()
    volume.process.communicate()


def test_a_volume_that_fills_up_is_said_loses_nothing_and_is_used_again(volume: Volume) -> None:
    with Client(volume.url()) as client:
        first = client.create({"size": "tiny"})["id"]
        assert client.ready()["components"]["volume"]["ready"]
        volume.fill()
        with pytest.raises(ApiError, match=r"the database cannot be written: .*full") as refused:
            create_many(client)
        assert refused.value.status == 503
        there = client.ready()
        assert there["ready"], "what is stored can be read"
        assert not there["components"]["volume"]["ready"]
        assert "is full (0 of 48 MiB free)" in there["components"]["volume"]["detail"]
        before = {run["id"] for run in client.runs()}
        assert first in before
        volume.make_room()
        later = client.create({"size": "tiny"})["id"]
        assert {run["id"] for run in client.runs()} == {*before, later}
        assert client.ready()["components"]["volume"]["ready"]


@pytest.mark.parametrize(
    ("options", "fill", "why"),
    [("ro", "", "Read-only file system"), ("size=4k", "echo >FOLDER/filler &&", "No space left on device")],
)
def test_a_volume_that_cannot_be_written_at_the_start_is_named_in_one_sentence(
    tmp_path: Path, options: str, fill: str, why: str
) -> None:
    open_it = "import sys; from pathlib import Path; from controlplane.store.folder import DataFolder\n"
    python = shlex.join([sys.executable, "-c", f"{open_it}DataFolder(Path(sys.argv[1]))", str(tmp_path)])
    script = f"mount -t tmpfs -o {options} none {tmp_path} && {fill.replace('FOLDER', str(tmp_path))} {python}"
    done = subprocess.run([*PRIVATE, "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.endswith(f"StoreUnavailable: the data folder {tmp_path} cannot be used: {why}\n")
