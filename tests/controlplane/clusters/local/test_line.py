from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from controlplane.clusters.local.line import Claim, giving_way, in_order
from controlplane.clusters.local.share import Share, lacks, total

MACHINE = Share(Decimal(8), Decimal(64), Decimal(4))


def claim(number: int, cpus: int = 1, rank: int = 0, owner: str = "", gpus: int = 0, stopping: bool = False) -> Claim:
    return Claim(f"c{number}", number, rank, owner, Share(Decimal(cpus), Decimal(0), Decimal(gpus)), stopping)


def order(waiting: list[Claim], held: list[Claim] | None = None, **served: int) -> list[int]:
    return [one.number for one in in_order(waiting, held or [], MACHINE, served)]


def test_the_higher_priority_goes_first_and_among_equals_who_came_first() -> None:
    assert order([claim(1, rank=-1), claim(2), claim(3, rank=1), claim(4)]) == [3, 2, 4, 1]


def test_among_equals_whoever_holds_less_of_the_machine_goes_first() -> None:
    waiting = [claim(1, owner="ann"), claim(2, owner="bob"), claim(3)]
    held = [claim(8, cpus=2, owner="ann"), claim(9, cpus=1, owner="bob")]
    assert order(waiting, held) == [3, 2, 1]
    assert order([claim(1, owner="ann", rank=1), claim(2, owner="bob")], held) == [1, 2]
    held = [claim(8, cpus=4, owner="ann"), claim(9, cpus=1, gpus=3, owner="bob")]  # bob holds most of the GPUs
    assert order(waiting, held) == [3, 1, 2]


def test_where_nobody_holds_anything_who_was_served_last_comes_last() -> None:
    waiting = [claim(1, owner="ann"), claim(2, owner="ann"), claim(3, owner="bob"), claim(4, owner="eve")]
    assert order(waiting, ann=2, bob=1) == [4, 3, 1, 2]


def names(of: Claim, held: list[Claim], free: int) -> list[int]:
    return [one.number for one in giving_way(of, held, Share(Decimal(free), Decimal(0), Decimal(0)))]


def test_the_lowest_and_latest_give_way_and_no_more_than_it_takes() -> None:
    held = [claim(1, cpus=2, rank=-1), claim(2, cpus=2, rank=-1), claim(3, cpus=2)]
    assert names(claim(9, cpus=3, rank=1), held, free=1) == [2]
    assert names(claim(9, cpus=5, rank=1), held, free=1) == [2, 1]
    assert names(claim(9, cpus=3), held, free=1) == [2]
    assert names(claim(9, cpus=3, rank=-1), held, free=1) == []
    gpu = claim(5, cpus=0, gpus=1, rank=-1)
    assert names(claim(9, cpus=3, rank=1), [claim(1, cpus=3, rank=-1), gpu], free=0) == [1]


def test_nobody_gives_way_where_that_is_not_enough_or_others_stop_already() -> None:
    held = [claim(1, cpus=2, rank=-1), claim(2, cpus=2, rank=1)]
    assert names(claim(9, cpus=4, rank=1), held, free=1) == []
    assert names(claim(9, cpus=2, rank=1), [claim(1, cpus=2, stopping=True), claim(2, rank=-1)], free=0) == []


CLAIMS = st.lists(
    st.builds(
        claim, st.integers(1, 99), st.integers(0, 4), st.integers(-1, 1), gpus=st.integers(0, 2), stopping=st.booleans()
    ),
    max_size=6,
    unique_by=lambda one: one.number,
)


@given(CLAIMS, st.builds(claim, st.just(100), st.integers(0, 8), st.integers(-1, 1), gpus=st.integers(0, 4)))
def test_who_gives_way_is_lower_makes_room_and_nobody_could_be_spared(held: list[Claim], asked: Claim) -> None:
    free = Share(Decimal(1), Decimal(0), Decimal(1))
    room = free + total(one.share for one in held if one.stopping)
    chosen = giving_way(asked, held, free)
    assert all(one.rank < asked.rank and not one.stopping for one in chosen)
    if chosen:
        freed = room + total(one.share for one in chosen)
        assert lacks(asked.share, room)
        assert not lacks(asked.share, freed)
        assert all(lacks(asked.share, freed - one.share) for one in chosen)
