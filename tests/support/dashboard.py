"""Draws the dashboard of packaging/prometheus from what Prometheus answers to its queries.

Not Grafana, which neither Debian nor PyPI has, but what Grafana would be given: each panel in its
place of the grid, with its title, its legend and the answers to its own queries.
"""

import html
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from support.prometheus_files import dashboard

Query = Callable[[str], list[dict[str, Any]]]
"""Returns the series of a range query, as the API of Prometheus has them."""

COLOURS = ("#0b6bcb", "#b3541e", "#1a7f4b", "#9a6700", "#8250df", "#c2292e", "#137b8b", "#6e7781")

STYLE = """
body { font: 12px system-ui, sans-serif; background: #f6f7f9; color: #1c232b; margin: 8px; }
main { display: grid; grid-template-columns: repeat(24, 1fr); grid-auto-rows: 30px; gap: 6px; }
section { background: #fff; border: 1px solid #d9dde3; border-radius: 4px; padding: 4px 8px;
  overflow: hidden; display: flex; flex-direction: column; min-width: 0; }
h1 { font-size: 14px; margin: 4px 0; align-self: end; } h2 { font-size: 12px; margin: 0; }
svg { flex: 1; min-height: 0; width: 100%; } path { fill: none; stroke-width: 1.5; }
b { font-size: 24px; } p { margin: 2px 0; } small { color: #5b6672; overflow: hidden; max-height: 3em; }
"""


@dataclass(frozen=True)
class Line:
    """A series with its name in the legend."""

    name: str
    points: tuple[tuple[float, float], ...]


def asked(expression: str) -> str:
    """An expression as Grafana sends it: all jobs and instances, and an interval for rates."""
    text = expression.replace("$__rate_interval", "10s")
    return text.replace("$job", ".*").replace("$instance", ".*")


def lines(panel: Mapping[str, Any], query: Query) -> Iterator[Line]:
    """What a panel shows."""
    for target in panel["targets"]:
        for series in query(asked(target["expr"])):
            labels = series["metric"]
            name = re.sub(
                r"\{\{(\w+)\}\}",
                lambda found, labels=labels: labels[found[1]],  # type: ignore[misc]
                target["legendFormat"],
            )
            points = [(float(moment), float(value)) for moment, value in series["values"]]
            yield Line(name, tuple(p for p in points if math.isfinite(p[1])))


def drawn(query: Query) -> tuple[str, dict[str, list[Line]]]:
    """The page, and what each panel shows by its title."""
    parts = []
    shown: dict[str, list[Line]] = {}
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        style = (
            f"grid-column: {place['x'] + 1} / span {place['w']}; "
            f"grid-row: {place['y'] + 1} / span {place['h']}"
        )
        title = html.escape(panel["title"])
        if panel["type"] == "row":
            parts.append(f'<h1 style="{style}">{title}</h1>')
            continue
        found = [line for line in lines(panel, query) if line.points]
        shown[panel["title"]] = [*shown.get(panel["title"], ()), *found]
        body = _figures(found) if panel["type"] == "stat" else _chart(found)
        parts.append(
            f'<section style="{style}" data-title="{title}"><h2>{title}</h2>{body}</section>'
        )
    page = "".join(parts)
    return f"<!doctype html><meta charset=utf-8><style>{STYLE}</style><main>{page}</main>", shown


def _figures(found: list[Line]) -> str:
    return "".join(
        f"<p><b>{_number(line.points[-1][1])}</b> {html.escape(line.name)}</p>" for line in found
    )


def _chart(found: list[Line]) -> str:
    if not found:
        return "<p>No data</p>"
    points = [point for line in found for point in line.points]
    begin, end = min(p[0] for p in points), max(p[0] for p in points)
    low, high = min(0.0, *(p[1] for p in points)), max(p[1] for p in points)
    across, up = (end - begin) or 1.0, (high - low) or 1.0
    paths, names = [], []
    for number, line in enumerate(found):
        colour = COLOURS[number % len(COLOURS)]
        where = "L".join(
            f"{300 * (t - begin) / across:.1f} {98 - 96 * (value - low) / up:.1f}"
            for t, value in line.points
        )
        paths.append(f'<path d="M{where}" stroke="{colour}"/>')
        names.append(f'<span style="color: {colour}">{html.escape(line.name)}</span>')
    svg = f'<svg viewBox="0 0 300 100" preserveAspectRatio="none">{"".join(paths)}</svg>'
    return f"<small>up to {_number(high)}</small>{svg}<small>{', '.join(names)}</small>"


def _number(value: float) -> str:
    for unit in ("", "k", "M", "G"):
        if abs(value) < 1000 or unit == "G":
            return f"{value:.3g}{unit}"
        value /= 1000
    raise AssertionError
