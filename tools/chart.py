"""The chart's values.yaml, values.schema.json and table of values, from their one source `schema.yaml`.

`python -m tools.chart --write` writes them, `--check` fails where one is stale.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from controlplane.domain.defaults import RunDefaults
from controlplane.domain.fields import WORDS
from controlplane.domain.spec import RunSpec
from tools.blocks import ROOT, Block

CHART = Path("helm/teragpt")
SOURCE, VALUES, SCHEMA, README = (
    CHART / name for name in ("schema.yaml", "values.yaml", "values.schema.json", "README.md")
)
NOTE = "Written by `python -m tools.chart --write` from schema.yaml: change that."
WIDTH = 110
DEFS = "#/$defs/"
NAMED = frozenset({"properties", "patternProperties"})  # whose keys are names, not words of JSON Schema
LITERAL = frozenset({"default", "enum", "const", "required"})
TOLD = frozenset({"title", "description", "examples", "default"})

Node = dict[str, Any]


def source(root: Path = ROOT) -> Node:
    """The source, with every default in its place."""
    loaded: Node = yaml.safe_load((root / SOURCE).read_text("utf-8"))
    return loaded


def schema(tree: Node) -> str:
    """values.schema.json: the source as strict JSON Schema."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$comment": NOTE, "title": "Values of teragpt"}
    body = section({key: value for key, value in tree.items() if key != "$defs"})
    return json.dumps(head | {"$defs": definitions(tree, body)} | body, indent=1, ensure_ascii=False) + "\n"


def section(node: Node) -> Node:
    """A section of the values. Each of its keys has its value, as templates rely on them; null would take it away."""
    parts = node["properties"]
    needed = [name for name, part in parts.items() if "properties" in part or _is_plain(part.get("default"))]
    words = {key: value for key, value in node.items() if key not in {"properties", "only"}}
    made: Node = strict(words | {"properties": {}})
    made["properties"] = {name: section(part) if "properties" in part else strict(part) for name, part in parts.items()}
    if "additionalProperties" not in node:
        made["additionalProperties"] = _unknown(parts)
    told = {"const": "whole: null takes a default away; leave the key out to keep it"}
    missing = {"if": {"not": {"required": needed}}, "then": {"allOf": [{"required": needed}, told]}} if needed else {}
    unused = [_unused(name, part) for name, part in parts.items() if "only" in part]
    return made | {"type": "object"} | missing | ({"allOf": unused} if unused else {})


def strict(node: Any) -> Any:
    """A node of JSON Schema that takes no key which is not there, and says in words what it takes.

    Helm shows what a constant should have been: the one place where JSON Schema lets us choose the words.
    """
    if isinstance(node, list):
        return [strict(part) for part in node]
    if not isinstance(node, dict):
        return node
    made = {key: value if key in LITERAL else strict(value) for key, value in node.items() if key != "allowed"}
    for key in NAMED & node.keys():
        made[key] = {name: strict(part) for name, part in node[key].items()}
    if "allowed" in node:
        made["if"] = {"type": "string", "not": {"pattern": made.pop("pattern")}}
        made["then"] = {"const": node["allowed"]}
    if "properties" in node and not node.get("additionalProperties"):
        made |= {"type": node.get("type", "object"), "additionalProperties": _unknown(node["properties"])}
    return made


def definitions(tree: Node, body: Node) -> Node:
    """The source's own, and what is borrowed of Kubernetes' types and of a run's body, as far as it is used."""
    found: Node = {name: strict(node) for name, node in tree["$defs"].items()}
    wanted = [*_references(body), *_references(found)]
    words = WORDS | {rule["pattern"]: rule["allowed"] for rule in _ruled(tree["$defs"])}
    while wanted:
        name = wanted.pop()
        if name not in found:
            found[name] = strict(borrowed(name, words))
            wanted += _references(found[name])
    return dict(sorted(found.items()))


def borrowed(name: str, words: dict[str, str]) -> Node:
    """A type of Kubernetes (`kubernetes.`, `templated.`) or of a run's body (`run.`), by its short name."""
    family, _, kind = name.partition(".")
    if family == "run":
        made: Node = _of_pydantic(_runs()[kind], words)
        return made
    if kind == "Quantity":
        return {"type": ["string", "number"]} if family == "templated" else {"$ref": f"{DEFS}quantity"}
    if kind == "IntOrString":
        return {"type": ["string", "integer"]}
    return _of_kubernetes(_kubernetes()[kind], family)


def _of_kubernetes(node: Node, family: str) -> Node:
    made: Node = {key: node[key] for key in ("type", "required", "enum") if key in node}
    if family == "templated" and {"integer", "boolean"} & {*made.get("type", ())}:
        made["type"] = ["string", *made["type"]]
    if "$ref" in node:
        return {"$ref": f"{DEFS}{family}.{node['$ref'].rpartition('.')[2]}"}
    for key in ("items", "additionalProperties"):
        if node.get(key):
            made[key] = _of_kubernetes(node[key], family)
    if "properties" in node:
        made["properties"] = {name: _of_kubernetes(part, family) for name, part in node["properties"].items()}
    return made


def _of_pydantic(node: Any, words: dict[str, str]) -> Any:
    if isinstance(node, list):
        return [_of_pydantic(part, words) for part in node]
    if not isinstance(node, dict):
        return node
    if "anyOf" in node:  # a type, or null: left out
        others = [part for part in node["anyOf"] if part != {"type": "null"}]
        return _of_pydantic(others[0], words) if len(others) == 1 else {"type": [part["type"] for part in others]}
    if "$ref" in node:
        return {"$ref": f"{DEFS}run.{node['$ref'].rpartition('/')[2]}"}
    made = {key: _of_pydantic(value, words) for key, value in node.items() if key not in {*TOLD, *NAMED}}
    for key in NAMED & node.keys():
        made[key] = {name: _of_pydantic(part, words) for name, part in node[key].items()}
    if "labels" in made.get("properties", {}):
        made["properties"]["labels"] = {"$ref": f"{DEFS}runLabels"}
    if "patternProperties" in made:
        return {"$ref": f"{DEFS}labels"}
    if "pattern" in made:
        made |= {"allowed": words[made["pattern"]], "pattern": _within_go(made["pattern"])}
    return made


