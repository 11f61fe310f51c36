"""Holds every audit record that a test run writes to the schema that is shipped."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import fastjsonschema

from socks_tunnel.ops import audit
from socks_tunnel.ops.audit_reading import SCHEMA, parse


@cache
def validator() -> Callable[[Any], Any]:
    """Returns what raises JsonSchemaException for a record that does not fit."""
    compiled: Callable[[Any], Any] = fastjsonschema.compile(json.loads(SCHEMA.read_text()))
    return compiled


def check(log: str) -> list[dict[str, Any]]:
    """Returns the audit records in a log of either form; AssertionError for one that does not fit.

    A line whose beginning was overtaken by a kill is no record.
    """
    found = []
    for line in log.splitlines():
        if audit.LOGGER_NAME not in line:
            continue
        record = parse(line)
        assert record is not None, f"an audit record that cannot be read: {line!r}"
        if "{" not in line.split(audit.LOGGER_NAME)[0]:
            # The text form lacks what is the same for every line of a process.
            record = {"pid": 1, "time": "2026-01-01T00:00:00.000Z", "level": "info", **record}
        try:
            validator()(record)
        except fastjsonschema.JsonSchemaException as error:
            raise AssertionError(f"{error}: {line!r}") from None
        found.append(record)
    return found
