"""What one supervisor leaves to the next, and what becomes of it if that is of no use."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from socks_tunnel.ops import logging as ops_logging
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.handover import STATE_VERSION, Head, StateWriter
from socks_tunnel.supervisor import handover
from socks_tunnel.supervisor.binding import Bound
from socks_tunnel.supervisor.handover import VARIABLE, Legacy, inherit, replace_program, served
from socks_tunnel.supervisor.listeners import Listener, ListenError
from socks_tunnel.supervisor.processes import HandedChild
from socks_tunnel.supervisor.selfcheck import check_listeners
from support.configs import checked

FORWARD = HostPort("10.77.1.2", 53)


class ExecutedError(Exception):
    """The program would have been replaced."""


@pytest.fixture
def no_exec(monkeypatch: pytest.MonkeyPatch) -> None:
    """execve is reached, and does nothing; the environment is as it was afterwards."""

    def execv(file: str, arguments: list[str]) -> None:
        assert (file, arguments[0]) == (sys.executable, sys.executable)
        raise ExecutedError

    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(ops_logging, "shutdown", lambda: None)
    monkeypatch.setattr(handover, "come_up_within", lambda seconds: None)
    monkeypatch.setenv(VARIABLE, "")


def listening(path: Path | None = None) -> socket.socket:
    if path is None:
        return socket.create_server(("127.0.0.1", 0))
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def legacy(directory: Path, child: subprocess.Popen[bytes], stream: socket.socket) -> Legacy:
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT)
    stream.set_inheritable(True)  # as Slot.hand_over does
    own = directory / "own.sock"
    return Legacy(
        program="old",
        since=5.5,
        started_at=1.25,
        upgrades=3,
        lock=lock,
        control=listening(directory / "control.sock").detach(),
        bound=Bound(
            Listener(listening(), activated=False, wanted=HostPort("127.0.0.1", 0)),
            [
                Listener(listening(), activated=True, target=FORWARD, wanted=HostPort("::1", 53)),
                Listener(listening(own), activated=False, file=(1, 2), wanted=own),
            ],
        ),
        worker_count=4,
        workers={2: HandedChild(child.pid, stream.detach())},
        links={"sessions": {"office": bytes(16)}, "carriers": [{"fd": listening().detach()}]},
        sessions=[{"number": 7, "peer": "office"}],
        flows=11,
    )


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def left(directory: Path, child: subprocess.Popen[bytes]) -> tuple[Legacy, dict[str, str]]:
    """What a program leaves, and the environment of the next one."""
    ours, theirs = socket.socketpair()
    with theirs:
        given = legacy(directory, child, ours)
    with pytest.raises(ExecutedError):
        replace_program(given)
    return given, {VARIABLE: os.environ[VARIABLE], "HOME": "/"}


def close(given: Legacy) -> None:
    assert given.control is not None
    fds = [given.lock, given.control, given.links["carriers"][0]["fd"]]
    for fd in [*fds, *(handed.fd for handed in given.workers.values())]:
        os.close(fd)
    for listener in given.bound.clients:
        listener.socket.close()
    if given.bound.metrics is not None:
        given.bound.metrics.socket.close()


@pytest.mark.usefixtures("no_exec")
def test_what_is_left_is_found(tmp_path: Path, child: subprocess.Popen[bytes]) -> None:
    given, environment = left(tmp_path, child)
    inherited = [given.lock, *(handed.fd for handed in given.workers.values())]
    assert all(map(os.get_inheritable, inherited))
    sockets = [listener.socket.fileno() for listener in given.bound.clients]
    for listener in given.bound.clients:
        listener.socket.detach()  # as execve does: the descriptor is all that stays
    assert given.bound.metrics is not None
    given.bound.metrics.socket.detach()
    found = inherit(environment)
    assert environment == {"HOME": "/"}, "children do not inherit it"
    assert found is not None
    assert (found.since, found.started_at, found.upgrades) == (5.5, 1.25, 3)
    assert (found.worker_count, found.workers, found.flows) == (4, given.workers, 11)
    assert (found.links, found.sessions) == (given.links, given.sessions)
    assert not any(map(os.get_inheritable, inherited))
    forward, own = found.bound.clients
    assert [forward.socket.fileno(), own.socket.fileno()] == sockets
    assert (forward.activated, forward.target, forward.wanted) == (
        True,
        FORWARD,
        HostPort("::1", 53),
    )
    assert (own.file, own.wanted) == ((1, 2), tmp_path / "own.sock")
    assert found.bound.metrics is not None
    assert found.bound.metrics.wanted == HostPort("127.0.0.1", 0)
    close(found)


def test_without_a_program_before_there_is_nothing() -> None:
    assert inherit({}) is None


@pytest.mark.parametrize("text", ["", "x", "99999"])
def test_a_descriptor_that_is_none_is_of_no_use(text: str) -> None:
    assert inherit({VARIABLE: text}) is None


def test_what_cannot_be_read_is_let_go(
    child: subprocess.Popen[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """Descriptors are closed, and children end, before anything is started anew."""
    fd = os.memfd_create("left open")
    state = os.memfd_create("state")
    with os.fdopen(state, "wb", closefd=False) as file:
        writer = StateWriter(file, Head(STATE_VERSION + 1, "9.0", (child.pid,), (fd,)))
        writer.write({"novelty": True})
        writer.finish()
    assert inherit({VARIABLE: str(state)}) is None
    assert "its flows end as in a restart" in caplog.text
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(ChildProcessError):  # it has been waited for
        os.waitpid(child.pid, os.WNOHANG)


# --- the check ----------------------------------------------------------------------------------


async def test_a_program_that_cannot_start_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('role = "gateway"\nnonsense = 1\n')
    with pytest.raises(handover.RefusedError, match=r"cannot start: .*nonsense"):
        async with asyncio.timeout(60):
            await handover.check(config)


@pytest.mark.parametrize(
    ("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)]
)
def test_a_port_that_somebody_else_has_is_found_before_anything_ends(
    protocol: str, kind: socket.SocketKind
) -> None:
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            other.listen()
        address = HostPort(*other.getsockname())
        config = checked(
            {
                "role": "gateway",
                "source": Path("/gateway.toml"),
                "identity": {"private_key_file": "/gateway.key"},
                "socks": {"listen": ["127.0.0.1:0"]},
                "metrics": {"listen": "127.0.0.1:0"},
                "forwards": [{"listen": f"{protocol}://{address}", "target": "10.77.1.2:53"}],
            }
        )
        with pytest.raises(ListenError, match="another program listens there"):
            check_listeners(config, [])
        bound = Bound(None, [Listener(other, activated=False, wanted=address)])
        check_listeners(config, served(bound, [None]))  # unless it is the running program's own
