from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teragpt.config import ConfigError, resolve
from teragpt.layout import misfits, state
from teragpt.plan import Plan, cluster_of, plan, sweep, within
from teragpt.plan.calibration import Speed, shipped
from teragpt.plan.choice import NEAR, Option, chosen_first, preferred, signature, together
from teragpt.plan.explain import explain
from teragpt.plan.hardware import DEVICES, Cluster
from teragpt.plan.memory import Cut, Ledger
from teragpt.plan.picture import page
from teragpt.plan.planner import planned
from teragpt.plan.report import budget, table
from teragpt.plan.search import Entry, Search, counts
from teragpt.plan.step import Clock
from tests.teragpt import fake

SMALL = settings(max_examples=12, deadline=None, derandomize=True)
SIZES = st.sampled_from(["124m", "1.3b", "8b", "13b"])
CARDS = st.sampled_from(sorted(DEVICES))
GPUS = st.integers(1, 96)
EIGHT = cluster_of("h100", 8)


def plan_or_none(size: str, cluster: Cluster, **given: Any) -> Plan | None:
    try:
        return plan({"size": size, **given}, cluster)
    except ConfigError:
        return None


@SMALL
@given(SIZES, CARDS, GPUS, st.floats(1.0, 3.0))
def test_more_memory_never_makes_a_plan_infeasible_nor_slower_by_over_1_percent(
    size: str, card: str, gpus: int, more: float
) -> None:
    cluster = cluster_of(card, gpus)
    roomy = replace(cluster, device=replace(cluster.device, memory=int(cluster.device.memory * more)))
    found, other = plan_or_none(size, cluster), plan_or_none(size, roomy)
    assert found is None or (other is not None and other.best.seconds <= found.best.seconds * (1 + NEAR))


@SMALL
@given(SIZES, CARDS, GPUS, st.integers(1, 64))
def test_more_gpus_never_lower_the_throughput_of_the_best_plan(size: str, card: str, gpus: int, more: int) -> None:
    cluster = cluster_of(card, max(gpus, DEVICES[card].per_node))
    found, other = plan_or_none(size, cluster), plan_or_none(size, replace(cluster, gpus=cluster.gpus + more))
    assert found is None or (other is not None and other.best.seconds <= found.best.seconds * 1.00001)
    assert other is None or 0 <= other.idle < other.cluster.gpus


@SMALL
@given(SIZES, CARDS, GPUS, st.sampled_from(["adamw", "muon"]), st.sampled_from(["auto", "fp8"]))
def test_every_returned_layout_can_be_built_and_its_parts_add_up(
    size: str, card: str, gpus: int, optimizer: str, precision: str
) -> None:
    found = plan_or_none(size, cluster_of(card, gpus), optimizer=optimizer, precision=precision)
    if found is None:
        return
    for option in (found.best, *(other for other, _ in found.others)):
        stages = option.cut.stages
        config = resolve(
            {"size": size, "optimizer": optimizer, "precision": precision, "num_tokens": 50_304, **option.settings}
        )
        assert not list(misfits(config, stages.ranks))
        kinds = option.memory.kinds
        assert kinds["parameters"] in {state(config, stages.ranks, rank).parameters for rank in (0, stages.ranks - 1)}
        assert sum(option.memory.at_peak.values()) == option.memory.peak <= option.memory.limit
        assert all(taken <= kinds[kind] for kind, taken in option.memory.at_peak.items())
        assert sum(option.step.parts.values()) == pytest.approx(option.seconds)
        assert option.cut.micro_batch * option.cut.count * stages.data_ranks >= config.sequences
    seconds = [option.seconds for option in (found.best, *(other for other, _ in found.others))]
    assert min(seconds) >= seconds[0] / (1 + NEAR)
    assert all(
        "quicker, which is not worth" in why for other, why in found.others if other.seconds < seconds[0] * 0.999
    )


