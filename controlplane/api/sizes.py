"""Sizes: the named models, and what each derives."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field

from controlplane.api.body import JsonRoute
from controlplane.api.views import View
from controlplane.services import plans

router = APIRouter(tags=["plans"], route_class=JsonRoute)


class Size(View):
    """A named size at the reference vocabulary, and what derives from it."""

    name: str = Field(description="Its name.", examples=["124m"])
    parameters: int = Field(description="Parameters.", examples=[123587328])
    dim: int = Field(description="Model width.", examples=[768])
    depth: int = Field(description="Blocks.", examples=[12])
    heads: int = Field(description="Query heads.", examples=[12])
    kv_heads: int = Field(description="Key and value heads.", examples=[12])
    head_dim: int = Field(description="Width of one head.", examples=[64])
    ffn: int = Field(description="Width of the feed-forward layer.", examples=[2048])
    context: int = Field(description="Tokens of a sequence.", examples=[1024])
    num_tokens: int = Field(description="Vocabulary.", examples=[50304])
    tied: bool = Field(description="Whether embedding and output share their weights.", examples=[True])
    tokens: int = Field(description="Token budget.", examples=[2471746560])
    global_batch_tokens: int = Field(description="Tokens of a step.", examples=[262144])
    steps: int = Field(description="Optimizer steps.", examples=[9428])
    optimizer: str = Field(description="What updates the blocks' matrices.", examples=["muon"])
    learning_rate: float = Field(description="Peak learning rate.", examples=[0.0012])
    state_bytes: int = Field(description="Bytes of training state in all.", examples=[1977397248])


class Sizes(View):
    """The named sizes, smallest first."""

    items: list[Size] = Field(description="The sizes.")


@router.get("/sizes", summary="List sizes")
def sizes() -> Sizes:
    """The named sizes and what each derives."""
    return Sizes(items=[Size.model_validate(size) for size in plans.sizes()])
