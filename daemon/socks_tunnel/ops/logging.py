"""Log lines for an operator: one per record, on standard error, in one of three formats.

* `text`: time, level, component, logger, sentence, then the fields as `key=value`;
* `journal`: the same without the time, behind the `<priority>` that sd-daemon(3) describes; audit
  records are JSON there too;
* `json`: one object per line, the fields as keys of their own.

Fields are given as `logger.info("sentence", extra={"fields": {"peer": name}})`. Text from outside
cannot begin a new line, because line breaks and control characters are escaped. Only a
traceback takes further lines, in the two formats for people.

Standard error may be a pipe that nobody reads, and a write to it would then stop the event loop and
every flow with it. So lines are handed to a thread through a queue of bounded size; when it is
full, lines are dropped. The first line after that says how many.
"""

import atexit
import json
import logging
import os
import re
import select
import threading
from collections import deque
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from socks_tunnel.ops import audit
from socks_tunnel.ops.labels import LOGS

STDERR: Final = 2

QUEUE_LIMIT: Final = 4 * 1024 * 1024
"""Bytes of formatted lines that may wait for standard error."""

GATHER_SECONDS: Final = 0.02
"""Seconds for which lines are collected between two writes."""

FLUSH_TIMEOUT: Final = 2.0
"""Seconds for which the end of the process waits until waiting lines are written."""

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

# These libraries log each candidate pair or request at INFO, which helps only their authors.
_QUIET_LIBRARIES: Final = ("aiortc", "aioice", "aiohttp", "asyncio")

_ESCAPES: Final = {
    **{code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))},
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    **{code: f"\\u{code:04x}" for code in (0x2028, 0x2029)},
}

# Printable ASCII without space, quote, equals sign and backslash needs no quotes as a value.
_is_plain: Final = re.compile(r"[!#-<>-\[\]-~]+").fullmatch

_handler: "QueueHandler | None" = None


def setup(
    level: str,
    format: str,  # noqa: A002 - the setting's name
    *,
    component: str,
    fd: int = STDERR,
) -> None:
    """Sends all log records of this process to standard error, or another file descriptor.

    `level` is "debug", "info", "warning" or "error"; `format` "journal", "json", "text" or "auto",
    which is journal where standard error is the journal's stream and text elsewhere. `component`
    names the process in each line ("supervisor", "worker-3"). Calling it again replaces what the
    call before it set up.
    """
    global _handler  # noqa: PLW0603 - logging is a property of the process
    if _handler is None:
        _handler = QueueHandler(fd)
        atexit.register(shutdown)
        # Our lines do not need these, and they are half of a record's cost (logging HOWTO,
        # "Optimization").
        logging._srcfile = None  # noqa: SLF001 - as documented there
        logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
        logging.captureWarnings(capture=True)
    if format == "auto":
        format = "journal" if _is_journal(fd) else "text"  # noqa: A001 - as above
    _handler.setFormatter(_FORMATTERS[format](component))
    root = logging.getLogger()
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    root.addHandler(_handler)
    logging.getLogger(audit.LOGGER_NAME).setLevel(logging.INFO)
    set_level(level)


def set_level(level: str) -> None:
    """Changes the level of what is logged, in a running process; the audit trail stays on."""
    number = _LEVELS[level]
    logging.getLogger().setLevel(number)
    for name in _QUIET_LIBRARIES:
        quiet = number if number == logging.DEBUG else max(number, logging.WARNING)
        logging.getLogger(name).setLevel(quiet)


def shutdown() -> None:
    """Writes waiting lines, for at most :data:`FLUSH_TIMEOUT`.

    It is called automatically at exit.
    """
    global _handler  # noqa: PLW0603 - as in setup
    if _handler is not None:
        logging.getLogger().removeHandler(_handler)
        _handler.close()
        _handler = None


def _is_journal(fd: int) -> bool:
    # systemd.exec(5): JOURNAL_STREAM is "device:inode" of the stream, to be compared, because the
    # variable is inherited also by a process whose standard error was redirected.
    try:
        stat = os.fstat(fd)
    except OSError:  # standard error is closed
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, dict) else {}


def _quoted(text: str) -> str:
    quoted = text.replace("\\", "\\\\").replace('"', '\\"').translate(_ESCAPES)
    return f'"{quoted}"'


# json.dumps makes a new encoder for each call with unusual arguments.
_encoded: Final = json.JSONEncoder(default=str).encode