def test_the_best_layout_is_built_on_ranks_that_are_not_there() -> None:
    found = plan({"size": "70b"}, cluster_of("h100", 256))
    for rank in (0, 255):
        assert fake.on_meta(found.config, 256, rank) == state(found.config, 256, rank)


PINNED = st.sampled_from(
    [{}, {"tp": 2}, {"recompute": "full"}, {"dp_replicate": 2}, {"micro_batch": 3}, {"pp": 2}, {"pp": 4, "depth": 19}]
)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(SIZES, CARDS, st.integers(1, 24), PINNED, st.integers(9, 120))
def test_of_all_cuts_there_are_the_best_is_the_simplest_of_those_near_the_quickest(
    size: str, card: str, gpus: int, pinned: dict[str, Any], memory: int
) -> None:
    cluster, config = cluster_of(card, gpus, gpu_memory=memory), resolve({"size": size, "num_tokens": 50_304, **pinned})
    speed = Speed(cluster.device, shipped(), DEVICES["h100"])
    search = Search(Clock(config, cluster, speed), Ledger(config, cluster.device.memory), frozenset(pinned))
    numbers = counts(gpus, cluster.per_node)
    fitting: dict[int, list[Option]] = {}
    least = float("inf")
    for cut in (cut for number in numbers for cut in every_cut(search, number)):
        taken, step, stages = search.ledger.memory(cut), search.clock.step(cut), cut.stages
        seconds = step.seconds
        mesh = replace(stages, dp_replicate=1, dp_shard=stages.data_ranks)
        undivided = replace(cut, stages=mesh, gathered=None)
        bound = search.bound(Entry(search.clock.computing(undivided), 0, undivided))
        assert not taken.fits or bound <= seconds * 1.00001
        assert search.floor_of(mesh) <= seconds
        assert not taken.fits or not cut.gathered or stages.ranks == 1 or search.ledger.may_gather(cut)
        assert search.ledger.floor(cut) <= taken.peak
        assert taken.fits == search.ledger.fits(cut)
        fitting.setdefault(stages.ranks, []).extend([Option(cut, step, taken)] if taken.fits else [])
        least = min(least, taken.peak)
    found, thriftiest = search.best(numbers), search.least(numbers)
    best = by_the_rule(fitting)
    assert (best is None) == (not found)
    assert best is None or mesh_of(found[0]) == mesh_of(best)
    assert best is None or found[0].seconds == pytest.approx(best.seconds)
    assert (thriftiest.peak if thriftiest else float("inf")) == least
    shown = shown_of(fitting)
    assert [one.seconds for one in found] == pytest.approx([one.seconds for one in shown])
    took = [one.seconds for one in shown]
    alone = [at for at, one in enumerate(took) if took.count(one) == 1]  # of equals, any is as good
    assert [signature(found[at].cut) for at in alone] == [signature(shown[at].cut) for at in alone]


def shown_of(fitting: dict[int, list[Option]]) -> list[Option]:
    """The best and the next best of all that fit, of which nothing was left out by a bound."""
    found: list[Option] = []
    for number in sorted(fitting, reverse=True):
        best: dict[tuple[object, ...], Option] = {}
        for one in sorted(fitting[number], key=lambda one: one.cut.stages.dp_replicate):
            mine, copies = signature(one.cut), one.cut.stages.dp_replicate > 1
            rival = best.get((*mine, copies)) or best.get((*mine, False))  # copies have to be worth it
            beats = not found or one.seconds < found[0].seconds
            if beats and (rival is None or preferred(one) < preferred(rival)):
                best[*mine, copies] = one
        found = together(chosen_first(list(best.values())), found)
    return found


