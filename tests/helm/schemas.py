"""The API server's own schemas, of every version of Kubernetes that the chart supports, with no cluster and no network.

They come with kubernetes-validate, strict: a field that a version does not know is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jsonschema_rs

FOLDER = files("kubernetes_validate") / "kubernetes-json-schema"
OLDEST = 28
KINDS = "x-kubernetes-group-version-kind"


def versions() -> list[str]:
    """From the chart's oldest to the newest that is known."""
    minors = {int(path.name.split(".")[1]) for path in FOLDER.iterdir() if path.name.startswith("v1.")}
    return [f"1.{minor}" for minor in sorted(minors) if minor >= OLDEST]


def complaints(manifest: dict[str, Any], version: str) -> Iterator[str]:
    """What that version's schema has against it. Raises KeyError where it has no such kind."""
    validator = _validator(version, manifest["apiVersion"], manifest["kind"])
    for error in validator.iter_errors(manifest):
        yield f"{'.'.join(map(str, error.instance_path))}: {error.message}"


@lru_cache(maxsize=512)
def _validator(version: str, api_version: str, kind: str) -> jsonschema_rs.Draft202012Validator:
    definitions, kinds = _definitions(version)
    return jsonschema_rs.Draft202012Validator({"$ref": f"#/$defs/{kinds[api_version, kind]}", "$defs": definitions})


@lru_cache(maxsize=32)
def _definitions(version: str) -> tuple[dict[str, Any], dict[tuple[str, str], str]]:
    text = (FOLDER / f"v{version}.0-local-strict" / "_definitions.json").read_text("utf-8")
    definitions: dict[str, Any] = json.loads(text.replace('"/api/_definitions.json#', '"#'))["$defs"]
    kinds = {
        ("/".join(part for part in (one["group"], one["version"]) if part), one["kind"]): name
        for name, definition in definitions.items()
        for one in definition.get(KINDS, ())
    }
    return definitions, kinds
