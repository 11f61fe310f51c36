"""sd_notify: what goes over the socket, and that trouble there stays there."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from socks_tunnel.ops import notify
from socks_tunnel.ops.notify import Notifier


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


@pytest.fixture
def notifier(systemd: socket.socket) -> Iterator[Notifier]:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "30000000"})
    yield notifier
    notifier.close()


def test_messages(notifier: Notifier, systemd: socket.socket) -> None:
    notifier.ready("2 workers")
    assert systemd.recv(1000) == b"READY=1\nSTATUS=2 workers"
    notifier.status("1 link up")
    assert systemd.recv(1000) == b"STATUS=1 link up"
    notifier.watchdog()
    assert systemd.recv(1000) == b"WATCHDOG=1"
    notifier.stopping()
    assert systemd.recv(1000) == b"STOPPING=1"
    notifier.extend(2.5)
    assert systemd.recv(1000) == b"EXTEND_TIMEOUT_USEC=2500000"


def test_reloading_has_the_monotonic_time(
    notifier: Notifier, systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.monotonic_ns", lambda: 1_234_567_890)
    notifier.reloading()
    assert systemd.recv(1000) == b"RELOADING=1\nMONOTONIC_USEC=1234567"


def test_a_status_cannot_set_anything_else(notifier: Notifier, systemd: socket.socket) -> None:
    notifier.status("link to büro\nMAINPID=1\n")
    assert systemd.recv(1000) == b"STATUS=link to b?ro MAINPID=1"


def test_an_abstract_socket() -> None:
    name = f"socks-tunnel-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}"})
        notifier.stopping()
        assert sock.recv(1000) == b"STOPPING=1"
        notifier.close()


def test_without_a_service_manager_nothing_happens() -> None:
    notifier = Notifier({})
    notifier.ready("up")
    notifier.watchdog()
    assert notifier.watchdog_interval is None
    notifier.close()


def test_a_socket_that_is_not_there_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "none"), "WATCHDOG_USEC": "1000000"})
    notifier.ready("up")
    assert notifier.watchdog_interval is None
    [record] = caplog.records
    assert "is of no use" in record.getMessage()


def test_a_service_manager_that_is_stuck_does_not_stop_us(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert notify.SEND_TIMEOUT <= 1
    monkeypatch.setattr(notify, "SEND_TIMEOUT", 0.01)
    notifier = Notifier({"NOTIFY_SOCKET": systemd.getsockname()})
    while not caplog.records:  # nobody reads: the queue of the socket is short
        notifier.watchdog()
    assert "did not take 'WATCHDOG=1'" in caplog.text
    notifier.close()
    notifier.watchdog()


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getppid())}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_asked(
    systemd: socket.socket, environ: dict[str, str], interval: float | None
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": systemd.getsockname(), **environ})
    assert notifier.watchdog_interval == interval
    notifier.close()
