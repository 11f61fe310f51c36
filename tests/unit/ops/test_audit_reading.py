"""Audit records are read back as they were written, in either form of the log, and fit the schema."""

import gzip
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest

from socks_tunnel.ops import audit
from socks_tunnel.ops.audit_reading import oldest_first, parse, records
from socks_tunnel.ops.logging import JsonFormatter, _JournalFormatter, _TextFormatter
from support.audit_records import check, validator

ODD = 'a "rule" with = and \\ and\nanother line \u2028 end'


def write(formatter: logging.Formatter) -> list[str]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.getLogger(audit.LOGGER_NAME)
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        audit.decision(
            peer="laptop-17",
            conn_id=7,
            command="connect",
            destination="[2001:db8::1]:443",
            verdict="denied",
            rule=ODD,
        )
        audit.flow_end(
            peer="laptop-17",
            conn_id=4_294_967_295,
            command="udp-associate",
            destination=None,
            up=1,
            down=0,
            seconds=0.5,
            reason="idle-timeout",
        )
        audit.killed(peer="a", conn_id=1, command="connect", destination="x:1", uid=1000, pid=42)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    return stream.getvalue().splitlines()


EXPECTED: list[dict[str, Any]] = [
    {
        "message": "policy decision",
        "peer": "laptop-17",
        "flow": 7,
        "command": "connect",
        "destination": "[2001:db8::1]:443",
        "verdict": "denied",
        "rule": ODD,
    },
    {
        "message": "flow ended",
        "peer": "laptop-17",
        "flow": 4_294_967_295,
        "command": "udp-associate",
        "up": 1,
        "down": 0,
        "seconds": 0.5,
        "reason": "idle-timeout",
    },
    {
        "message": "flow killed",
        "peer": "a",
        "flow": 1,
        "command": "connect",
        "destination": "x:1",
        "uid": 1000,
        "killer": 42,
    },
]


@pytest.mark.parametrize("formatter", [JsonFormatter, _TextFormatter, _JournalFormatter])
def test_what_is_written_is_read_back(formatter: type[logging.Formatter]) -> None:
    lines = write(formatter("worker-3"))
    assert len(lines) == 3
    for line, expected in zip(lines, EXPECTED, strict=True):
        record = parse(line)
        assert record is not None, line
        assert record["component"] == "worker-3"
        assert {key: record[key] for key in expected} == expected
    assert len(check("\n".join(lines))) == 3


def test_as_the_journal_shows_it() -> None:
    line = write(_JournalFormatter("worker-0"))[1].removeprefix("<6>")
    record = parse(f"Nov 27 20:00:00 office socks-tunnel[4711]: {line}")
    assert record is not None
    assert (record["component"], record["up"]) == ("worker-0", 1)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "2026-11-27T20:00:00.000Z INFO    supervisor socks_tunnel.supervisor: policy decision peer=a",
        "x socks_tunnel.audit: policy decision",
        '{"logger": "socks_tunnel.audit", "message": "flow en',
        '["logger": "socks_tunnel.audit"]',
    ],
)
def test_other_lines_are_none(line: str) -> None:
    assert parse(line) is None


def test_the_schema_refuses_what_does_not_fit() -> None:
    good: dict[str, Any] = {"time": "2026-11-27T20:00:00.000+00:00", "level": "info"}
    good |= {"component": "worker-0", "pid": 1, "logger": audit.LOGGER_NAME, **EXPECTED[1]}
    validator()(good)
    wrong: list[dict[str, Any]] = [
        {"up": -1},
        {"up": "1"},
        {"message": "flow"},
        {"message": "policy decision"},
        {"reason": "Bad"},
        {"flow": 2**32},
        {"component": "exporter"},
        {"time": "today"},
    ]
    for change in wrong:
        with pytest.raises(fastjsonschema.JsonSchemaException):
            validator()(good | change)
    with pytest.raises(fastjsonschema.JsonSchemaException):
        validator()({key: value for key, value in good.items() if key != "pid"})


def test_the_check_of_a_log_finds_a_record_that_does_not_fit() -> None:
    [_, line, _] = write(_TextFormatter("worker-0"))
    with pytest.raises(AssertionError, match="up"):
        check(line.replace("up=1", "up=-1"))
    with pytest.raises(AssertionError, match="cannot be read"):
        check(line.replace("flow ended", "flow ends"))


def test_rotated_files_are_read_from_the_oldest_on(tmp_path: Path) -> None:
    lines = [json.dumps({"logger": audit.LOGGER_NAME, "message": "x", "n": n}) for n in range(3)]
    file = tmp_path / "audit.jsonl"
    with gzip.open(tmp_path / "audit.jsonl.2.gz", "wt") as old:
        old.write(f"{lines[0]}\n")
    (tmp_path / "audit.jsonl.1").write_text(f"broken {{\n\n{lines[1]}\n")
    file.write_text(lines[2])
    (tmp_path / "other.jsonl").write_text("")
    os.utime(tmp_path / "audit.jsonl.2.gz", (1, 1))
    found = oldest_first(file)
    assert [path.name for path in found] == ["audit.jsonl.2.gz", "audit.jsonl.1", "audit.jsonl"]
    assert [record["n"] for path in found for record in records(path)] == [0, 1, 2]
