"""Names and ids: of runs, in any alphabet, and of their objects, which Kubernetes takes. It knows no run."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json
from ulid import ULID

SLUG_LENGTH = 30  # leaves room for the run's suffix, the attempt, and the operator's "-worker-NNNN" within 63
SUFFIX_LENGTH = 8
LONGEST_OBJECT_NAME = SLUG_LENGTH + SUFFIX_LENGTH + len("--9999")  # beyond all attempts that a run may have
RUN_ID = re.compile(r"run_[0-9A-HJKMNP-TV-Z]{26}")
CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
SWEEP_ID = re.compile(r"sweep_[0-9A-HJKMNP-TV-Z]{26}")


def new_run_id() -> str:
    """A new run's id, `run_` and a ULID: ids sort by the millisecond of their making."""
    return f"run_{ULID()}"


def new_sweep_id() -> str:
    """A new sweep's id, `sweep_` and a ULID."""
    return f"sweep_{ULID()}"


def suffix(run_id: str) -> str:
    """The last characters of a run's id, lower case: what tells its objects from those of a run of the same name."""
    return run_id[-SUFFIX_LENGTH:].lower()


def slug(name: str) -> str:
    """A name of any alphabet as a DNS-1035 label of at most 30 characters; `run` where nothing of it is left."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    words = re.sub(r"[^a-z0-9]+", "-", ascii_only.lower()).strip("-")
    if not words:
        return "run"
    lettered = words if words[0].isalpha() else f"run-{words}"
    return lettered[:SLUG_LENGTH].rstrip("-")


def default_name(size: str, run_id: str) -> str:
    """The name of a run whose user gave none."""
    return f"{size}-{suffix(run_id)}"


def object_name(name: str, run_id: str, attempt: int) -> str:
    """The name of an attempt's object: the same at every try, so that a repeated creation finds the first one's."""
    end = suffix(run_id)
    return f"{slug(name.removesuffix(f'-{end}'))}-{end}-{attempt}"


def fingerprint(value: Any) -> str:
    """A stable hash of a JSON value: equal values hash equal, whatever the order of their keys."""
    return hashlib.sha256(CANONICAL.encode(value).encode()).hexdigest()[:32]


def compact(value: Any) -> str:
    """A JSON value as text, at a fourth of what Python's own writer takes."""
    try:
        return to_json(value, inf_nan_mode="constants").decode()
    except ValueError:  # half of a surrogate pair, as in a path that is no UTF-8
        return json.dumps(value)


def search_text(name: str, labels: Mapping[str, str]) -> str:
    """What a run is searched in: its name and its labels, whatever their case."""
    return folded(" ".join([name, *(f"{key}={value}" for key, value in labels.items())]))


def folded(text: str) -> str:
    """A text whose letters are the same in upper and lower case."""
    return text.casefold()


def token_hash(token: str) -> str:
    """How a token is stored. Tokens have 256 random bits, so that a plain hash cannot be searched."""
    return hashlib.sha256(token.encode()).hexdigest()
