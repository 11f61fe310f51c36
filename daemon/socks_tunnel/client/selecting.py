"""Which flows `socks-tunnel connections` shows, and in which order. No I/O."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

NUMBERS: Final = {"age": "seconds", "up": "up", "down": "down", "total": "", "worker": "worker"}
"""What can be sorted by and is a number: the most comes first. The field of a flow's row."""

TEXTS: Final = ("peer", "client", "destination", "command", "kind", "state")
"""What can be sorted by and is a text: in the order of the alphabet."""

FIELDS: Final = (*TEXTS, "flow", "worker")
"""What can be filtered by."""


class FilterError(ValueError):
    """A filter that cannot be understood; the text is a sentence."""


def ordered(rows: Iterable[Mapping[str, Any]], by: str | None) -> list[Mapping[str, Any]]:
    """Returns the rows in an order; equal ones stay as they were. `-` before it turns it round."""
    if by is None:
        return list(rows)
    name = by.removeprefix("-")
    numeric = name in NUMBERS
    if name == "total":
        return sorted(rows, key=lambda row: row["up"] + row["down"], reverse=by == name)
    field = NUMBERS[name] if numeric else name
    return sorted(rows, key=lambda row: row[field], reverse=numeric == (by == name))


def orders() -> Sequence[str]:
    """Returns all that :func:`ordered` takes."""
    names = (*NUMBERS, *TEXTS)
    return [*names, *(f"-{name}" for name in names)]


def matching(rows: Iterable[Mapping[str, Any]], filters: Iterable[str]) -> list[Mapping[str, Any]]:
    """Returns the rows that fit every filter.

    `FIELD=PATTERN` compares one of :data:`FIELDS` with a shell pattern (`*`, `?`, `[…]`), and
    `FIELD!=PATTERN` turns that round; a filter without `=` is looked for in client, destination and
    peer. Upper and lower case are the same. Raises :class:`FilterError`.
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
