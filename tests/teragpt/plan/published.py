"""Steps that others have published, and what the planner says of the same model, cards and cut."""

from __future__ import annotations

from dataclasses import dataclass, replace

from teragpt.config import resolve
from teragpt.layout import Layout
from teragpt.plan.calibration import Calibration, Speed, shipped
from teragpt.plan.hardware import LINKS, Cluster, device
from teragpt.plan.memory import Cut
from teragpt.plan.step import Clock

# llm-foundry, scripts/train/benchmarking/README.md, commits 061f2c7 and c90b9b3: FSDP over all GPUs in bf16, vocabulary
# 50,368. Model, tokens, GPUs, card, micro-batch, micro-batches, recompute, tokens/s of a GPU.
FOUNDRY = """
70b 2048 512 h100 8 1 full 1007
70b 2048 256 h100 8 1 full 1035
70b 2048 128 h100 8 1 full 1058
70b 2048 64 h100 8 4 full 1039
70b 2048 32 h100 2 16 full 882
30b 2048 512 h100 8 1 full 2115
30b 2048 128 h100 8 1 full 2199
30b 2048 32 h100 14 3 full 2308
30b 2048 16 h100 10 3 full 2263
30b 2048 8 h100 3 21 full 2002
30b 4096 8 h100 1 21 full 1802
30b 8192 8 h100 1 21 full 1384
13b 2048 512 h100 16 1 full 4952
13b 2048 256 h100 16 1 full 4989
13b 2048 128 h100 16 1 full 5080
13b 2048 64 h100 2 1 none 4800
13b 2048 8 h100 2 1 none 4792
13b 4096 8 h100 10 3 full 4717
13b 1024 8 h100 40 3 full 5502
13b 16384 8 h100 3 3 full 2985
7b 2048 512 h100 6 1 none 9670
7b 2048 256 h100 6 1 none 10119
7b 2048 128 h100 6 1 none 10475
7b 2048 8 h100 6 1 none 10643
7b 4096 8 h100 16 2 full 8611
7b 8192 8 h100 8 2 full 6935
7b 1024 8 h100 64 2 full 10203
3b 2048 512 h100 8 1 none 21664
3b 2048 128 h100 8 1 none 23422
3b 2048 64 h100 6 3 none 22525
3b 2048 16 h100 10 3 none 24142
3b 4096 8 h100 5 6 none 20964
3b 8192 8 h100 3 6 none 16578
3b 1024 8 h100 20 6 none 27046
1b 2048 512 h100 12 1 none 39837
1b 2048 128 h100 12 1 none 44123
1b 2048 64 h100 20 1 none 44402
1b 2048 16 h100 20 1 none 46037
1b 2048 8 h100 14 1 none 45455
1b 4096 8 h100 7 4 none 38535
1b 8192 8 h100 3 4 none 29157
1b 1024 8 h100 18 4 none 48910
760m 2048 32 h100 24 1 none 67971
760m 2048 8 h100 24 2 none 63147
760m 1024 8 h100 48 2 none 78581
70b 2048 64 a100 8 4 full 410
30b 2048 8 a100 3 21 full 916
30b 4096 8 a100 1 21 full 814
13b 2048 8 a100 2 3 none 2262
13b 4096 8 a100 10 3 full 2060
7b 2048 8 a100 6 2 none 4641
7b 4096 8 a100 16 2 full 3684
7b 8192 8 a100 8 2 full 3206
3b 2048 8 a100 10 2 none 10811
3b 8192 8 a100 3 6 none 7695
1b 2048 8 a100 14 4 none 20513
1b 8192 8 a100 3 4 none 13814
"""
MPT = {
    "70b": (8192, 80, 64),
    "30b": (7168, 48, 56),
    "13b": (5120, 40, 40),
    "7b": (4096, 32, 32),
    "3b": (2560, 32, 20),
    "1b": (2048, 24, 16),
    "760m": (1536, 24, 12),
}
SETS = ("7b", 2048, 8)  # the row that sets a framework's efficiency on a card: its other rows are held out
# flash-2's attention on the card of the shipped calibration (docs/notebook.md), which llm-foundry runs
FLASH_2 = ((64, 1024, 184e12), (64, 2048, 231e12), (128, 2048, 253e12), (128, 8192, 295e12))


