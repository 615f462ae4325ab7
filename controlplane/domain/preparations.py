"""The body of `POST /preparations`: what a dataset is to be made of, where, and by what pod. It opens nothing."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from controlplane.domain.errors import Problem
from controlplane.domain.fields import BadField, Text
from controlplane.domain.spec import Asked, short
from controlplane.domain.storage import HERE, URL, BadStorage, Place, place_of
from teragpt.config import ConfigError
from teragpt.prepare.documents import SHARD_TOKENS, Recipe

PREPARE = "prepare"  # the task of a run that makes a dataset
LEAST_SILENCE_S = 600
NAME = re.compile(r"[A-Za-z0-9][-\w.]{0,99}")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(?<!\.json)")
ON_MACHINE = (
    "an absolute path or pattern of this machine, or a URL such as https://HOST/FILE or hf://datasets/NAME/FILE"
)
ON_CLUSTER = "pvc://CLAIM/PATH, or a URL such as s3://BUCKET/PREFIX, https://HOST/FILE or hf://datasets/NAME/FILE"


class PreparationSpec(Asked):
    """A dataset to be made of text where that lies, by one pod that trains nothing."""

    sources: Annotated[list[Text], Field(min_length=1, max_length=1000)] = Field(
        description="Files, folders and patterns of them: pvc://CLAIM/PATH, an object store's or another URL; on the "
        "local cluster absolute paths.",
        examples=[["pvc://texts/books/**/*.jsonl", "s3://corpus/web"]],
    )
    out: Text = Field(
        description="The dataset, which must not exist yet: a plain name, in the installation's storage; or an "
        "address, as data.uri.",
        examples=["books", "pvc://datasets/books"],
    )
    tokenizer: Text = Field(
        description="A hub's name, or where a tokenizer lies: pvc://CLAIM/PATH; on the local cluster an absolute path.",
        examples=["hf-internal-testing/llama-tokenizer"],
    )
    validation: float = Field(default=0.01, description="Share of documents that is held out.", examples=[0.01])
    shard_tokens: int = Field(default=SHARD_TOKENS, description="Tokens of a shard.", examples=[SHARD_TOKENS])
    format: str = Field(
        default="auto", description="text, jsonl, parquet or arrow; auto: by each file's name.", examples=["jsonl"]
    )
    column: str = Field(default="text", description="The column that holds the text.", examples=["text"])
    template: str = Field(default="", description="Text over several columns.", examples=["{title}\n{body}"])
    chat: str = Field(
        default="",
        description="The column that holds conversations, for the tokenizer's template.",
        examples=["messages"],
    )
    min_chars: int = Field(default=0, description="Drop shorter documents.", examples=[100])
    max_chars: int = Field(default=0, description="Drop longer documents; 0: none.", examples=[0])
    max_repeated: float = Field(
        default=0.0, description="Drop documents with more in repeated lines; 0: none.", examples=[0.3]
    )
    min_letters: float = Field(
        default=0.0, description="Drop documents with a smaller share of letters and digits; 0: none.", examples=[0.6]
    )
    exact_duplicates: Literal["keep", "drop"] = Field(
        default="keep", description="keep, or drop all but the first.", examples=["drop"]
    )
    near_duplicates: float = Field(
        default=0.0, description="Drop documents this similar to an earlier one; 0: none.", examples=[0.8]
    )
    bad_input: Literal["fail", "skip"] = Field(
        default="fail", description="fail, or skip and count.", examples=["skip"]
    )

    @model_validator(mode="after")
    def _sound(self) -> Self:
        try:
            Recipe(**self.recipe)
        except ConfigError as error:
            raise BadField(error.problems[0].field, error.problems[0].detail) from None
        return self

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides which tokens the dataset holds, by the names of `teragpt.prepare`."""
        return {one.name: getattr(self, one.name) for one in dataclasses.fields(Recipe)}

    def unheeded(self) -> Iterator[Problem]:
        """What has no effect on one pod that trains nothing: refused, so that nobody waits for it."""
        compute, silence_s = self.compute, self.limits.max_silence_s
        there = (
            ("/compute/nodes", compute.nodes, {None, 1}),
            ("/compute/gpus_per_node", compute.gpus_per_node, {None, 0}),
            ("/compute/processes_per_node", compute.processes_per_node, {None, 1}),
        )
        for pointer, value, usual in there:
            if value not in usual:
                detail = f"got {value}; allowed: nothing, since one pod without a GPU prepares"
                yield Problem(pointer, "not_of_a_preparation", detail)
        if silence_s is not None and silence_s < LEAST_SILENCE_S:
            detail = (
                f"got {silence_s}; allowed: at least {LEAST_SILENCE_S}, since it is silent while a file comes slowly"
            )
            yield Problem("/limits/max_silence_s", "too_small", detail)


def source_of(text: str, *, shared_folders: bool) -> Place:
    """Where a source lies. Raises BadStorage for one that the pod could not see."""
    found = URL.fullmatch(text) if text.isprintable() else None
    if found is None or found["scheme"] == "pvc":
        if not (text.startswith("/") if shared_folders else found):
            raise BadStorage(text, ON_MACHINE if shared_folders else ON_CLUSTER)
        return place_of(text, shared_folders=shared_folders)
    if found["scheme"] in HERE or "@" in found["rest"].partition("/")[0]:
        raise BadStorage(text, f"{ON_MACHINE if shared_folders else ON_CLUSTER}, without credentials")
    return Place(text, text)


def tokenizer_of(text: str, *, shared_folders: bool) -> Place:
    """Where a tokenizer lies, or its name on the hub. Raises BadStorage."""
    if HUB_NAME.fullmatch(text):
        return Place(text, text)
    if not text.startswith("/" if shared_folders else "pvc://"):
        where = "an absolute path of this machine" if shared_folders else "pvc://CLAIM/PATH"
        raise BadStorage(short(text), f"a name that a hub could have, or {where}")
    return place_of(text, shared_folders=shared_folders)
