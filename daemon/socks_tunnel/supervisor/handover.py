"""The supervisor's hand-over: its program is replaced, while the process and its children stay.

::

    old program                                       new program
    -----------                                       -----------
    asks the installed program whether it can start
    workers serve waiting clients, accept no more
    links end; their sessions wait                    (each worker replaces its own program)
    workers write their states  --------------------> and waits
    writes its own state, execve(2)  ---------------> reads it, adopts listeners and children
                                                      workers go on with their flows
                                                      links are dialled, RESUME does the rest

A refusal before the links end changes nothing. A failure after that ends the flows, as a restart
would: the service manager starts the unit again. The limits are :data:`CHECK_TIMEOUT` for the
check, :data:`SETTLE_SECONDS` for clients, :data:`HAND_OVER_TIMEOUT` for a worker, and
:data:`COME_UP_SECONDS` for the new program.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import socks_tunnel
from socks_tunnel.ops import audit_file
from socks_tunnel.ops import logging as ops_logging
from socks_tunnel.ops.process import KILL_TIMEOUT, come_up_within
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.handover import STATE_VERSION, Head, StateReader, StateWriter
from socks_tunnel.supervisor.binding import Bound
from socks_tunnel.supervisor.environment import OWN_ENVIRONMENT
from socks_tunnel.supervisor.listeners import Address, Listener
from socks_tunnel.supervisor.processes import HandedChild

_log = logging.getLogger(__name__)

VARIABLE: Final = "SOCKS_TUNNEL_HANDOVER"
"""The variable that tells the new program the descriptor of the state."""

CHECK_TIMEOUT: Final = 60.0
"""Seconds that the installed program has to check whether it can start."""

CHECK_OUTPUT_MAX: Final = 65_536
"""Bytes of its output that are read."""

SETTLE_SECONDS: Final = 2.0
"""Seconds that requests without an answer have before their worker replaces its program."""

HAND_OVER_TIMEOUT: Final = 10.0
"""Seconds that a worker has to write its state. A gigabyte takes one or two."""

COME_UP_SECONDS: Final = 60
"""Seconds after which the kernel ends a new program that has not started."""

REAP_SECONDS: Final = 5.0
"""Seconds that children have to end which the new program does not take over."""

HELD_SIGNALS: Final = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
)
"""Signals that are blocked from the end of the old program's loop to the start of the new one's."""


class RefusedError(Exception):
    """The installed program cannot take this one's place; the text is a sentence."""


# --- before -----------------------------------------------------------------------------------


def served_as(address: HostPort, kind: socket.SocketKind) -> str:
    """Returns the text form of a served address for the installed program: `tcp:127.0.0.1:1080`."""
    return f"{'udp' if kind == socket.SOCK_DGRAM else 'tcp'}:{address}"


def served(bound: Bound, others: Iterable[Address | None]) -> list[str]:
    """Returns the addresses of the listeners and of `others` in that form."""
    listeners = [*bound.clients, *([] if bound.metrics is None else [bound.metrics])]
    found = [(listener.wanted, listener.socket.type) for listener in listeners]
    found += [(address, socket.SOCK_STREAM) for address in others]
    return [served_as(address, kind) for address, kind in found if isinstance(address, HostPort)]


async def check(config: Path, served: Sequence[str] = ()) -> str:
    """Asks the installed program whether it can start; returns its version.

    It runs as a child (selfcheck.py), which imports what a supervisor and a worker need, reads the
    configuration, and tries to listen on all addresses that are not `served`. Raises
    :class:`RefusedError`.
    """
    command = (
        sys.executable,
        *(("-I",) if sys.flags.isolated else ("-P",)),
        *("-m", "socks_tunnel.supervisor.selfcheck", str(config), *served),
    )
    environment = {k: v for k, v in os.environ.items() if k not in OWN_ENVIRONMENT}
    if (credentials := os.environ.get("CREDENTIALS_DIRECTORY")) is not None:
        environment["CREDENTIALS_DIRECTORY"] = credentials
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
    except OSError as error:
        raise RefusedError(f"the installed program cannot be started: {error}") from None
    try:
        async with asyncio.timeout(CHECK_TIMEOUT):
            output, complaint = await process.communicate()
    except TimeoutError:
        process.kill()
        await asyncio.wait([spawn("the check ends", process.wait())], timeout=KILL_TIMEOUT)
        raise RefusedError(
            f"the installed program did not finish its check within {CHECK_TIMEOUT:.0f} s"
        ) from None
    if process.returncode != 0:
        lines = complaint[-CHECK_OUTPUT_MAX:].decode(errors="replace").strip().splitlines()
        reason = bounded.clip(lines[-1] if lines else f"status {process.returncode}", 500)
        raise RefusedError(f"the installed program cannot start: {reason}")
    try:
        answer = bounded.json_map(output, size=CHECK_OUTPUT_MAX)
        version = bounded.text(answer, "version")
        readable = answer.get("reads")
    except bounded.Malformed as error:
        raise RefusedError(f"the answer of the installed program is wrong: {error}") from None
    if not isinstance(readable, list) or STATE_VERSION not in readable:
        # This is no refusal: the operator wants that program, and the log says why flows end.
        _log.warning(
            "version %s cannot read the state of version %s: all flows will end",
            bounded.clip(version, 40),
            socks_tunnel.__version__,
        )
    return version


