"""The docs' tables of sizes and settings, from the code that they describe.

`python -m tools.reference` prints them, `--write` puts them into the docs, `--check` fails where one is stale.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from controlplane.domain.diagnoses import ENDED, WAITING, Diagnosis
from controlplane.settings import leaves
from teragpt.config import EMBEDDED_VOCABULARY, FIELDS, TYPES, Config, resolve
from teragpt.layout import state
from teragpt.sizes import REFERENCE_VOCABULARY, SIZES, TINY
from tools.blocks import Block, main

UNITS = ("B", "kB", "MB", "GB", "TB")
LARGER, NAMED = "124m", {"size", "out"}  # a size beside tiny; settings that tell which one it is
COUNTS = ("", " K", " M", " B", " T")


def sizes_brief() -> str:
    """The README's table."""
    rows = [
        [
            f"`{name}`",
            short(parameters(config), COUNTS),
            f"{config.dim:,} × {config.depth}",
            f"{config.context:,}",
            short(config.tokens, COUNTS),
            short(state(config).total, UNITS),
        ]
        for name, config in resolved().items()
    ]
    return table(["size", "parameters", "width × depth", "context", "token budget", "state"], rows)


def sizes_whole() -> str:
    """Every derived value of every size."""
    shape = ["dim", "depth", "heads", "kv_heads", "head_dim", "ffn", "context", "tied"]
    recipe = ["tokens", "global_batch_tokens", "steps", "warmup_steps", "optimizer", "learning_rate", "micro_batch"]
    recipe += ["rope_theta"]
    named = resolved()
    first = [[f"`{name}`", text(parameters(c)), *(text(getattr(c, key)) for key in shape)] for name, c in named.items()]
    second = [[f"`{name}`", *(text(getattr(c, key)) for key in recipe)] for name, c in named.items()]
    return f"{table(['size', 'parameters', *shape], first)}\n\n{table(['size', *recipe], second)}"


def trainer_settings() -> str:
    """A heading for every setting of the trainer."""
    return "\n\n".join(
        f"### `{name}`\n\n{field.metadata['help']} {allowed(field)} {default(name)}" for name, field in FIELDS.items()
    )


def allowed(field: dataclasses.Field[object]) -> str:
    """What a setting may be."""
    rules, kind = field.metadata, TYPES[field.name]
    if kind is bool:
        return "True or false."
    if kind is str:
        return f"One of {', '.join(f'`{word}`' for word in rules['choices'])}." if rules["choices"] else "Text."
    return f"{'A whole number' if kind is int else 'A number'} from {rules['low']:,} to {rules['high']:,}."


def default(name: str) -> str:
    """What a setting is where nobody gives it, as two sizes show: a fixed value, or one that the size gives."""
    fixed = getattr(Config(), name)
    value, other = (getattr(resolve({"size": size}), name) for size in (TINY, LARGER))
    if fixed == value and (fixed == other or name in NAMED):
        return f"Default: {code(value)}."
    return f"Derived from the size; for `tiny`: {code(value)}" + ("." if fixed != value else f", else {code(other)}.")


def service_settings() -> str:
    """A heading for every setting of the control plane."""
    return "\n\n".join(
        f"### `{leaf.flag}`\n\n{leaf.field.metadata['help']} Variable: `{leaf.variable}`. "
        f"Default: {code(leaf.field.default)}."
        for leaf in leaves()
    )


def diagnoses(rows: dict[str, Diagnosis]) -> str:
    """What each reason comes from, and what helps."""
    lines = [f"| `{reason}` | {row.cause} | {row.mend} |" for reason, row in rows.items()]
    return "\n".join(["| reason | likely cause | what helps |", "| --- | --- | --- |", *lines])


def code(value: object) -> str:
    """A value as it is typed."""
    if value == "":
        return "empty"
    return f"`{str(value).lower() if isinstance(value, bool) else str(value).replace(str(Path.home()), '~')}`"


def resolved() -> dict[str, Config]:
    """Every size with everything that derives from it."""
    return {
        name: resolve({"size": name}, EMBEDDED_VOCABULARY if name == TINY else REFERENCE_VOCABULARY) for name in SIZES
    }


def parameters(config: Config) -> int:
    """The model's parameters."""
    return config.shape.parameters(config.num_tokens)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table, numbers to the right."""
    head = list(head)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def text(value: object) -> str:
    """A cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"`{value}`" if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def short(value: float, units: tuple[str, ...]) -> str:
    """Three digits and a unit, as `124 M`."""
    power = 0
    while float(f"{value:.3g}") >= 1000 and power < len(units) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g}{units[power] if units is COUNTS else ' ' + units[power]}"


def headings(page: str) -> set[str]:
    """What stands in backquotes in a page's headings."""
    return {name for line in page.splitlines() if line.startswith("#") for name in re.findall(r"`([^`]+)`", line)}


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "docs/diagnosis.md": {"ended": partial(diagnoses, ENDED), "waiting": partial(diagnoses, WAITING)},
    "README.md": {"sizes": sizes_brief},
    "docs/sizes.md": {"sizes": sizes_whole},
    "docs/settings.md": {"trainer": trainer_settings, "service": service_settings},
}


def blocks() -> list[Block]:
    """Every generated text."""
    return [Block(file, name, make()) for file, parts in BLOCKS.items() for name, make in parts.items()]


if __name__ == "__main__":
    sys.exit(main(blocks(), sys.argv[1:], "tools.reference"))
