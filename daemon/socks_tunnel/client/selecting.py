"""Filters and sorts the flows that `socks-tunnel connections` shows. No I/O."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

NUMBERS: Final = {"age": "seconds", "up": "up", "down": "down", "total": "", "worker": "worker"}
"""Numeric orders, the highest first, with the field of a flow's row ("" for a sum)."""

TEXTS: Final = ("peer", "client", "destination", "command", "kind", "state")
"""Alphabetical orders: fields of a flow's row."""

FIELDS: Final = (*TEXTS, "flow", "worker")
"""Fields for filters."""


class FilterError(ValueError):
    """A filter cannot be parsed. The text is a sentence."""


def ordered(rows: Iterable[Mapping[str, Any]], by: str | None) -> list[Mapping[str, Any]]:
    """Returns the rows in the order `by`, reversed with a leading `-`. Equal rows keep theirs."""
    if by is None:
        return list(rows)
    name = by.removeprefix("-")
    numeric = name in NUMBERS
    if name == "total":
        return sorted(rows, key=lambda row: row["up"] + row["down"], reverse=by == name)
    field = NUMBERS[name] if numeric else name
    return sorted(rows, key=lambda row: row[field], reverse=numeric == (by == name))


def orders() -> Sequence[str]:
    """Returns all orders that :func:`ordered` takes."""
    names = (*NUMBERS, *TEXTS)
    return [*names, *(f"-{name}" for name in names)]


def matching(rows: Iterable[Mapping[str, Any]], filters: Iterable[str]) -> list[Mapping[str, Any]]:
    """Returns the rows that match all filters.

    `FIELD=PATTERN` compares one of :data:`FIELDS` with a shell pattern (`*`, `?`, `[…]`), and
    `FIELD!=PATTERN` is its opposite. A filter without `=` matches a part of client, destination or
    peer. Case is ignored. Raises :class:`FilterError`.
    """
    checks = [_parse(text) for text in filters]
    return [row for row in rows if all(_fits(row, *check) for check in checks)]


def flow_name(row: Mapping[str, Any]) -> str:
    """Returns the name of a flow, as `kill` takes it."""
    return f"{row['peer']}/{row['conn_id']}"


def _parse(text: str) -> tuple[str, str, bool]:
    field, equals, pattern = text.partition("=")
    if not equals:
        return "", text.lower(), True
    wanted = not field.endswith("!")
    field = field.removesuffix("!")
    if field not in FIELDS:
        raise FilterError(f"flows are filtered by {', '.join(FIELDS)}, not by {field!r}")
    return field, pattern.lower(), wanted


def _fits(row: Mapping[str, Any], field: str, pattern: str, wanted: bool) -> bool:
    if not field:
        return any(pattern in str(row[name]).lower() for name in ("client", "destination", "peer"))
    value = flow_name(row) if field == "flow" else str(row[field])
    return fnmatchcase(value.lower(), pattern) is wanted