# --- the old program --------------------------------------------------------------------------


@dataclass(slots=True)
class Legacy:
    """The state that one program leaves to the next. `program` is the version of the old one.

    `since` is the time at which the links ended, and `started_at` that of the start (monotonic
    clock). `lock` and `control` are descriptors. `workers` are those that go on, by index. `links`
    is what :meth:`Links.export` returned, and `sessions` what the sessions exported.
    """

    program: str
    since: float
    started_at: float
    upgrades: int
    lock: int
    control: int | None
    bound: Bound
    worker_count: int
    workers: dict[int, HandedChild]
    links: dict[str, Any]
    sessions: list[dict[str, Any]] = field(default_factory=list)
    flows: int = 0
    """Flows that the workers have handed over."""


def replace_program(legacy: Legacy) -> None:
    """Replaces this program by the installed one. Does not return, but raises :class:`OSError`."""
    state = _write(legacy)
    os.environ[VARIABLE] = str(state)
    arguments = [sys.executable, *sys.orig_argv[1:]]
    _log.info("replacing the program of version %s", socks_tunnel.__version__)
    audit_file.close()
    ops_logging.shutdown()
    come_up_within(COME_UP_SECONDS)
    try:
        os.execv(sys.executable, arguments)  # noqa: S606 - our own interpreter and arguments
    except OSError as error:  # the log is closed
        sys.stderr.write(f"the program cannot be replaced by {sys.executable}: {error}\n")
        raise


def _write(legacy: Legacy) -> int:
    """Writes the state to a file in memory; returns its descriptor, which is inherited."""
    listeners = list(legacy.bound.clients)
    if legacy.bound.metrics is not None:
        listeners.append(legacy.bound.metrics)
    for listener in listeners:
        listener.socket.set_inheritable(True)
    os.set_inheritable(legacy.lock, True)
    fds = [listener.socket.fileno() for listener in listeners if not listener.activated]
    fds += [child.fd for child in legacy.workers.values()]
    fds += [] if legacy.control is None else [legacy.control]
    fds += _descriptors(legacy.links)
    head = Head(
        STATE_VERSION,
        socks_tunnel.__version__,
        tuple(child.pid for child in legacy.workers.values()),
        (legacy.lock, *fds),
    )
    state = os.memfd_create("socks-tunnel-supervisor", 0)
    with os.fdopen(state, "wb", closefd=False) as file:
        writer = StateWriter(file, head)
        writer.write(
            {
                "since": legacy.since,
                "started_at": legacy.started_at,
                "upgrades": legacy.upgrades,
                "lock": legacy.lock,
                "control": legacy.control,
                "metrics": None
                if legacy.bound.metrics is None
                else _export_listener(legacy.bound.metrics),
                "clients": [_export_listener(listener) for listener in legacy.bound.clients],
                "worker_count": legacy.worker_count,
                "workers": [[index, c.pid, c.fd] for index, c in legacy.workers.items()],
                "links": legacy.links,
                "flows": legacy.flows,
            }
        )
        for session in legacy.sessions:
            writer.write(session)
        writer.finish()
    return state


def _descriptors(value: object) -> list[int]:
    """Returns all descriptors in exported values: those with the key `fd`, at any depth."""
    match value:
        case {"fd": int(fd)}:
            return [fd]
        case dict():
            return [fd for inner in value.values() for fd in _descriptors(inner)]
        case list():
            return [fd for inner in value for fd in _descriptors(inner)]
        case _:
            return []


