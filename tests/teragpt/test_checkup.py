from __future__ import annotations

from pathlib import Path

from teragpt.health.checkup import by_kind, by_rank, rounds, slow
from tests.teragpt import ranks


def test_what_is_far_below_the_median_is_named() -> None:
    rates = by_rank([100.0, 98.0, 101.0, 60.0])
    assert [(who, round(part, 2)) for who, part in slow(rates)] == [("rank 3", 0.61)]
    assert list(slow(by_rank([100.0, 90.0]))) == []


def test_links_are_compared_with_their_kind() -> None:
    kinds = by_kind([9.0, 1.0, 9.0, 1.0], [0.0, 0.0, 1.0, 1.0])
    assert kinds == {"within nodes": {"0 to 1": 9.0, "2 to 3": 9.0}, "between nodes": {"1 to 2": 1.0, "3 to 0": 1.0}}
    assert not [found for links in kinds.values() for found in slow(links)]


def test_every_link_is_measured_alone() -> None:
    for count in range(2, 9):
        measured = []
        for starts in rounds(count):
            links = [(rank, (rank + 1) % count) for rank in range(count) if starts(rank)]
            ends = [rank for link in links for rank in link]
            assert len(ends) == len(set(ends)), (count, links)
            measured += links
        assert len(measured) == (count if count > 2 else 1)
        assert len(measured) == len(set(measured))


def test_a_job_measures_itself_when_asked(tmp_path: Path) -> None:
    code, output = ranks.train({"out": tmp_path / "run", "steps": 2, "check_up": "on"}, 3)
    assert code == 0, output
    assert "matmul of 512 x 512: " in output
    assert "links within nodes: " in output
    code, output = ranks.train({"out": tmp_path / "other", "steps": 2})
    assert code == 0, output
    assert "matmul" not in output
