"""Named model sizes, and everything that follows from a size: the one dial of the product.

Torch-free: the trainer and the control plane both import it. It knows shapes and counts, no tensors and no cluster.

Shapes: GPT-3's table 2.1 (Brown et al. 2020; two misprints corrected: 13b is 5,120 wide, 1.3b has 16 heads of 128),
gigaGPT's 111m, 13b, 70b and 175b, Llama 3's 8b and 405b (Dubey et al. 2024), and Megatron-LM's 1t (Narayanan et al.
2021). FFN width and key/value heads are ours: chosen so that each parameter count is what the name says.

Hyper-parameters: DeepSeek LLM's fits (Bi et al. 2024, section 3.1) over the compute budget C = 6 N x tokens, with
Chinchilla's 20 tokens a parameter (Hoffmann et al. 2022) unless a budget is given.
"""

from __future__ import annotations

from dataclasses import dataclass

REFERENCE_VOCABULARY = 50_304  # GPT-2's 50,257 tokens padded to a multiple of 128
VOCABULARY_MULTIPLE = 128  # every mesh must shard the vocabulary evenly
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022
FEWEST_STEPS = 600  # half the batch: 7% less loss than in 305 steps, 0.6% less than in 610 (docs/notebook.md)


@dataclass(frozen=True)
class Shape:
    """A decoder's shape. `dim`, `ffn`: widths; `heads`, `kv_heads`: query and key/value heads; `context`: tokens.

    `tied`: the output is a linear over the embedding's weight, and there is no head of its own. `head_dim`: width of
    one attention head, dim / heads unless given.
    """

    dim: int
    depth: int
    heads: int
    kv_heads: int
    ffn: int
    context: int
    tied: bool
    head_dim: int = 0

    def __post_init__(self) -> None:
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.dim // self.heads)

    def parameters(self, vocabulary: int = REFERENCE_VOCABULARY) -> int:
        """Parameters of the model with this shape and a vocabulary that is padded to a multiple of 128."""
        attention = 2 * self.dim * self.head_dim * (self.heads + self.kv_heads) + 2 * self.head_dim
        block = attention + 3 * self.dim * self.ffn + 2 * self.dim
        return self.depth * block + self.dim + (1 if self.tied else 2) * padded(vocabulary) * self.dim

    def flops_per_token(self, vocabulary: int, context: int) -> int:
        """Forward and backward FLOPs of one token: 6 a matmul weight, and causal attention counted at half."""
        matmul = self.parameters(vocabulary) - (0 if self.tied else padded(vocabulary) * self.dim)
        return 6 * matmul + 6 * self.depth * self.heads * self.head_dim * context


TINY = "tiny"
SIZES: dict[str, Shape] = {
    TINY: Shape(128, 3, 2, 2, 384, 256, tied=True),
    "111m": Shape(768, 10, 12, 12, 2048, 1024, tied=True),
    "124m": Shape(768, 12, 12, 12, 2048, 1024, tied=True),
    "350m": Shape(1024, 24, 16, 16, 2688, 1024, tied=True),
    "760m": Shape(1536, 24, 16, 16, 4096, 1024, tied=True),
    "1.3b": Shape(2048, 24, 16, 16, 4736, 2048, tied=False),
    "2.7b": Shape(2560, 32, 32, 32, 6528, 2048, tied=False),
    "6.7b": Shape(4096, 32, 32, 32, 10496, 2048, tied=False),
    "8b": Shape(4096, 32, 32, 8, 15872, 8192, tied=False),
    "13b": Shape(5120, 40, 40, 40, 13440, 2048, tied=False),
    "70b": Shape(8192, 80, 64, 8, 28672, 8192, tied=False),
    "175b": Shape(12288, 96, 96, 96, 32768, 2048, tied=False),
    "405b": Shape(16384, 126, 128, 8, 53248, 8192, tied=False),
    "1t": Shape(25600, 128, 200, 8, 83712, 8192, tied=False),
}


def padded(vocabulary: int) -> int:
    """The vocabulary rounded up to a multiple of 128."""
    return -(-vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


@dataclass(frozen=True)
class Recipe:
    """What a size's training derives from: `tokens` in all, `batch` in tokens a step, peak `learning_rate`."""

    tokens: int
    batch: int
    learning_rate: float
    rope_theta: float
    optimizer: str


# Tiny is to learn within a minute on two CPU cores, far short of 20 tokens a parameter: the best of a sweep over
# widths, depths, batches and rates that cost the same FLOPs (docs/notebook.md).
TINY_RECIPE = Recipe(tokens=640 * 2048, batch=2048, learning_rate=0.003, rope_theta=10_000.0, optimizer="adamw")


def recipe(shape: Shape, vocabulary: int, context: int, tokens: int | None = None) -> Recipe:
    """The training recipe of a shape; `tokens` overrides the budget of 20 tokens a parameter.

    Batch and learning rate are DeepSeek LLM's fits over the compute C = 6 x parameters x tokens: B = 0.2920 C^0.3271
    tokens, lr = 0.3118 C^-0.1250 (Bi et al. 2024, eq. 1). The batch is rounded down to a power of two, so that powers
    of two of ranks divide it, and leaves a short run FEWEST_STEPS, which those fits do not reach down to. RoPE's base
    is 10,000 (Su et al. 2021) up to 2,048 tokens and Llama 3's 500,000 beyond.
    """
    parameters = shape.parameters(vocabulary)
    tokens = tokens or TOKENS_PER_PARAMETER * parameters
    compute = 6.0 * parameters * tokens
    batch = 1 << (int(max(1.0, min(0.2920 * compute**0.3271, tokens / FEWEST_STEPS))).bit_length() - 1)
    return Recipe(
        tokens=tokens,
        batch=max(batch, context),
        learning_rate=float(f"{0.3118 * compute**-0.1250:.2g}"),
        rope_theta=10_000.0 if context <= 2048 else 500_000.0,
        optimizer="muon",
    )
