"""Log lines: their three forms, and a writer that holds nobody up."""

import json
import logging
import os
import re
import select
from collections.abc import Iterator
from typing import Any

import pytest

from socks_tunnel.ops import audit
from socks_tunnel.ops import logging as ops_logging
from socks_tunnel.ops.logging import FLUSH_TIMEOUT, QUEUE_LIMIT, set_level, setup, shutdown
from socks_tunnel.protocol.addresses import HostPort
from support.audit_records import validator


class Pipe:
    """Stands in for standard error."""

    def __init__(self) -> None:
        self.reading_end, self.writing_end = os.pipe()

    def setup(self, level: str, format_name: str, *, component: str = "c") -> None:
        setup(level, format_name, component=component, fd=self.writing_end)

    def read_all(self) -> str:
        """Returns all that was logged; ends the logging."""
        shutdown()
        os.close(self.writing_end)
        with os.fdopen(self.reading_end, "rb") as stream:
            return stream.read().decode()


@pytest.fixture
def stderr() -> Iterator[Pipe]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    names = (*ops_logging._QUIET_LIBRARIES, audit.LOGGER_NAME)
    levels = {name: logging.getLogger(name).level for name in names}
    yield Pipe()
    shutdown()
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old_level in levels.items():
        logging.getLogger(name).setLevel(old_level)


log = logging.getLogger("socks_tunnel.supervisor")


def test_text(stderr: Pipe) -> None:
    stderr.setup("info", "text", component="supervisor")
    log.info(
        "worker %d exited", 3, extra={"fields": {"status": -9, "peer": "office", "why": "a b"}}
    )
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO    supervisor socks_tunnel\.supervisor: "
        r'worker 3 exited status=-9 peer=office why="a b"\n',
        stderr.read_all(),
    )


@pytest.mark.parametrize(
    ("level", "priority"),
    [("debug", 7), ("info", 6), ("warning", 4), ("error", 3), ("critical", 3)],
)
def test_journal(stderr: Pipe, level: str, priority: int) -> None:
    stderr.setup("debug", "journal", component="worker-0")
    getattr(log, level)("a sentence", extra={"fields": {"flow": 7}})
    expected = f"<{priority}>worker-0 socks_tunnel.supervisor: a sentence flow=7\n"
    assert stderr.read_all() == expected


def test_json(stderr: Pipe) -> None:
    stderr.setup("info", "json", component="worker-0")
    fields = {"peer": "büro", "flow": 7, "level": "shadow", "when": HostPort("::1", 1)}
    log.warning("a %s", "sentence\nin two", extra={"fields": fields})
    line = stderr.read_all()
    assert line.count("\n") == 1
    assert line.isascii()
    record = json.loads(line)
    assert record.pop("time").endswith("+00:00")
    assert record == {
        "level": "warning",
        "component": "worker-0",
        "pid": os.getpid(),
        "logger": "socks_tunnel.supervisor",
        "message": "a sentence\nin two",
        "peer": "büro",
        "flow": 7,
        "field_level": "shadow",
        "when": ["::1", 1],
    }


@pytest.mark.parametrize("format_name", ["text", "journal", "json"])
def test_nobody_can_forge_a_line(stderr: Pipe, format_name: str) -> None:
    forged = "x\n2026-01-01 INFO forged\r\x1b[2J\x85\u2028\udc80"
    stderr.setup("info", format_name, component="supervisor")
    log.info("host %s", forged, extra={"fields": {"host": forged, "quote": 'a="b" \\'}})
    line = stderr.read_all()
    assert len(line.splitlines()) == 1
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", line)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", "plain"),
        (7, "7"),
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('say "x"', '"say \\"x\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("tab\there", '"tab\\there"'),
        ("\x00\u2029", '"\\x00\\u2029"'),
        (None, "None"),
    ],
)
def test_values(stderr: Pipe, value: object, shown: str) -> None:
    stderr.setup("info", "journal")
    log.info("s", extra={"fields": {"k": value}})
    assert stderr.read_all() == f"<6>c socks_tunnel.supervisor: s k={shown}\n"


