from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teragpt.config import ConfigError, Problem
from teragpt.launcher import environment
from teragpt.launcher.environment import FOUR, World, ranks_grace, read_grace, read_report, read_world, termination_log

BY_HAND = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "9994", "RANK": "0", "WORLD_SIZE": "1"}
TORCHRUN = {
    "MASTER_ADDR": "n0",
    "MASTER_PORT": "29500",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
}


def kubeflow(node: int, nodes: int, processes: str) -> dict[str, str]:
    """What Kubeflow's v1 operator sets in a pod: RANK is the node's, WORLD_SIZE counts processes."""
    each = int(processes) if processes.isdigit() else 1
    return {
        "PYTHONUNBUFFERED": "1",
        "MASTER_ADDR": "tiny-master-0",
        "PET_MASTER_ADDR": "tiny-master-0",
        "MASTER_PORT": "23456",
        "PET_MASTER_PORT": "23456",
        "WORLD_SIZE": str(nodes * each),
        "RANK": str(node),
        "PET_NODE_RANK": str(node),
        "PET_NPROC_PER_NODE": processes,
        "PET_NNODES": str(nodes),
    }


def refused(environ: dict[str, str], local_devices: int = 0) -> dict[str, str]:
    """The variables that the error names, each with what is allowed."""
    with pytest.raises(ConfigError) as caught:
        read_world(environ, local_devices)
    for problem in caught.value.problems:
        assert problem.field in str(caught.value)
        assert problem.given == environ.get(problem.field)
    return {problem.field: problem.allowed for problem in caught.value.problems}


def test_no_variables_make_a_world_of_one_process() -> None:
    assert read_world({}) == read_world({"PATH": "x"}, 8) == World(0, 0, 1, 1, "localhost", 9994)


@pytest.mark.parametrize(
    ("rank", "world_size", "devices", "local"),
    [
        (0, 1, 0, (0, 1)),
        (3, 4, 0, (0, 1)),
        (3, 8, 8, (3, 8)),
        (9, 16, 8, (1, 8)),
        (9, 12, 8, (1, 4)),
        (1, 2, 1, (0, 1)),
    ],
)
def test_the_four_variables_alone_fill_one_node_after_another(
    rank: int, world_size: int, devices: int, local: tuple[int, int]
) -> None:
    world = read_world({**BY_HAND, "RANK": str(rank), "WORLD_SIZE": str(world_size)}, devices)
    assert world == World(rank, local[0], world_size, local[1], "10.0.0.1", 9994)


def test_torchruns_variables_hold() -> None:
    assert read_world(TORCHRUN) == read_world(TORCHRUN, 4) == World(5, 1, 8, 4, "n0", 29500)


def test_torchruns_variables_hold_over_those_of_the_operator() -> None:
    assert read_world({**kubeflow(1, 2, "4"), **TORCHRUN}, 4) == World(5, 1, 8, 4, "n0", 29500)


@pytest.mark.parametrize("processes", ["1", "auto", "cpu", "gpu"])
@pytest.mark.parametrize("devices", [0, 1, 8])
def test_kubeflows_variables_hold_at_one_process_a_node(processes: str, devices: int) -> None:
    world = read_world(kubeflow(3, 4, processes), devices)
    assert world == World(3, 0, 4, 1, "tiny-master-0", 23456)


@pytest.mark.parametrize("processes", ["2", "8", "eight", "0", "-1", ""])
def test_several_processes_a_node_need_a_launcher(processes: str) -> None:
    assert "teragpt.launch" in refused({**kubeflow(0, 1, "1"), "PET_NPROC_PER_NODE": processes})["PET_NPROC_PER_NODE"]
    assert set(refused({"PET_NPROC_PER_NODE": processes})) == {"PET_NPROC_PER_NODE"}


def test_a_job_without_a_master_is_not_trained_once_per_node() -> None:
    assert set(refused({"PET_NPROC_PER_NODE": "1", "PET_NNODES": "2"})) == {"PET_NNODES"}
    assert read_world({"PET_NPROC_PER_NODE": "1", "PET_NNODES": "1"}) == World()


@pytest.mark.parametrize(
    "given", [subset for n in range(1, 15) if (subset := [name for i, name in enumerate(FOUR) if n >> i & 1])]
)
def test_one_to_three_of_the_four_name_the_missing(given: list[str]) -> None:
    problems = refused({name: BY_HAND[name] for name in given})
    assert set(problems) == set(FOUR) - set(given)
    assert all("set together or not at all" in allowed for allowed in problems.values())


@pytest.mark.parametrize("missing", [name for name in TORCHRUN if name != "LOCAL_RANK"])
def test_torchruns_variables_come_together(missing: str) -> None:
    assert set(refused({name: value for name, value in TORCHRUN.items() if name != missing})) == {missing}


