from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from controlplane.domain.errors import FolderInUse, InvalidSpec, KeyReused, NameInUse, NotFound
from controlplane.domain.spec import parse_spec
from controlplane.services import insertion, runs
from controlplane.services.context import Context
from controlplane.services.views import RunView
from controlplane.store import moves
from controlplane.store.store import Store
from controlplane.store.tables import Attempt, IdempotencyKey, Outbox, Run
from tests.controlplane.memory_cluster import Clock


def ask(context: Context, key: str | None = None, principal: str = "local", **spec: Any) -> tuple[RunView, bool]:
    return runs.create_run(context, parse_spec({"size": "tiny", **spec}), idempotency_key=key, principal=principal)


def counts(store: Store) -> dict[str, int | None]:
    with store.read() as session:
        tables = (Run, Attempt, Outbox, IdempotencyKey)
        return {one.__tablename__: session.scalar(select(func.count()).select_from(one)) for one in tables}


def test_a_run_shows_everything_that_it_became(context: Context) -> None:
    run, replayed = ask(context, name="Erster Lauf", labels={"team": "lm"}, train={"seed": 7})
    assert not replayed
    assert run.id.startswith("run_")
    assert run.folder == str(context.home / "runs" / run.id) == run.resolved["config"]["out"]
    assert run.spec == {"size": "tiny", "name": "Erster Lauf", "labels": {"team": "lm"}, "train": {"seed": 7}}
    assert run.resolved["config"]["seed"] == 7
    assert run.labels == {"team": "lm"}
    assert run.kubernetes == {
        "cluster": "memory",
        "namespace": "default",
        "kind": "PyTorchJob",
        "name": f"erster-lauf-{run.id[-8:].lower()}-1",
    }
    assert runs.get(context, run.id) == runs.get(context, "Erster Lauf") == run


def test_a_run_that_is_not_there_is_not_found(context: Context) -> None:
    for call in (runs.get, runs.cancel_run, runs.retry_run):
        with pytest.raises(NotFound, match="no run 'run_x'"):
            call(context, "run_x")


def test_the_same_key_and_body_give_the_run_that_they_made(context: Context) -> None:
    first, replayed = ask(context, "key", train={"seed": 1})
    assert not replayed
    runs.cancel_run(context, first.id)
    again, replayed = ask(context, "key", train={"seed": 1})
    assert replayed
    assert (again.id, again.desired) == (first.id, "cancelled")
    assert counts(context.store) == {"runs": 1, "attempts": 1, "outbox": 1, "idempotency_keys": 1}


def test_a_key_with_another_body_is_refused_with_the_run_that_it_made(context: Context) -> None:
    first, _ = ask(context, "key")
    with pytest.raises(KeyReused, match=first.id):
        ask(context, "key", train={"seed": 1})
    with pytest.raises(KeyReused):
        runs.retry_run(context, first.id, idempotency_key="key")


def test_keys_belong_to_their_principal_and_are_forgotten_after_a_week(context: Context, clock: Clock) -> None:
    first, _ = ask(context, "key", principal="ann")
    second, _ = ask(context, "key", principal="bob")
    assert first.id != second.id
    clock.sleep(8 * 86_400)
    ask(context, "other")
    third, replayed = ask(context, "key", principal="ann")
    assert not replayed
    assert third.id != first.id


def test_two_live_runs_cannot_share_a_name_or_a_folder(context: Context, tmp_path: Path) -> None:
    folder = str(tmp_path / "mine")
    first, _ = ask(context, name="mine", checkpoint={"uri": folder})
    with pytest.raises(NameInUse, match=first.id) as caught:
        ask(context, name="mine")
    assert caught.value.holder == first.id
    with pytest.raises(FolderInUse, match=first.id):
        ask(context, checkpoint={"uri": folder})


def test_many_threads_with_one_key_make_one_run(context: Context) -> None:
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: ask(context, "key"), range(64)))
    assert len({run.id for run, _ in made}) == 1
    assert [replayed for _, replayed in made].count(False) == 1
    assert counts(context.store)["runs"] == 1


def test_many_threads_with_one_name_make_one_run(context: Context) -> None:
    def attempt(_: int) -> str:
        try:
            return ask(context, name="mine")[0].id
        except NameInUse as error:
            return error.holder

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(attempt, range(64)))) == 1
    assert counts(context.store) == {"runs": 1, "attempts": 1, "outbox": 1, "idempotency_keys": 0}


@pytest.mark.parametrize("broken", ["add_attempts", "add_first_events"])
def test_a_failure_before_the_commit_creates_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(insertion, broken, fail)
    with pytest.raises(OSError, match="disk full"):
        ask(context, "key")
    assert set(counts(context.store).values()) == {0}
    monkeypatch.undo()
    assert not ask(context, "key")[1]


def test_a_bad_spec_creates_nothing(context: Context) -> None:
    with pytest.raises(InvalidSpec):
        ask(context, train={"heads": 5})
    assert set(counts(context.store).values()) == {0}


def test_a_move_is_made_only_from_where_it_may_leave(context: Context, run: RunView) -> None:
    from controlplane.domain.phases import RUNS, SUBMIT

    def write(transition: Any) -> bool:
        return context.store.write(lambda t: moves.move(t, run.id, transition, 1.0))

    assert not write(RUNS)
    assert write(SUBMIT)
    runs.cancel_run(context, run.id)
    assert not write(SUBMIT)
    assert runs.get(context, run.id).phase == "submitting"