@lru_cache(2)
def _second(seconds: int) -> str:
    """Returns a time as text. It is cached, because busy processes log many lines in one second."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


class _Formatter(logging.Formatter):
    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component

    def _sentence(self, record: logging.LogRecord) -> str:
        sentence = record.getMessage()
        if not sentence.isprintable():
            sentence = sentence.translate(_ESCAPES)
        # It is one function for speed: each flow has two such lines.
        for key, value in _fields(record).items():
            text = str(value)
            if not _is_plain(text):
                text = _quoted(text)
            sentence += f" {key}={text}"
        return sentence

    def _traceback(self, record: logging.LogRecord) -> list[str]:
        if not record.exc_info or record.exc_info[0] is None:
            return []
        lines = self.formatException(record.exc_info).splitlines()
        return ["    " + line.translate(_ESCAPES) for line in lines]


class _TextFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        first = (
            f"{_second(int(record.created))}.{int(record.msecs):03}Z {record.levelname:<7} "
            f"{self._component} {record.name}: {self._sentence(record)}"
        )
        return "\n".join((first, *self._traceback(record))) if record.exc_info else first


class JsonFormatter(_Formatter):
    """One object in a line; the fields are keys of their own."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line of a record."""
        line: dict[str, Any] = {
            "time": f"{_second(int(record.created))}.{int(record.msecs):03}+00:00",
            "level": record.levelname.lower(),
            "component": self._component,
            "pid": os.getpid(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        for key, value in _fields(record).items():
            line[f"field_{key}" if key in line else key] = value
        return _encoded(line)


class _JournalFormatter(_Formatter):
    """Writes log lines as sentences for people, and audit records as JSON for programs."""

    def __init__(self, component: str) -> None:
        super().__init__(component)
        self._records = JsonFormatter(component)

    def format(self, record: logging.LogRecord) -> str:
        """Returns the lines of a record."""
        # Each line is a record of its own to the journal, so each needs its priority (syslog(3)).
        if record.levelno >= logging.ERROR:
            prefix = "<3>"
        elif record.levelno >= logging.WARNING:
            prefix = "<4>"
        elif record.levelno >= logging.INFO:
            prefix = "<6>"
        else:
            prefix = "<7>"
        if record.name == audit.LOGGER_NAME:
            return prefix + self._records.format(record)
        first = f"{self._component} {record.name}: {self._sentence(record)}"
        if not record.exc_info:
            return prefix + first
        return "\n".join(prefix + line for line in (first, *self._traceback(record)))


_FORMATTERS: Final[dict[str, type[_Formatter]]] = {
    "text": _TextFormatter,
    "journal": _JournalFormatter,
    "json": JsonFormatter,
}


dropped_lines: Final = dict.fromkeys(LOGS, 0)
"""Number of lines that this process could not write, by their destination."""


class QueueHandler(logging.Handler):
    """Formats records in the calling thread, and writes them in a thread of its own.

    Lines are written in groups of at most PIPE_BUF bytes, which a pipe takes as one (pipe(7)):
    the processes of an instance share one standard error, and their lines must not mix.
    """

    to = "log"
    """The key in :data:`dropped_lines`."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        self._dropped = 0
        self._closing = False
        self._closed = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_all, name="log-writer", daemon=True)
        self._thread.start()

    def handle(self, record: logging.LogRecord) -> bool:
        """Passes a record to :meth:`emit` if no filter rejects it. The queue has its own lock."""
        if not self.filter(record):
            return False
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Formats a record and puts it into the queue.

        If the queue is full, the record is counted.
        """
        try:
            line = self._encode(record)
        except Exception:  # noqa: BLE001 - a bad logging call is reported, and must not fail its caller
            self.handleError(record)
            return
        with self._changed:
            if self._closing or self._waiting + len(line) > QUEUE_LIMIT:
                self._dropped += 1
                dropped_lines[self.to] += 1
                return
            if self._dropped:
                self._tell_dropped()
            if not self._lines:  # otherwise the thread knows already
                self._changed.notify()
            self._enqueue(line)

    def close(self) -> None:
        """Waits until the queue is written, for a bounded time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._closed.set()
        if self._thread is not threading.current_thread():
            self._thread.join(FLUSH_TIMEOUT)
        super().close()

    def _write_all(self) -> None:
        while batch := self._next_batch():
            try:
                self._write(batch)
            except OSError:
                # Standard error is gone (EPIPE, EBADF): nobody is left to tell, and the tunnel,
                # which is what people use, goes on.
                dropped_lines[self.to] += batch.count(b"\n")
                continue
            if not self._lines:
                # A line after a pause is written at once. In a stream of lines, each would wake
                # this thread, which would take the interpreter from the thread that moves the
                # bytes.
                self._closed.wait(GATHER_SECONDS)

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                # Another process that shares standard error made it non-blocking.
                select.select([], [self._fd], [], 1.0)

    def _next_batch(self) -> bytes:
        """Waits for lines and returns some whole ones, or nothing when the handler is closing."""
        with self._changed:
            while not (self._lines or self._dropped or self._closing):
                self._changed.wait()
            if self._dropped and not self._lines:
                self._tell_dropped()
            batch = bytearray()
            while self._lines:
                if batch and len(batch) + len(self._lines[0]) > select.PIPE_BUF:
                    break
                line = self._lines.popleft()
                self._waiting -= len(line)
                batch += line
            return bytes(batch)

    def _tell_dropped(self) -> None:
        """Writes a line in the place of those that were dropped."""
        record = self._dropped_record(self._dropped)
        self._dropped = 0
        self._enqueue(self._encode(record))

    def _dropped_record(self, count: int) -> logging.LogRecord:
        sentence = "%d log lines were dropped: standard error is not read fast enough"
        return logging.LogRecord(__name__, logging.WARNING, __file__, 0, sentence, (count,), None)

    def _enqueue(self, line: bytes) -> None:
        self._lines.append(line)
        self._waiting += len(line)

    def _encode(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode("utf-8", "backslashreplace") + b"\n"
