"""A plan as one HTML page that needs nothing else: memory by kind, the step's time line, and scaling curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import log2

from teragpt.plan.planner import Plan
from teragpt.plan.report import giga, seconds, table

COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#bbbbbb")
WIDTH, BAR = 960, 46
STYLE = "body{font:15px/1.5 system-ui;margin:2em auto;max-width:1000px}td{padding:2px 12px 2px 0;vertical-align:top}"


def page(plans: Sequence[Plan]) -> str:
    """The page of one plan, or of a sweep, whose last plan is shown whole."""
    plan = plans[-1]
    memory = {**plan.best.memory.kinds}
    parts = [
        f"<h1>{escape(plan.config.size)} on {plan.best.cut.stages.ranks:,} {escape(plan.cluster.device.label)}</h1>",
        "<h2>Memory of the fullest rank</h2>",
        bar(memory, giga, plan.cluster.device.memory),
        "<h2>One step</h2>",
        bar(plan.best.step.parts, seconds),
    ]
    if plan.best.step.travels:
        parts += [
            "<p>Of it, beside compute; dp is what sticks out:</p>",
            bar(plan.best.step.travels, seconds, plan.best.seconds),
        ]
    if len(plans) > 1:
        parts += ["<h2>Scaling</h2>", curve(plans)]
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in table(plan))
    body = "\n".join([*parts, f"<table>{rows}</table>"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><style>{STYLE}</style><body>\n{body}\n</body></html>\n'
    )


def bar(kinds: Mapping[str, float], unit: Callable[[float], str], whole: float | None = None) -> str:
    """Parts of a whole side by side, each named below with its size."""
    there = {kind: value for kind, value in kinds.items() if value}
    scale = WIDTH / max(whole or 0, sum(there.values()))
    boxes, legend, left = [], [], 0.0
    for (kind, value), colour in zip(there.items(), COLOURS, strict=False):
        title = f"{escape(kind)}: {unit(value)}"
        boxes.append(
            f'<rect x="{left:.1f}" width="{max(0.5, value * scale):.1f}" height="{BAR}" fill="{colour}">'
            f"<title>{title}</title></rect>"
        )
        legend.append(f'<span style="color:{colour}">&#9632;</span> {title}')
        left += value * scale
    frame = f'<rect width="{WIDTH}" height="{BAR}" fill="none" stroke="#888"/>'
    return f'<svg width="{WIDTH}" height="{BAR}">{"".join(boxes)}{frame}</svg><p>{" &nbsp; ".join(legend)}</p>'


def curve(plans: Sequence[Plan]) -> str:
    """Tokens a second over GPUs, both by their logarithm, beside what perfect scaling from the first would be."""
    points = [(log2(one.cluster.gpus), log2(one.forecast.tokens_per_second)) for one in plans]
    (first, base), last = points[0], points[-1][0]
    top = base + last - first
    across, up = WIDTH / max(last - first, 1e-9), 280 / max(top - base, 1e-9)
    line = " ".join(f"{(x - first) * across:.1f},{300 - (y - base) * up:.1f}" for x, y in points)
    marks = "".join(
        f'<circle cx="{(x - first) * across:.1f}" cy="{300 - (y - base) * up:.1f}" r="4" fill="{COLOURS[0]}"><title>'
        f"{one.cluster.gpus:,} GPUs: {one.forecast.tokens_per_second:,.0f} tokens/s, MFU {one.forecast.mfu:.1%}, "
        f"{one.forecast.days:,.3g} days</title></circle>"
        for (x, y), one in zip(points, plans, strict=True)
    )
    ideal = f'<line x1="0" y1="300" x2="{WIDTH}" y2="20" stroke="#bbb" stroke-dasharray="6"/>'
    drawn = f'<polyline points="{line}" fill="none" stroke="{COLOURS[0]}" stroke-width="2"/>'
    names = f"{plans[0].cluster.gpus:,} to {plans[-1].cluster.gpus:,} GPUs; dashed: perfect scaling"
    return f'<svg width="{WIDTH}" height="310">{ideal}{drawn}{marks}</svg><p>Tokens a second, {names}.</p>'
