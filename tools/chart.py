"""The chart's values.yaml, values.schema.json, rules and table of values, from their one source `schema.yaml`.

`python -m tools.chart --write` writes them, `--check` fails where one is stale.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tools.blocks import ROOT, Block

CHART = Path("helm/teragpt")
SOURCE, VALUES, SCHEMA, RULES, README = (
    CHART / name for name in ("schema.yaml", "values.yaml", "values.schema.json", "files/allowed.json", "README.md")
)
NOTE = "Written by `python -m tools.chart --write` from schema.yaml: change that."
WIDTH = 110

Node = dict[str, Any]


def source(root: Path = ROOT) -> Node:
    """The source, with every default in its place."""
    loaded: Node = yaml.safe_load((root / SOURCE).read_text("utf-8"))
    return loaded


def schema(tree: Node) -> str:
    """values.schema.json: the source as strict JSON Schema."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$comment": NOTE, "title": "Values of teragpt"}
    defs = {name: plain(node) for name, node in tree["$defs"].items()}
    return json.dumps(head | {"$defs": defs} | strict(tree), indent=2, ensure_ascii=False) + "\n"


def strict(node: Node) -> Node:
    """A node that takes no key which is not there, and says which are; the source's own words elsewhere.

    Helm shows what a constant should have been: the one place where JSON Schema lets us choose the words.
    """
    if "properties" not in node or "default" in node:
        return plain(node)
    parts = {name: strict(part) for name, part in node["properties"].items()}
    rest = {key: value for key, value in node.items() if key not in {"properties", "$defs"}}
    told = f"left out, since there is no such key; allowed: {', '.join(parts)}"
    return rest | {"type": "object", "additionalProperties": {"const": told}, "properties": parts}


def plain(node: Node) -> Node:
    """A node less the rule that the chart itself looks at."""
    return {key: value for key, value in node.items() if "allowed" not in node or key not in {"pattern", "allowed"}}


def rules(tree: Node) -> str:
    """What the chart's template looks at: each value's pattern, and what it means in words."""
    found: dict[str, Node] = {}
    for path, node, _ in leaves(tree):
        rule = tree["$defs"].get(str(node.get("$ref", "")).rpartition("/")[2], node)
        if "allowed" in rule:
            found[path] = {key: rule[key] for key in ("pattern", "allowed")}
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


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
    return {VALUES: values(tree), SCHEMA: schema(tree), RULES: rules(tree), README: page}


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
