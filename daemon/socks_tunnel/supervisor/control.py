"""The control socket of a running instance: a JSON line asks, a JSON line answers.

::

    {"op": "status"}                     {"ok": true, "result": …}
    {"op": "reload"}                     {"ok": false, "error": "a sentence"}

A connection may ask several times. The mode of the socket (0660) decides who may connect. The log
names the process that asks, by SO_PEERCRED (unix(7)).
"""

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, NamedTuple

from socks_tunnel.protocol import bounded

_log = logging.getLogger(__name__)

REQUEST_MAX: Final = 4096
"""Longest request in bytes."""

CLIENTS_MAX: Final = 16
"""Connections at a time. Further ones are closed at once."""

PIECE: Final = 32_768
"""Bytes of an answer that are written at a time."""

IDLE_TIMEOUT: Final = 60.0
"""Seconds that a connection may be silent."""

CLOSE_TIMEOUT: Final = 1.0
"""Seconds that a client has to take the rest of its answer when its connection is closed."""

_READING: Final = frozenset({"status", "connections"})
"""Requests that change nothing. If they are repeated on a connection, only the first is logged."""

_POLLED: Final = "summary"
"""The request that a waiting command repeats ten times a second. It is not logged."""

_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid


class Caller(NamedTuple):
    """The process that asks, as the kernel names it (SO_PEERCRED, unix(7))."""

    pid: int
    uid: int
    gid: int


caller: ContextVar[Caller] = ContextVar("caller")
"""The caller of the request that is being answered."""


class ControlError(Exception):
    """A request cannot be fulfilled. The text is a sentence for the caller."""


Handler = Callable[[dict[str, Any]], Awaitable[Any]]
"""Handles a request, which has a text `op`. Returns a JSON value, or raises ControlError."""


class ControlServer:
    """Listens on a Unix socket at `path`. The caller must be the only process that uses it."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()

    async def start(self, listening: socket.socket | None = None) -> None:
        """Binds and listens, or uses the listening socket given. Raises :class:`OSError`."""
        sock = self._bind() if listening is None else listening
        self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=REQUEST_MAX)

    def _bind(self) -> socket.socket:
        self._path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(self._path))
            self._path.chmod(0o660)  # nobody can connect before it listens
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
        return sock

    def release(self) -> int | None:
        """Returns the descriptor on which the next program listens; None if there is none."""
        if self._server is None:
            return None
        descriptor: int = self._server.sockets[0].fileno()
        os.set_inheritable(descriptor, True)
        return descriptor

    async def stop(self) -> None:
        """Stops listening and ends all connections."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        await asyncio.gather(*(_close(writer) for writer in list(self._clients)))
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= CLIENTS_MAX:
            await _close(writer)
            return
        self._clients.add(writer)
        told: set[str] = set()
        try:
            async with asyncio.timeout(IDLE_TIMEOUT) as deadline:
                while line := await reader.readline():
                    answer = await self._answer(line, writer, told)
                    for piece in pieces(answer):
                        writer.write(piece)
                        await writer.drain()
                        await asyncio.sleep(0)
                    deadline.reschedule(asyncio.get_running_loop().time() + IDLE_TIMEOUT)
        except TimeoutError:
            _log.debug("a control connection was silent for %.0f s; closed", IDLE_TIMEOUT)
        except (ValueError, ConnectionError) as error:
            # A line was too long, or the client did not wait for the answer.
            _log.info("a connection to the control socket ended early: %s", error)
        finally:
            self._clients.discard(writer)
            await _close(writer)

    async def _answer(
        self, line: bytes, writer: asyncio.StreamWriter, told: set[str]
    ) -> dict[str, Any]:
        try:
            request = bounded.json_map(line, size=REQUEST_MAX)
            op = bounded.text(request, "op")
        except bounded.Malformed as error:
            form = 'a request is a JSON object in one line, with a text "op"'
            return {"ok": False, "error": f"{form}: {error}"}
        pid, uid, gid = who = _peer_of(writer)
        caller.set(who)
        level = logging.DEBUG if op in told or op == _POLLED else logging.INFO
        _log.log(
            level,
            "control request '%s' of process %d (uid %d, gid %d)",
            bounded.clip(op, 40),
            pid,
            uid,
            gid,
        )
        told |= _READING & {op}
        try:
            return {"ok": True, "result": await self._handler(request)}
        except ControlError as error:
            return {"ok": False, "error": str(error)}
        except Exception:  # noqa: BLE001 - a bug in one answer must not end the others
            _log.exception("the control request '%s' failed", bounded.clip(op, 40))
            return {"ok": False, "error": "a bug in this program; the log of the instance has it"}


def pieces(answer: dict[str, Any]) -> Iterator[bytes]:
    """Yields the line of an answer, in pieces that each take about a millisecond to encode.

    `json.dumps` cannot be interrupted, and takes a second for 20,000 flows. So long lists are
    encoded row by row.
    """
    gathered = b""
    for text in _texts(answer):
        gathered += text.encode()
        if len(gathered) >= PIECE:
            yield gathered
            gathered = b""
    yield gathered + b"\n"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and any(isinstance(v, dict | list) for v in value.values()):
        before = "{"
        for key, inner in value.items():
            yield f"{before}{json.dumps(key)}: "
            yield from _texts(inner)
            before = ", "
        yield "}"
    elif isinstance(value, list) and value:
        before = "["
        for row in value:
            yield before
            yield json.dumps(row)
            before = ", "
        yield "]"
    else:
        yield json.dumps(value)


async def _close(writer: asyncio.StreamWriter) -> None:
    """Closes a connection. A client that does not read loses the rest of its answer."""
    writer.close()
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await writer.wait_closed()
    except TimeoutError:
        writer.transport.abort()
    except ConnectionError:
        pass  # the client has closed it first


def _peer_of(writer: asyncio.StreamWriter) -> Caller:
    """Returns the process that connected."""
    sock = writer.get_extra_info("socket")
    return Caller._make(
        _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    )