def by_the_rule(fitting: dict[int, list[Option]]) -> Option | None:
    """From the largest number of GPUs down, the simplest of what is within `NEAR` of its quickest, and quicker."""
    best: Option | None = None
    for number in sorted(fitting, reverse=True):
        within = [one for one in fitting[number] if best is None or one.seconds < best.seconds]
        least = min((one.seconds for one in within), default=0.0)
        best = min((one for one in within if one.seconds <= least * (1 + NEAR)), key=mesh_and_seconds, default=best)
    return best


def mesh_of(option: Option) -> tuple[int, ...]:
    stages = option.cut.stages
    sizes = stages.pp, stages.cp, stages.tp
    return sum(size > 1 for size in (*sizes, stages.dp_replicate)), *sizes, stages.ranks


def mesh_and_seconds(option: Option) -> tuple[float, ...]:
    return *mesh_of(option), option.seconds


def every_cut(search: Search, gpus: int) -> Iterator[Cut]:
    """All that there are, each division into shards and copies, without a bound."""
    for mesh in search.meshes(gpus):
        for stages, batch in itertools.product(search.divisions(mesh), search.batches(mesh)):
            for kind in itertools.product(search.recomputes, search.gathers):
                cut = Cut(stages, *batch, *kind)
                yield cut
                free = cut.recompute != "none" and "recompute" not in search.pinned
                if free and stages.chunks == 1 and search.clock.layers(cut)[0] > 1:
                    yield search.filled(replace(cut, again=1))  # of those with layers that do not, the quickest


def test_a_plan_leaves_as_few_layers_to_recompute_as_memory_asks_for() -> None:
    asked = {"size": "8b", "state_dtype": "bf16", "global_batch_tokens": 8192}
    found = plan(asked, cluster_of("h100", 1)).best
    assert 0 < found.cut.again < 32
    assert found.memory.peak <= found.memory.limit
    fewer, every = (
        plan({**asked, **found.settings, "recompute_layers": again}, cluster_of("h200", 1)).best
        for again in (found.cut.again - 1, 0)
    )
    assert fewer.memory.peak > found.memory.limit
    assert every.seconds > found.seconds


def test_a_mesh_of_more_dimensions_has_to_be_worth_them() -> None:
    found = plan({"size": "2.7b"}, cluster_of("h100", 64))
    assert str(found.best.cut.stages) == "dp_shard 64"
    (first, why), *_ = found.others
    assert 0 < found.best.seconds / first.seconds - 1 <= NEAR
    assert re.fullmatch(r"0.\d% quicker, which is not worth \d more dimensions? of the mesh", why)


