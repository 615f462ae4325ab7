from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from teragpt.reporting.events import EventFile, checksum, varint
from teragpt.storage import Disk


def curve(folder: Path, name: str = "loss") -> list[tuple[int, float]]:
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return [(one.step, one.value) for one in reader.Scalars(name)]


Write = Callable[[int, list[tuple[int, float]]], EventFile]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Makes the event file of an attempt with losses of steps."""
    made: list[EventFile] = []

    def write(attempt: int, points: list[tuple[int, float]]) -> EventFile:
        made.append(EventFile(Disk(tmp_path), attempt))
        for step, loss in points:
            made[-1].add(step, 1e9 + step, {"loss": loss})
        return made[-1]

    yield write
    for file in made:
        file.close(whole=True)


def test_tensorboard_reads_what_was_written(tmp_path: Path, write: Write) -> None:
    file = write(1, [(1, 2.5), (2, 1.5), (300, -0.25)])
    file.add(300, 1e9, {"val_loss/web": 4.0})
    assert curve(tmp_path) == [(1, 2.5), (2, 1.5), (300, -0.25)]
    assert curve(tmp_path, "val_loss/web") == [(300, 4.0)]


@pytest.mark.parametrize("torn", [0, 1, 9, 30])
def test_an_attempt_that_goes_on_from_a_step_doubles_no_point(tmp_path: Path, write: Write, torn: int) -> None:
    write(1, [(1, 5.0), (2, 4.0), (3, 3.0)])
    file = tmp_path / "events.out.tfevents.000001"
    file.write_bytes(file.read_bytes()[: file.stat().st_size - torn])  # what a killed process leaves
    write(2, [(3, 3.5), (4, 2.5)])
    write(10, [(4, 2.25)])
    assert curve(tmp_path) == [(1, 5.0), (2, 4.0), (3, 3.5), (4, 2.25)]


def test_a_rewind_takes_the_place_of_what_it_runs_again(tmp_path: Path, write: Write) -> None:
    file = write(1, [(1, 5.0), (2, 4.0), (3, 3.0), (2, 4.5)])
    assert curve(tmp_path) == [(1, 5.0), (2, 4.5)]
    file.add(1, 0.0, {"checkpoint": 1.0})  # told late: another name's steps have nothing to do with it
    file.add(3, 0.0, {"loss": 3.5})
    assert curve(tmp_path) == [(1, 5.0), (2, 4.5), (3, 3.5)]


def test_checksums_and_numbers_are_those_of_their_standards() -> None:
    unmasked = (int.from_bytes(checksum(b"123456789"), "little") - 0xA282EAD8) & 0xFFFFFFFF
    assert (unmasked << 15 | unmasked >> 17) & 0xFFFFFFFF == 0xE3069283  # RFC 3720's check value
    assert [varint(number) for number in (0, 127, 128, 300)] == [b"\0", b"\x7f", b"\x80\x01", b"\xac\x02"]
