"""How a result of an instance is printed: as JSON, or as lines and tables."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text


def show(result: dict[str, Any] | list[Any], *, as_json: bool) -> None:
    """Prints a result: as JSON, or lists of objects as tables and the rest as lines."""
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # for grep and awk: one line for each row, and nothing is cut off
    for key, value in dict(result).items():
        title = key.replace("_", " ")
        if isinstance(value, list) and all(isinstance(row, dict) for row in value):
            console.print(Text(f"{title}: {len(value)}"))
            if value:
                console.print(_table(value))
        elif isinstance(value, dict):
            inner = (f"{name.replace('_', ' ')} {_cell(part)}" for name, part in value.items())
            console.print(Text(f"{title}: {', '.join(inner)}"))
        else:
            console.print(Text(f"{title}: {_cell(value)}"))


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        numeric = all(isinstance(row.get(name) or 0, int | float) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if numeric else "left")
    for row in rows:
        # Text, because rich would read a plain string such as "[::1]:80" as its markup.
        table.add_row(*(Text(_cell(row.get(name))) for name in names))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "-"
    return json.dumps(value) if isinstance(value, dict) else str(value)