def _export_address(address: Address | None) -> Any:
    match address:
        case Path():
            return str(address)
        case HostPort(host, port):
            return [host, port]
        case _:
            return None


def _restore_address(fields: Mapping[str, Any], key: str) -> Address | None:
    match fields.get(key):
        case None:
            return None
        case str(path):
            return Path(path)
        case [str(host), int(port)] if 0 <= port <= 0xFFFF:
            return HostPort(host, port)
        case _:
            raise bounded.unusable(fields, key)


def _export_listener(listener: Listener) -> dict[str, Any]:
    return {
        "fd": listener.socket.fileno(),
        "activated": listener.activated,
        "target": _export_address(listener.target),
        "file": None if listener.file is None else list(listener.file),
        "wanted": _export_address(listener.wanted),
    }


def _restore_listener(fields: Mapping[str, Any]) -> Listener:
    sock = socket.socket(fileno=bounded.integer(fields, "fd", 0, 1 << 31))
    sock.set_inheritable(False)
    sock.setblocking(False)
    target = _restore_address(fields, "target")
    file = fields.get("file")
    return Listener(
        sock,
        activated=bounded.boolean(fields, "activated"),
        target=target if isinstance(target, HostPort) else None,
        file=(file[0], file[1]) if isinstance(file, list) and len(file) == 2 else None,
        wanted=_restore_address(fields, "wanted"),
    )


# --- the new program --------------------------------------------------------------------------


def inherit(environment: MutableMapping[str, str]) -> Legacy | None:
    """Returns the state that the previous program has left; None if there is none.

    If the state cannot be used, its descriptors are closed, its children are killed, and None is
    returned.
    """
    text = environment.pop(VARIABLE, None)
    if text is None:
        return None
    reader: StateReader | None = None
    try:
        fd = int(text)
        os.lseek(fd, 0, os.SEEK_SET)
        with os.fdopen(fd, "rb") as file:
            reader = StateReader(file)
            return _read(reader)
    except (ValueError, OSError, KeyError) as error:
        _log.error(
            "the state of the previous program cannot be used: %s; its flows end as in a restart",
            error,
        )
    if reader is not None:
        _let_go(reader.head)
    return None


def _read(reader: StateReader) -> Legacy:
    first, *sessions = reader.records()
    metrics = first.get("metrics")
    clients = [_restore_listener(fields) for fields in bounded.tables(first, "clients")]
    rows = bounded.rows(first, "workers", 3)
    control = first.get("control")
    legacy = Legacy(
        program=reader.head.program,
        since=bounded.number(first, "since"),
        started_at=bounded.number(first, "started_at"),
        upgrades=bounded.integer(first, "upgrades", 0, 1 << 31),
        lock=bounded.integer(first, "lock", 0, 1 << 31),
        control=None if control is None else bounded.integer(first, "control", 0, 1 << 31),
        bound=Bound(
            None if metrics is None else _restore_listener(bounded.table(first, "metrics")),
            clients,
        ),
        worker_count=bounded.integer(first, "worker_count", 1, 1024),
        workers={index: HandedChild(pid, fd) for index, pid, fd in rows},
        links=bounded.table(first, "links"),
        sessions=sessions,
        flows=bounded.integer(first, "flows", 0, 1 << 40),
    )
    for fd in (legacy.lock, *(child.fd for child in legacy.workers.values())):
        os.set_inheritable(fd, False)
    return legacy


def _let_go(head: Head) -> None:
    """Closes the descriptors and kills the children of a state that cannot be used."""
    for fd in head.fds:
        with contextlib.suppress(OSError):  # its owner has closed it
            os.close(fd)
    for pid in head.pids:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + REAP_SECONDS
    left = list(head.pids)
    while left and time.monotonic() < deadline:
        left = [pid for pid in left if not _reaped(pid)]
        time.sleep(0.01)  # no event loop runs yet, and nothing can start before they have ended
    if left:
        _log.error(
            "children of the previous program did not end within %.0f s after SIGKILL: PID %s",
            REAP_SECONDS,
            ", ".join(map(str, left)),
        )


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def hold_signals() -> None:
    """Blocks signals until the new program takes them with :func:`take_signals`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_SIGNALS)


def take_signals() -> None:
    """Unblocks signals. Those that have come meanwhile are delivered at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)


def answer(version: str, readable: Sequence[int]) -> str:
    """Returns the line of JSON that the self-check prints."""
    return json.dumps({"version": version, "reads": list(readable)})
