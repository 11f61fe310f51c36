"""Reads audit records back: from an audit file, or from a log in either of its forms."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from socks_tunnel.ops.audit import LOGGER_NAME, MESSAGES, NUMBERS
from socks_tunnel.protocol import bounded

RECORD_MAX: Final = 65_536
"""Longest record in bytes. The records that this program writes have a few hundred."""

SCHEMA: Final = Path(__file__).with_name("audit.schema.json")
"""The JSON schema of a record."""

_VALUE: Final = r"(?:\"(?:[^\"\\]|\\.)*\"|\S+)"
_TEXT: Final = re.compile(
    rf" {re.escape(LOGGER_NAME)}: ({'|'.join(MESSAGES)})((?: [a-z_]+={_VALUE})+)$"
)
_BEFORE: Final = re.compile(r"(?:<(\d)>)?(?:(\S+Z) (\S+) +)?(\S+)$")
_FIELD: Final = re.compile(rf" ([a-z_]+)=({_VALUE})")
_ESCAPED: Final = re.compile(r"\\(x..|u....|.)")
_CONTROLS: Final = {"n": "\n", "r": "\r", "t": "\t"}


def parse(line: str) -> dict[str, Any] | None:
    """Returns the audit record in a line, or None if there is none.

    It reads JSON, and the text form of the log, also behind the prefix that the journal writes. The
    text form has no process id. In the journal's form it has no time either.
    """
    line = line.rstrip("\n")
    if f'"logger": "{LOGGER_NAME}"' in line:
        try:
            return bounded.json_map(line[line.find("{") :], size=RECORD_MAX)
        except bounded.Malformed:
            return None
    found = _TEXT.search(line)
    before = _BEFORE.search(line[: found.start()]) if found else None
    if found is None or before is None:
        return None
    _, time, level, component = before.groups()
    record = {"component": component, "logger": LOGGER_NAME, "message": found[1]}
    if time is not None:
        record |= {"time": time, "level": level.lower()}
    for name, text in _FIELD.findall(found[2]):
        value = _unquoted(text)
        record[name] = (
            float(value) if name == "seconds" else int(value) if name in NUMBERS else value
        )
    return record


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of a file, oldest first. Other lines are skipped.

    Raises :class:`OSError`.
    """
    opened = _opened(path)
    with opened as lines:
        for line in lines:
            record = parse(line)
            if record is not None:
                yield record


def oldest_first(path: Path) -> list[Path]:
    """Returns the rotated copies of an audit file (as logrotate names them) and the file itself."""
    copies = [p for p in path.parent.glob(f"{path.name}?*") if p.is_file()]
    return [*sorted(copies, key=lambda p: p.stat().st_mtime), path]


def _opened(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="replace")
    return path.open(encoding="utf-8", errors="replace")


def _unquoted(text: str) -> str:
    if not text.startswith('"'):
        return text

    def plain(match: re.Match[str]) -> str:
        escape = match[1]
        if len(escape) > 1:
            return chr(int(escape[1:], 16))
        return _CONTROLS.get(escape, escape)

    return _ESCAPED.sub(plain, text[1:-1])
