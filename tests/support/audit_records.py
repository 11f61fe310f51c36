"""Holds every audit record that a test run writes to the schema that is shipped."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import fastjsonschema

from socks_tunnel.ops import audit
from socks_tunnel.ops.audit_reading import SCHEMA, parse
from socks_tunnel.ops.logging import JsonFormatter


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


LEVEL = logging.INFO - 1
"""The level of the audit logger in tests that do not set one, as records are made from INFO on."""


class _Judge(logging.Filter):
    """Looks at each record of this process, and lets those pass that would be there without it."""

    def __init__(self) -> None:
        super().__init__()
        self.complaints: list[str] = []
        self._formatter = JsonFormatter("worker-0")

    def filter(self, record: logging.LogRecord) -> bool:
        """Judges a record by the line that a file would get."""
        line = self._formatter.format(record)
        try:
            validator()(json.loads(line))
        except fastjsonschema.JsonSchemaException as error:
            self.complaints.append(f"{error}: {line}")
        logger = logging.getLogger(audit.LOGGER_NAME)
        return logger.level != LEVEL or logging.getLogger().isEnabledFor(logging.INFO)


@contextmanager
def judged() -> Iterator[None]:
    """Holds the records of this process to the schema; AssertionError at the end if one does not fit.

    They are made whatever the level of the log is, as in production, and go no further than without it.
    """
    logger, judge = logging.getLogger(audit.LOGGER_NAME), _Judge()
    logger.setLevel(LEVEL)  # whatever an earlier test has left
    logger.addFilter(judge)
    try:
        yield
    finally:
        logger.removeFilter(judge)
        logger.setLevel(logging.NOTSET)
    assert not judge.complaints, judge.complaints