def fail() -> None:
    raise ValueError("first\nsecond")


def log_failure() -> None:
    try:
        fail()
    except ValueError:
        log.exception("it failed")


def test_a_traceback_in_text_is_indented(stderr: Pipe) -> None:
    stderr.setup("info", "text")
    log_failure()
    first, *rest = stderr.read_all().splitlines()
    assert first.endswith("c socks_tunnel.supervisor: it failed")
    assert rest[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in rest)


def test_a_traceback_in_the_journal_has_a_priority_on_each_line(stderr: Pipe) -> None:
    stderr.setup("info", "journal")
    log_failure()
    lines = stderr.read_all().splitlines()
    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines)


def test_a_traceback_in_json_is_one_line(stderr: Pipe) -> None:
    stderr.setup("info", "json")
    log_failure()
    [line] = stderr.read_all().splitlines()
    assert json.loads(line)["exception"].endswith("ValueError: first\nsecond")


def test_exc_info_without_an_exception_is_nothing(stderr: Pipe) -> None:
    stderr.setup("info", "text")
    log.error("no exception here", exc_info=True)  # noqa: LOG014 - the mistake is the case
    assert stderr.read_all().endswith("no exception here\n")


def test_auto_is_text_off_the_journal(stderr: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    stderr.setup("info", "auto")
    log.info("x")
    assert re.match(r"\d{4}-", stderr.read_all())


def test_auto_is_journal_on_its_stream(stderr: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.fstat(stderr.writing_end)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    stderr.setup("info", "auto")
    log.info("x")
    assert stderr.read_all().startswith("<6>c ")


def test_levels(stderr: Pipe) -> None:
    stderr.setup("warning", "journal")
    log.info("too quiet")
    log.warning("one")
    set_level("debug")
    log.debug("two")
    logging.getLogger("aioice").info("three")
    set_level("info")
    log.debug("too quiet")
    logging.getLogger("aiortc.rtcsctptransport").info("a library's chatter")
    logging.getLogger("aioice").warning("four")
    said = [line.rpartition(" ")[2] for line in stderr.read_all().splitlines()]
    assert said == ["one", "two", "three", "four"]


def test_the_audit_trail_is_on_at_every_level(stderr: Pipe) -> None:
    stderr.setup("error", "journal", component="worker-0")
    audit.decision(
        peer="office",
        conn_id=7,
        command="connect",
        destination=HostPort("::1", 80),
        verdict="denied",
        rule="loopback address",
    )
    log.warning("too quiet")
    (line,) = stderr.read_all().splitlines()
    # JSON, as in a file: programs read it out of the journal.
    assert line.startswith("<6>{")
    record = json.loads(line.removeprefix("<6>"))
    validator()(record)
    assert record["component"] == "worker-0"
    assert (record["message"], record["destination"]) == ("policy decision", "[::1]:80")


def test_setup_again_replaces(stderr: Pipe) -> None:
    stderr.setup("info", "json", component="a")
    stderr.setup("info", "journal", component="b")
    log.info("once")
    assert stderr.read_all() == "<6>b socks_tunnel.supervisor: once\n"


def test_a_bad_logging_call_reaches_nobody(stderr: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr.setup("info", "journal")
    told: list[logging.LogRecord] = []
    handler: Any = ops_logging._handler
    monkeypatch.setattr(handler, "handleError", told.append)
    log.info("%d", "not a number")
    log.info("after")
    assert stderr.read_all() == "<6>c socks_tunnel.supervisor: after\n"
    assert len(told) == 1


def test_lines_of_processes_do_not_mix(stderr: Pipe) -> None:
    """A pipe takes up to PIPE_BUF bytes as one: so groups of lines are no longer than that."""
    stderr.setup("info", "journal")
    handler: Any = ops_logging._handler
    line = b"x" * 1000 + b"\n"
    with handler._changed:
        handler._lines.extend([line] * 10 + [b"y" * 10_000 + b"\n", line])
        handler._waiting = 10 * len(line) + 10_001 + len(line)
        batches = []
        while handler._lines:
            batches.append(handler._next_batch())
    assert all(batch.endswith(b"\n") for batch in batches)
    assert all(len(batch) <= select.PIPE_BUF for batch in batches if b"y" not in batch)
    assert [len(batch) // 1000 for batch in batches] == [4, 4, 2, 10, 1]
    assert handler._waiting == 0


def test_a_reader_that_does_not_read_costs_lines_and_no_memory(stderr: Pipe) -> None:
    stderr.setup("info", "journal")
    line = "x" * 100_000
    attempts = QUEUE_LIMIT // len(line) + 50
    for _ in range(attempts):
        log.info(line)  # none of these waits for the reader
    handler: Any = ops_logging._handler
    assert handler._waiting <= QUEUE_LIMIT

    # Each one comes out or is counted as dropped, in one notice or several.
    said = b""
    written = dropped = 0
    while written + dropped < attempts:
        said += os.read(stderr.reading_end, 1 << 20)
        written = said.count(line.encode() + b"\n")
        dropped = sum(map(int, re.findall(rb": (\d+) log lines were dropped", said)))
    assert written + dropped == attempts
    assert written > 0
    assert dropped > 0
    stderr.read_all()


def test_dropped_lines_are_told_where_they_would_be(stderr: Pipe) -> None:
    stderr.setup("info", "journal")
    handler: Any = ops_logging._handler
    dropped = ops_logging.dropped_lines.copy()
    with handler._changed:  # the writer cannot take anything meanwhile
        log.info("before")
        handler._waiting += QUEUE_LIMIT
        log.info("dropped")
        handler._waiting -= QUEUE_LIMIT
        log.info("after")
    assert ops_logging.dropped_lines == {**dropped, "log": dropped["log"] + 1}
    assert [line.rpartition(": ")[2] for line in stderr.read_all().splitlines()] == [
        "before",
        "standard error is not read fast enough",
        "after",
    ]


def test_the_end_does_not_wait_for_ever(stderr: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    assert FLUSH_TIMEOUT <= 5
    monkeypatch.setattr(ops_logging, "FLUSH_TIMEOUT", 0.01)
    stderr.setup("info", "journal")
    handler: Any = ops_logging._handler
    for _ in range(10):
        log.info("x" * 100_000)  # more than the pipe takes, and nobody reads
    shutdown()
    log.info("nobody listens any more")
    os.close(stderr.reading_end)  # what still waits is given up
    handler._thread.join(60)
    assert not handler._thread.is_alive()


def test_a_reader_that_is_gone_is_no_error(stderr: Pipe) -> None:
    stderr.setup("info", "journal")
    handler: Any = ops_logging._handler
    os.close(stderr.reading_end)
    for _ in range(10):
        log.info("to nobody")
    shutdown()
    handler._thread.join(60)
    assert not handler._thread.is_alive()
    os.close(stderr.writing_end)


def test_a_non_blocking_standard_error_loses_nothing(stderr: Pipe) -> None:
    os.set_blocking(stderr.writing_end, False)
    stderr.setup("info", "journal")
    line = "x" * 1_000
    for _ in range(1_000):
        log.info(line)
    said = bytearray()
    while said.count(b"\n") < 1_000:
        said += os.read(stderr.reading_end, 65536)
    assert said.count(line.encode()) == 1_000
    assert stderr.read_all() == ""


def test_a_closed_standard_error(stderr: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    os.close(stderr.writing_end)
    os.close(stderr.reading_end)
    stderr.setup("info", "auto")
    log.info("to nobody")