def test_what_is_given_of_a_layout_stays() -> None:
    found = plan({"size": "70b", "tp": 8, "recompute": "full", "micro_batch": 2}, cluster_of("h100", 256))
    given = {"tp": 8, "recompute": "full", "micro_batch": 2}
    assert given.items() <= found.settings.items()
    free = plan({"size": "70b"}, cluster_of("h100", 256))
    assert free.best.seconds < found.best.seconds


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"size": "175b"},
            r"gpus: got 8; allowed: enough to hold 175b: .* of it optimizer; \d+ GPUs are the fewest that do",
        ),
        ({"size": "175b", "tp": 16}, r"gpus: got 8; allowed: a number that tp 16 and .* can be cut over; \d+ GPUs are"),
        ({"size": "8b", "tp": 3}, "tp: got 3; allowed: a divisor of kv_heads 8"),
        ({"size": "8b", "global_batch_tokens": 8192, "pp": 4}, "no number of these GPUs does"),
        ({"size": "9b"}, "size: got '9b'; allowed: one of"),
    ],
)
def test_what_cannot_be_is_refused_with_its_field_and_its_mend(settings: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        plan(settings, cluster_of("h100", 8))


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_a_price_that_cannot_be_is_refused(price: float) -> None:
    for asked in (lambda: plan({"size": "8b"}, EIGHT, price=price), lambda: within(5000, EIGHT, price=price)):
        with pytest.raises(ConfigError, match=r"^price: got .*; allowed: money for an hour of one GPU"):
            asked()


@pytest.mark.parametrize("gpus", [1, 7, 8])
def test_the_smallest_cluster_that_is_named_does_and_one_node_less_does_not(gpus: int) -> None:
    with pytest.raises(ConfigError) as caught:
        plan({"size": "70b"}, cluster_of("h100", gpus))
    fewest = int(str(caught.value).rpartition(" GPUs are")[0].rpartition(" ")[2])
    assert plan({"size": "70b"}, cluster_of("h100", fewest)).best.cut.stages.ranks == fewest
    assert plan_or_none("70b", cluster_of("h100", fewest - 8)) is None


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ({"gpu": "h10", "gpus": 8}, "gpu: got 'h10'; allowed: did you mean h100"),
        ({"gpu": "h100:memory=94", "gpus": 8}, r"gpu.memory: got 94.0; allowed: one of memory_gb"),
        ({"gpu": "h100:memory_gb=much", "gpus": 8}, r"gpu.memory_gb: got 'much'; allowed: a number above 0"),
        ({"gpu": "h100:memory_gb=-1", "gpus": 8}, r"gpu.memory_gb: got -1.0"),
        ({"gpu": "h100:per_node=1.5", "gpus": 8}, r"gpu.per_node: got 1.5; allowed: a whole number"),
        ({"gpu": "mine:memory_gb=48", "gpus": 8}, r"gpu.bf16_tflops: got nothing; .*gpu.bandwidth_gbs: got nothing"),
        ({"gpu": {"memory_gb": 1, "memory_gib": 1}, "gpus": 8}, r"gpu.memory_gib: got 1; allowed: without memory_gb"),
        ({"gpu": '{"memory_gb": 48', "gpus": 8}, r"gpu: got .*; allowed: a name, NAME:memory_gb=48"),
        ({"gpu": "h100", "gpus": 0}, "gpus: got 0; allowed: a whole number from 1"),
        ({"gpu": "h100", "gpus": -8}, "gpus: got -8"),
        ({"gpu": "h100", "gpus": 2.5}, "gpus: got 2.5"),
        ({"gpu": "h100", "gpus": 1 << 40}, "gpus: got 1099511627776"),
        ({"gpu": "h100", "gpus": 8, "nodes": 3}, "nodes: got 3; allowed: a divisor of gpus 8"),
        ({"gpu": "h100", "gpus": 8, "network": "carrier-pigeon"}, "link: got 'carrier-pigeon'; allowed: one of ib-xdr"),
        ({"gpu": "h100", "gpus": 8, "network": 0}, "link: got 0; allowed: one of ib-xdr"),
        ({"gpu": "h100", "gpus": 8, "inside": "nvlink-9"}, "node_link: got 'nvlink-9'; allowed: one of nvlink-5"),
        ({"gpu": "h100", "gpus": 8, "inside": float("nan")}, "node_link: got nan"),
        ({"gpu": "h100", "gpus": 8, "gpu_memory": -1}, "gpu_memory: got -1"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_by_its_field(named: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        cluster_of(**named)


def test_links_are_taken_by_generation_or_by_number_and_slower_ones_make_a_slower_plan() -> None:
    named = cluster_of("h100", 64, network="RoCE-200", inside="nvlink-3")
    assert (named.network.rate, named.device.link) == (25e9, 300e9)
    assert cluster_of("h100", 64, network=25, inside="300").device == named.device
    settings = {"size": "8b", "tp": 8}
    quick, slow = (plan(settings, cluster_of("h100", 64, network=rate, inside=rate)) for rate in (400, 4))
    assert quick.best.seconds < slow.best.seconds
    assert (slow.to_json()["network_gbs"], slow.to_json()["node_link_gbs"]) == (4, 4)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("NVIDIA-H100-80GB-HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA-A100-SXM4-80GB", "a100"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA L40S", "l40s"),
    ],
)
def test_a_card_is_known_by_what_drivers_and_nodes_call_it(label: str, name: str) -> None:
    assert cluster_of(label, 8).device.name == name


def test_a_gpu_is_taken_by_its_numbers_and_the_rest_is_that_of_the_named_or_nearest() -> None:
    of_l40s = {"memory_gb": 48, "bf16_tflops": 362, "bandwidth_gbs": 864}
    mine, known = (plan({"size": "8b"}, cluster_of(gpu, 8)) for gpu in (of_l40s, "l40s"))
    assert mine.best == known.best
    assert (mine.speed.own, mine.forecast.low) == (False, known.forecast.low)
    assert "bf16_tflops 362, bandwidth_gbs 864; the rest as of L40S" in mine.measured
    same = [cluster_of(gpu, 8).device for gpu in ("h100:memory_gib=94", '{"name": "h100", "memory_gib": 94.0}')]
    assert same[0] == same[1]
    assert (same[0].memory, same[0].bf16) == (94 << 30, DEVICES["h100"].bf16)


def test_tiny_has_the_vocabulary_of_its_own_text_however_its_name_is_written() -> None:
    assert plan({"size": "TINY"}, EIGHT).config == plan({"size": "tiny"}, EIGHT).config == plan({}, EIGHT).config


def test_a_plan_is_searched_for_once() -> None:
    cluster = cluster_of("h100", 1024)
    planned.cache_clear()
    assert plan({"size": "175b"}, cluster) is plan({"size": "175b"}, cluster)
    assert planned.cache_info().misses == 1


def test_a_plan_is_told_as_a_table_as_json_as_formulas_and_as_a_picture() -> None:
    found = plan({"size": "175b", "pp": 2}, cluster_of("b200", 512), price=4)
    rows = dict(table(found))
    assert rows["size"].startswith("175b: ")
    own = dict(table(plan({"size": "8b", "dim": 3072, "heads": 24}, cluster_of("h100", 8))))
    assert own["size"].startswith("8b with dim 3072, heads 24: ")
    assert rows["GPUs"] == "512 x B200, 8 a node, ib-ndr"
    assert "in money" in rows["takes"]
    assert rows["rests on"] == "not measured on B200: the parts of its peaks that an H100 SXM reaches"
    shown = json.loads(json.dumps(found.to_json()))
    assert shown["settings"] == found.settings
    assert sum(shown["step"]["parts"].values()) == pytest.approx(shown["forecast"]["step_seconds"])
    lines = list(explain(found))
    assert {*found.best.memory.kinds, *found.best.step.parts} - {"head and loss"} <= {line.what for line in lines}
    assert all(line.source for line in lines)
    drawn = page([found])
    assert drawn.count("<rect") >= len(found.best.step.parts) + 6
    assert "optimizer: " in drawn


def test_muon_takes_the_products_of_its_iteration_and_says_so() -> None:
    adamw, muon = (plan({"size": "350m", "optimizer": one}, cluster_of("h200", 1)) for one in ("adamw", "muon"))
    blocks, flops = 24 * 4 * 1024**2, 5 * 6 * 1024**3  # of q, k, v, o alone: the least there is
    peak = muon.cluster.device.bf16
    took = muon.best.step.parts["optimizer"]
    assert blocks // 1024**2 * flops / peak < took < muon.best.seconds
    assert took > 5 * adamw.best.step.parts["optimizer"]
    lines = {line.what: line.formula for line in explain(muon)}
    assert "products of each matrix" in lines["optimizer"]
    assert "orthogonal" in lines["whole matrices"]
    many = plan({"size": "8b", "optimizer": "muon"}, cluster_of("h200", 64)).best.step.parts["optimizer"]
    assert many < plan({"size": "8b", "optimizer": "muon"}, cluster_of("h200", 8)).best.step.parts["optimizer"]


def test_each_calibration_that_is_shipped_is_of_the_kind_that_it_is_named_for() -> None:
    for name in ("h100", "h200"):
        found = plan({"size": "1.3b"}, cluster_of(name, 1))
        assert found.speed.own, name
        assert found.measured.startswith("measured on NVIDIA H")


def test_a_plan_says_what_fp8_would_bring_where_it_is_not_asked_for() -> None:
    found, asked = plan({"size": "8b"}, EIGHT), plan({"size": "8b", "precision": "fp8"}, EIGHT)
    assert found.in_fp8 is not None
    assert asked.best.seconds <= found.in_fp8.seconds < found.best.seconds
    shown = found.best, *(option for option, _ in found.others)
    again = []
    for one in shown:
        with suppress(ConfigError):  # weights in eight bits are kept as well
            again.append(plan({"size": "8b", "precision": "fp8", **one.settings}, EIGHT).best.seconds)
    assert found.in_fp8.seconds == pytest.approx(min(again))
    told = found.to_json()["in_fp8"]
    assert told["step_seconds"] == found.in_fp8.seconds
    assert " x " in told["layout"]
    assert (asked.in_fp8, plan({"size": "8b"}, cluster_of("a100", 8)).in_fp8) == (None, None)


def test_a_sweep_scales_and_says_where_nothing_fits() -> None:
    plans = sweep({"size": "70b"}, [8, 64, 256, 1024], cluster_of("h100", 8))
    assert isinstance(plans[0], ConfigError)
    rates = [one.forecast.tokens_per_second for one in plans[1:] if isinstance(one, Plan)]
    assert len(rates) == 3
    assert rates == sorted(rates)
    assert "perfect scaling" in page([one for one in plans if isinstance(one, Plan)])


def test_a_budget_buys_what_chinchilla_says() -> None:
    found = within(5000, cluster_of("h100", 8))
    flops = found.mfu * 989.4e12 * 5000 * 3600
    assert 6 * found.parameters * found.tokens == pytest.approx(flops, rel=0.02)
    assert found.tokens == pytest.approx(20 * found.parameters)
    assert found.plan.forecast.gpu_hours <= 5000
    assert dict(budget(found))["largest size"].startswith(f"{found.size}: ")
    with pytest.raises(ConfigError, match=r"gpu_hours: got 0.001; allowed: at least [\d.]+, which the smallest size"):
        within(0.001, cluster_of("h100", 8))


def test_the_checkpoint_interval_loses_the_least() -> None:
    found = plan({"size": "70b"}, cluster_of("h100", 1024))
    every = found.forecast.checkpoint_steps
    for other in (max(1, every // 4), every * 4):
        asked = plan({"size": "70b", "checkpoint_every": other}, cluster_of("h100", 1024))
        assert asked.forecast.checkpoint_steps == other
        assert asked.forecast.lost_seconds >= found.forecast.lost_seconds * 0.999
    fewer = plan({"size": "70b"}, cluster_of("h100", 128))
    assert fewer.forecast.checkpoint_seconds > found.forecast.checkpoint_seconds
    assert found.forecast.failures * 0.9 < fewer.forecast.failures * 2


def test_a_calibration_of_ones_own_card_replaces_the_shipped_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    values = json.loads(resources.files("teragpt.plan").joinpath("h100.json").read_text("utf-8"))
    file.write_text(
        json.dumps({**values, "device": "a100", "products": {"bf16": [[1e9, 0.2], [1e12, 0.8]], "fp8": [[1, 1]]}})
    )
    mine = plan({"size": "8b"}, cluster_of("a100", 8), calibration=file)
    assert "not measured" not in mine.measured
    assert mine.best.step.parts["products"] != plan({"size": "8b"}, cluster_of("a100", 8)).best.step.parts["products"]
    file.write_text("{}")
    with pytest.raises(ConfigError, match=r"calibration: got .*mine.json.*; allowed: a file that `teragpt bench"):
        plan({"size": "8b"}, cluster_of("a100", 8), calibration=file)