@pytest.mark.parametrize("base", [BY_HAND, TORCHRUN])
@pytest.mark.parametrize(
    ("name", "bad"),
    [
        (name, bad)
        for name in ("MASTER_PORT", "RANK", "WORLD_SIZE")
        for bad in ("", " ", "x", "1.0", "-1", "+1", "1_0", "٣", "9" * 5000, "0x1", "nan")
    ]
    + [("MASTER_PORT", "0"), ("MASTER_PORT", "65536"), ("WORLD_SIZE", "0"), ("WORLD_SIZE", "1048577")]
    + [("MASTER_ADDR", ""), ("MASTER_ADDR", " ")],
)
def test_a_malformed_variable_is_named(base: dict[str, str], name: str, bad: str) -> None:
    assert name in refused({**base, name: bad})


@pytest.mark.parametrize(
    ("base", "change", "named"),
    [
        (BY_HAND, {"RANK": "1"}, "RANK"),
        (TORCHRUN, {"RANK": "8"}, "RANK"),
        (TORCHRUN, {"LOCAL_RANK": "4"}, "LOCAL_RANK"),
        (TORCHRUN, {"LOCAL_RANK": ""}, "LOCAL_RANK"),
        (TORCHRUN, {"LOCAL_WORLD_SIZE": "9"}, "LOCAL_WORLD_SIZE"),
        (TORCHRUN, {"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE"),
    ],
)
def test_a_place_outside_the_world_is_refused(base: dict[str, str], change: dict[str, str], named: str) -> None:
    assert set(refused({**base, **change})) == {named}


def test_more_ranks_than_devices_are_refused() -> None:
    assert "below 2, the devices" in refused({**TORCHRUN, "LOCAL_RANK": "2"}, 2)["LOCAL_RANK"]


def test_every_problem_is_told_at_once() -> None:
    assert set(refused({"RANK": "9", "WORLD_SIZE": "2", "MASTER_PORT": "x"})) == {"MASTER_ADDR", "MASTER_PORT", "RANK"}


NAMES = (*FOUR, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PET_NPROC_PER_NODE", "PET_NNODES")
VALUES = st.sampled_from(["", "0", "1", "2", "3", "8", "70000", "-1", "x", "auto", "host"]) | st.text(
    "019 x-٣", max_size=5
)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES), st.integers(0, 8))
def test_any_environment_gives_a_sound_place_or_a_named_problem(environ: dict[str, str], devices: int) -> None:
    world, problems = World(), tuple[Problem, ...]()
    try:
        world = read_world(environ, devices)
    except ConfigError as error:
        problems = error.problems
    assert {problem.field for problem in problems} <= set(NAMES)
    assert 0 <= world.rank < world.world_size
    assert 0 <= world.local_rank < world.local_world_size <= world.world_size
    assert not devices or world.local_rank < devices
    assert 0 < world.master_port < 65536
    assert world.master_addr


def test_the_grace_period_is_kubernetes_own_unless_given() -> None:
    assert read_grace({}) == 30
    assert read_grace({"TERAGPT_GRACE_S": "120"}) == 120


def test_the_launcher_keeps_ten_seconds_of_the_grace_period() -> None:
    assert [ranks_grace(seconds) for seconds in (0, 12, 30, 120)] == [5, 5, 20, 110]


def test_metrics_are_reported_where_a_url_and_a_token_are_given(tmp_path: Path) -> None:
    url, token, file = {"TERAGPT_RUN_URL": "http://plane/runs/a"}, {"TERAGPT_RUN_TOKEN": "t"}, tmp_path / "token"
    assert read_report({}) is read_report(url) is read_report(token) is None
    plain = read_report(url | token)
    assert plain is not None
    assert (plain[0], plain[1]()) == ("http://plane/runs/a", "t")
    rotated = read_report(url | token | {"TERAGPT_RUN_TOKEN_FILE": str(file)})
    assert rotated is not None
    with pytest.raises(FileNotFoundError):  # not there yet: asked again at the next post
        rotated[1]()
    for content in ("one", "two\n"):
        file.write_text(content)
        assert rotated[1]() == content.strip()


@pytest.mark.parametrize("bad", ["", "x", "-1", "nan", "inf", "1e9"])
def test_a_bad_grace_period_is_named(bad: str) -> None:
    with pytest.raises(ConfigError, match="TERAGPT_GRACE_S"):
        read_grace({"TERAGPT_GRACE_S": bad})


def test_the_termination_message_goes_where_told_or_to_kubernetes_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "TERMINATION_LOG", str(tmp_path / "own"))
    assert termination_log({}) is None
    (tmp_path / "own").touch()
    assert termination_log({}) == tmp_path / "own"
    assert termination_log({"TERAGPT_TERMINATION_LOG": "x"}) == Path("x")