@dataclass(frozen=True)
class Row:
    """A published step: `rate` in tokens/s of a GPU."""

    name: str
    tokens: int
    gpus: int
    card: str
    micro_batch: int
    count: int
    recompute: str
    rate: float


def rows(text: str) -> list[Row]:
    """A table's rows."""
    found = []
    for line in text.strip().splitlines():
        name, tokens, gpus, card, micro_batch, count, recompute, rate = line.split()
        found.append(Row(name, int(tokens), int(gpus), card, int(micro_batch), int(count), recompute, float(rate)))
    return found


def foundry(row: Row) -> float:
    """Tokens/s of a GPU that the planner says of a row of llm-foundry's; a GELU of 4 widths is 8/3 of a gated one."""
    dim, depth, heads = MPT[row.name]
    shape = {"dim": dim, "depth": depth, "heads": heads, "kv_heads": heads, "ffn": 8 * dim // 3, "num_tokens": 50_368}
    calibration = replace(shipped(), attention=FLASH_2)
    return rate(shape, row, calibration)


def rate(shape: dict[str, int], row: Row, calibration: Calibration, precision: str = "bf16") -> float:
    """Tokens/s of a GPU that the planner says of a model of this shape, sharded over all GPUs."""
    batch = row.tokens * row.micro_batch * row.count * row.gpus
    given = {**shape, "context": row.tokens, "global_batch_tokens": batch, "precision": precision, "steps": 100}
    config = resolve({"size": "1.3b", "optimizer": "adamw", "tied": False, **given})
    card = device(row.card)
    cluster = Cluster(card, row.gpus, card.per_node, LINKS[card.network])
    cut = Cut(Layout(1, 1, row.gpus, 1, 1), row.micro_batch, row.count, row.recompute)
    step = Clock(config, cluster, Speed(card, calibration, device(calibration.device))).step(cut)
    return batch / step.seconds / row.gpus


# torchtitan, benchmarks/llama3_h100_202412_torchtitan.md and asyncTP_llama3_h100_2025-06_torchtitan.md: Llama 3.1 with
# torch.compile on H100s of 96 GB at 2.4 TB/s and 500 W, 400 Gb/s each. Model, tokens, micro-batch, micro-batches,
# recompute, precision, ranks of dp_shard, cp, tp and pp, stages on each, tokens/s of a GPU. Its pipeline keeps weights
# gathered; how many micro-batches that has it does not say: 32 are our reading. Its ring attention over four ranks and
# more works otherwise than ours, and is left out.
TITAN = """
8b 8192 2 1 selective bf16 8 1 1 1 1 6667
8b 8192 2 1 selective bf16 128 1 1 1 1 6514
8b 8192 2 1 selective fp8 8 1 1 1 1 8532
8b 8192 2 1 selective fp8 128 1 1 1 1 8380
8b 32768 1 1 full fp8 8 1 1 1 1 3890
8b 65536 1 1 full fp8 4 2 1 1 1 2540
70b 8192 16 1 full bf16 32 1 8 1 1 597
70b 8192 16 1 full fp8 32 1 8 1 1 829
405b 8192 1 32 full fp8 8 1 8 8 1 100
405b 8192 1 32 full fp8 8 1 8 8 2 128
"""
LLAMA = {"8b": (4096, 32, 32, 8, 14_336), "70b": (8192, 80, 64, 8, 28_672), "405b": (16_384, 126, 128, 8, 53_248)}


def titan() -> list[float]:
    """Published over planned tokens/s of each of torchtitan's rows; the first sets its efficiency."""
    card = replace(device("h100"), bandwidth=2.4e12, memory=96 * 10**9)
    ratios = []
    for line in TITAN.strip().splitlines():
        name, tokens, micro_batch, count, recompute, precision, shards, cp, tp, pp, chunks, rate = line.split()
        stages = Layout(int(pp), 1, int(shards), int(cp), int(tp), int(chunks))
        shape = dict(zip(("dim", "depth", "heads", "kv_heads", "ffn"), LLAMA[name], strict=True))
        batch = int(tokens) * int(micro_batch) * int(count) * stages.data_ranks
        given = {"context": int(tokens), "global_batch_tokens": batch, "num_tokens": 128_256, "precision": precision}
        clock = Clock(
            resolve({"size": "8b", "optimizer": "adamw", "steps": 100, **shape, **given}),
            Cluster(card, stages.ranks, card.per_node, LINKS["ib-ndr"]),
            Speed(card, shipped(), device("h100")),
        )
        gathered = True if stages.pp > 1 else None
        step = clock.step(Cut(stages, int(micro_batch), int(count), recompute, gathered))
        ratios.append(float(rate) / (batch / step.seconds / stages.ranks))
    return ratios


# NVIDIA NeMo, docs/source/performance/performance_summary.md, container 24.07: DGX H100, fp8. Model, GPUs, sequences
# a step and a micro-batch, tokens, tp, pp, cp, stages on each rank, tokens/s of a GPU. The table does not tell shapes:
# its GPTs' are those that are known under these names, a GELU of 4 widths being 8/3 of a gated one. That nothing is
# computed again, and that weights stay gathered beside a sharded optimizer, is our reading. Nemotrons are left out.
NEMO = """
llama2-7b 8 128 1 4096 1 1 1 1 16847
gpt-5b 64 2048 4 2048 1 1 1 1 22521
gpt-20b 64 256 2 2048 2 1 1 1 5851
gpt-175b 128 256 1 2048 4 8 1 6 726
gpt-175b 512 2048 2 2048 4 8 1 6 782
llama2-13b 16 128 1 4096 1 4 1 10 8646
llama2-70b 64 128 1 4096 4 4 1 20 1707
llama3-8b 8 128 1 8192 1 1 2 1 12036
llama3-70b 64 128 1 8192 4 4 2 5 1533
"""
NAMED = {
    "gpt-5b": (4096, 24, 32, 32, 10_912, 50_304),
    "gpt-20b": (6144, 44, 48, 48, 16_384, 50_304),
    "gpt-175b": (12_288, 96, 96, 96, 32_768, 50_304),
    "llama2-7b": (4096, 32, 32, 32, 11_008, 32_000),
    "llama2-13b": (5120, 40, 40, 40, 13_824, 32_000),
    "llama2-70b": (8192, 80, 64, 8, 28_672, 32_000),
    "llama3-8b": (4096, 32, 32, 8, 14_336, 128_256),
    "llama3-70b": (8192, 80, 64, 8, 28_672, 128_256),
}


def nemo() -> list[float]:
    """Published over planned tokens/s of each of NeMo's rows; the first sets its efficiency."""
    ratios, card = [], device("h100")
    for line in NEMO.strip().splitlines():
        name, *numbers = line.split()
        gpus, sequences, micro_batch, tokens, tp, pp, cp, chunks, rate = map(int, numbers)
        stages = Layout(pp, 1, gpus // (tp * pp * cp), cp, tp, chunks)
        shape = dict(zip(("dim", "depth", "heads", "kv_heads", "ffn", "num_tokens"), NAMED[name], strict=True))
        given = {"context": tokens, "global_batch_tokens": sequences * tokens, "precision": "fp8", "steps": 100}
        clock = Clock(
            resolve({"size": "8b", "optimizer": "adamw", **shape, **given}),
            Cluster(card, gpus, card.per_node, LINKS["ib-ndr"]),
            Speed(card, shipped(), card),
        )
        step = clock.step(
            Cut(stages, micro_batch, sequences // micro_batch // stages.data_ranks, "none", gathered=True)
        )
        ratios.append(rate / (sequences * tokens / step.seconds / gpus))
    return ratios
