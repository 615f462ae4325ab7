"""What a layer keeps of a token from forward to backward, and so how many sequences a rank takes at once.

Torch-free: every configuration asks. It knows shapes, and no mesh beyond the ranks that share a layer.
"""

from __future__ import annotations

from teragpt.sizes import Shape

ACTIVATION_BUDGET = 16 << 30  # bytes of activations a micro-batch may take on a device of 80 GB
CORES_BUDGET = 1 << 30  # of a rank without a GPU, whose memory is others' too, and which more tokens make no quicker
LARGEST_MICRO_BATCH = 32


def micro_batch(
    shape: Shape, sequences: int, recompute: str = "none", budget: int = ACTIVATION_BUDGET, bytes_each: int = 2
) -> int:
    """Sequences of one micro-batch: the largest power of two whose activations stay within the budget."""
    room = int(budget / (shape.context * shape.depth * activation_bytes(shape, recompute, bytes_each)))
    bound = max(1, min(room, sequences, LARGEST_MICRO_BATCH))
    return int(1 << (bound.bit_length() - 1))


def activation_bytes(
    shape: Shape,
    recompute: str,
    bytes_each: int = 2,
    tp: int = 1,
    cp: int = 1,
    *,
    fused: bool = False,
    eight: bool = False,
) -> float:
    """Bytes that a token of a rank's sequences keeps in each layer from forward to backward, on each rank of `tp`.

    `bytes_each` is the size of an activation; attention's statistics and the scales of norms are fp32 at least. Of
    `recompute`'s modes `full` and `selective` are exact, eager or compiled; `none` is exact where nothing compiles and
    a bound where blocks are compiled, which keep a norm's input in place of what both its parts need. `fused`: by
    kernels.py, which computes the norms of queries and keys again. `eight`: products keep their inputs in eight bits,
    attention's output beside the wider one that attention itself needs.
    """
    dim, q, kv, ffn = shape.dim, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.ffn
    statistics = shape.heads * max(4, bytes_each)  # attention's sums, one a head
    if recompute == "full":  # a block's input
        return dim * bytes_each / tp
    if recompute == "selective":  # input; queries, keys and values; attention; its output; gate and up
        return ((dim + (q + 2 * kv) + q + dim + 2 * ffn) * bytes_each + statistics) / tp
    norms = 2 * dim / tp + 2 * dim  # of both: what is normalised, and the product's input, gathered
    attention = (q + 2 * kv) + (q + kv) + q  # the projection; queries and keys normed and turned; the output
    gathered = (2 * cp - 3) * kv if cp > 1 else 0  # every rank's keys and values in place of this one's
    normed = 0 if fused else q + kv  # queries and keys before they turn
    scales = (2 + (0 if fused else shape.heads + shape.kv_heads)) * max(4, bytes_each)  # one a norm, and one a head
    spared = (2 * dim + ffn / tp) * (bytes_each - 1) - q / tp if eight else 0
    return (norms + (attention + normed + gathered + 3 * ffn) / tp) * bytes_each + (statistics + scales) / tp - spared