def _within_go(pattern: str) -> str:
    """Helm's regular expressions count to a thousand."""
    return re.sub(r"\{(\d+),\d{4,}\}", r"{\1,}", pattern)


@cache
def _kubernetes() -> Node:
    """The newest Kubernetes' types by their short names, those of pods before others."""
    folder = files("kubernetes_validate") / "kubernetes-json-schema"
    newest = max(int(path.name.split(".")[1]) for path in folder.iterdir() if path.name.startswith("v1."))
    every = json.loads((folder / f"v1.{newest}.0-local-strict/_definitions.json").read_text("utf-8"))["$defs"]
    groups = ("io.k8s.apimachinery.", "io.k8s.api.networking.v1.", "io.k8s.api.core.v1.")
    return {name.rpartition(".")[2]: every[name] for group in groups for name in every if name.startswith(group)}


@cache
def _runs() -> Node:
    body: Node = RunSpec.model_json_schema()
    found: Node = RunDefaults.model_json_schema()["$defs"]
    return {**found, **body.pop("$defs"), "RunSpec": body}


def _unknown(parts: Node) -> Node:
    return {"const": f"left out, since there is no such key; allowed: {', '.join(parts)}"}


def _unused(name: str, part: Node) -> Node:
    """A section's values are nobody's where the one beside it that it depends on is something else."""
    ((path, wanted),) = part["only"].items()
    told = {"const": f"left out, since {path} is not {wanted}"}
    kept = {
        key: {"if": {"not": {"const": value["default"]}}, "then": told} for key, value in part["properties"].items()
    }
    other = {"properties": {path.rpartition(".")[2]: {"not": {"const": wanted}}}}
    return {"if": other, "then": {"properties": {name: {"properties": kept}}}}


def _is_plain(default: object) -> bool:
    return isinstance(default, str | int | float)


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"].removeprefix(DEFS)
        for part in node.values():
            yield from _references(part)
    elif isinstance(node, list):
        for part in node:
            yield from _references(part)


def _ruled(definitions: Node) -> Iterator[Node]:
    yield from (node for node in definitions.values() if "allowed" in node)


def values(tree: Node) -> str:
    """values.yaml: every default under its description."""
    return f"# {NOTE}\n" + "\n".join(entry(name, node, 0) for name, node in tree["properties"].items())


def entry(name: str, node: Node, depth: int) -> str:
    """One value with its comment, and what is in it."""
    indent = "  " * depth
    comment = textwrap.fill(f"{node['description']}{choices(node)}", WIDTH - len(indent))
    lines = textwrap.indent(comment, f"{indent}# ") + "\n"
    parts = node.get("properties", {})
    shown = {name: part for name, part in parts.items() if "properties" in part or "default" in part}
    if shown:
        inside = "".join(entry(key, part, depth + 1) for key, part in shown.items())
        return f"{lines}{indent}{name}:\n{inside}"
    return lines + textwrap.indent(dumped(name, {} if parts else node["default"]), indent)


def choices(node: Node) -> str:
    """What an enumeration allows."""
    words = [json.dumps(word) if word == "" else str(word) for word in node.get("enum", [])]
    return f" One of {', '.join(words)}." if words else ""


def dumped(name: str, value: object) -> str:
    """`name: value` in YAML; strings in quotes, so that none is taken for something else."""
    if isinstance(value, dict) and value:
        return f"{name}:\n" + textwrap.indent("".join(dumped(key, part) for key, part in value.items()), "  ")
    return f"{name}: {json.dumps(value, ensure_ascii=False)}\n"


def table(tree: Node) -> str:
    """The README's table of values."""
    rows = [f"| `{path}` | {node['description']}{choices(node)} | {shown} |" for path, node, shown in leaves(tree)]
    return "\n".join(["| value | what it is | default |", "| --- | --- | --- |", *rows])


def leaves(node: Node, prefix: str = "") -> Iterator[tuple[str, Node, str]]:
    """Every value by path, with its default as the table shows it."""
    for name, part in node["properties"].items():
        path = f"{prefix}{name}"
        if "properties" in part:
            yield from leaves(part, f"{path}.")
        else:
            default = part.get("default")
            yield path, part, "" if default in ("", None) else f"`{json.dumps(default, ensure_ascii=False)}`"


def texts(root: Path = ROOT) -> dict[Path, str]:
    """What the files should hold."""
    tree = source(root)
    page = Block(str(README), "values", table(tree)).applied((root / README).read_text("utf-8"))
    return {VALUES: values(tree), SCHEMA: schema(tree), README: page}


def main(arguments: list[str]) -> int:
    """`--write` or `--check`."""
    if arguments not in (["--write"], ["--check"]):
        print("usage: python -m tools.chart --write | --check", file=sys.stderr)
        return 2
    stale = {path: text for path, text in texts().items() if not _holds(ROOT / path, text)}
    for path, text in stale.items():
        if arguments == ["--write"]:
            (ROOT / path).write_text(text, "utf-8")
        else:
            print(f"{path} is stale; run: python -m tools.chart --write", file=sys.stderr)
    return int(bool(stale) and arguments == ["--check"])


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text("utf-8") == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
