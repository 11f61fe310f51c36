"""The state of a process that another program goes on with: its form, as records in a file.

A worker and a supervisor replace their program without ending (execve(2)): their sockets stay open,
and what they know goes through a file in memory. The file is a sequence of records, each with its
length before it, all integers big-endian::

    +----------+-----------------------+
    | LENGTH:4 | RECORD: a msgpack map |
    +----------+-----------------------+

The first record is the head. Its keys `magic`, `version`, `program`, `pids` and `fds` keep their
meaning for ever, so that a program that cannot read the rest can still close the descriptors and
end the processes that it was left. The last record is `{"end": true}`; a file without it was cut.

A later version of this program that changes what a record means raises :data:`STATE_VERSION`. A
program reads the versions in :data:`READABLE` and ends the flows of any other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

import msgpack

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.errors import LocalProtocolError
from socks_tunnel.protocol.messages import DATA_MAX
from socks_tunnel.protocol.session import CLOSED_REMEMBERED_MAX, F, Session, Terms
from socks_tunnel.protocol.streams import POSITION_MAX

STATE_VERSION: Final = 1
"""The version of the state that this program writes."""

READABLE: Final = frozenset({STATE_VERSION})
"""The versions of the state that this program can go on with."""

RECORD_MAX: Final = 64 * 1_048_576
"""Bytes of one record: a flow with both its windows full has half of it."""

_MAGIC: Final = "socks-tunnel hand-over"
_LENGTH: Final = struct.Struct("!I")


class UnknownVersionError(bounded.Malformed):
    """The state is of a version that this program cannot read."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first record: which state it is, and what a program has to let go of if it cannot use it.

    `program` is the version of the program that wrote it. `pids` are its children, `fds` the
    descriptors that were left open for the next program.
    """

    version: int
    program: str
    pids: tuple[int, ...] = ()
    fds: tuple[int, ...] = ()


class StateWriter:
    """Writes the state to a binary file, whose owner closes it."""

    def __init__(self, file: BinaryIO, head: Head) -> None:
        self._file = file
        self.write(
            {
                "magic": _MAGIC,
                "version": head.version,
                "program": head.program,
                "pids": list(head.pids),
                "fds": list(head.fds),
            }
        )

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a record. Raises :class:`ValueError` if it is over :data:`RECORD_MAX`."""
        body: bytes = msgpack.packb(record)
        if len(body) > RECORD_MAX:
            raise ValueError(f"a record of {len(body)} bytes is over the limit {RECORD_MAX}")
        self._file.write(_LENGTH.pack(len(body)))
        self._file.write(body)

    def finish(self) -> None:
        """Appends the last record."""
        self.write({"end": True})


class StateReader:
    """Reads what a :class:`StateWriter` wrote. Raises :class:`~bounded.Malformed`.

    `head` is read at once, whatever the version is.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        fields = self._record()
        if fields.get("magic") != _MAGIC:
            raise bounded.Malformed("it is no hand-over of socks-tunnel")
        self.head = Head(
            bounded.integer(fields, "version", 0, POSITION_MAX),
            bounded.text(fields, "program"),
            _numbers(fields, "pids"),
            _numbers(fields, "fds"),
        )

    def records(self) -> Iterator[dict[str, Any]]:
        """Yields the records between the head and the end.

        Raises :class:`UnknownVersionError`, and :class:`~bounded.Malformed` for a file that was
        cut short.
        """
        if self.head.version not in READABLE:
            raise UnknownVersionError(
                f"it is of version {self.head.version}, written by "
                f"{bounded.clip(self.head.program, 40)}; this program reads "
                f"{', '.join(map(str, sorted(READABLE)))}"
            )
        while not (record := self._record()).get("end"):
            yield record

    def _record(self) -> dict[str, Any]:
        prefix = self._file.read(_LENGTH.size)
        if len(prefix) < _LENGTH.size:
            raise bounded.Malformed("it ends too early")
        (length,) = _LENGTH.unpack(prefix)
        if length > RECORD_MAX:
            raise bounded.Malformed(f"a record has {length} bytes; at most {RECORD_MAX} are read")
        body = self._file.read(length)
        if len(body) < length:
            raise bounded.Malformed("it ends too early")
        record = bounded.unpack_own(body)
        return bounded.table({"record": record}, "record")


def _numbers(fields: Mapping[str, Any], key: str) -> tuple[int, ...]:
    values = fields.get(key)
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise bounded.unusable(fields, key)
    return tuple(values)


# --- a session --------------------------------------------------------------------------------


def export_session(session: Session[F]) -> dict[str, Any]:
    """Returns what a session itself knows as plain values; its flows are the owner's to export.

    It must have no link: the next one is attached to the session that goes on.
    """
    if session.attached:
        raise LocalProtocolError("a session with a link cannot be handed over")
    terms = session.terms
    return {
        "closed": [[conn_id, reason] for conn_id, reason in session.closed.items()],
        "terms": None
        if terms is None
        else {
            "window": terms.window,
            "max_data": terms.max_data,
            "idle_udp": terms.idle_udp,
            "features": sorted(terms.features),
        },
    }


def restore_session(session: Session[F], fields: Mapping[str, Any]) -> None:
    """Takes what :func:`export_session` returned into a new session. Raises Malformed."""
    if fields.get("terms") is not None:
        terms = bounded.table(fields, "terms")
        session.terms = Terms(
            bounded.integer(terms, "window", 0, POSITION_MAX),
            bounded.integer(terms, "max_data", 1, DATA_MAX),
            bounded.integer(terms, "idle_udp", 0, POSITION_MAX),
            frozenset(bounded.texts(terms, "features")),
        )
    for conn_id, reason in bounded.rows(fields, "closed", 2)[-CLOSED_REMEMBERED_MAX:]:
        session.closed[conn_id] = reason
