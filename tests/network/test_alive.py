"""What happens to a link, and what becomes of the flows on it: nothing, or what has to.

The scenes share one tunnel, whose network is their own: each leaves it working for the next.
"""

import contextlib
import hashlib
import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal

import pytest

from support.figures import Told
from support.hosts import GATEWAY_ADDRESS
from support.load import Load, Pace
from support.paths import one_way_blocked, path
from support.processes import wait_until
from support.targets import body_hash
from support.tunnels import Site, Tunnel

PAUSE = 20.0
"""Seconds that all processes of the gateway are stopped."""

CUTS = 10

RECOVERED_MAX = 10.0
"""Seconds; a loose bound on a loaded machine. What it really took is printed."""


@pytest.fixture(scope="module")
def scene(make_site: Callable[[], Site]) -> Iterator[Tunnel]:
    """A tunnel on hosts of its own, over IPv4 alone, in the foreground: it is stopped as a process."""
    site = make_site()
    with contextlib.closing(site):
        hosts = site.hosts
        hosts.gateway.run("ip", "-6", "address", "flush", "dev", "gw0", "scope", "global")
        hosts.endpoint.run("ip", "-6", "address", "flush", "dev", "ep0", "scope", "global")
        tunnel = site.tunnel(foreground=True)
        try:
            tunnel.start()
            yield tunnel
        finally:
            print(tunnel.logs())
            tunnel.stop()


@pytest.fixture
def alive(scene: Tunnel) -> Iterator[Tunnel]:
    """The tunnel, linked; nothing that it logged is a bug."""
    scene.wait_linked(60)
    yield scene
    for daemon in scene.daemons[-2:]:
        daemon.assert_clean()


def address(tunnel: Tunnel, before: str, after: str) -> None:
    """Gives the gateway's host another address."""
    host = tunnel.site.hosts.gateway
    host.run("ip", "address", "del", f"{before}/24", "dev", "gw0")
    host.run("ip", "address", "add", f"{after}/24", "dev", "gw0")


def resumed(tunnel: Tunnel, role: str = "gateway") -> float:
    return tunnel.metric("resumes_total", role, result="resumed")


def test_a_path_that_swallows_everything_for_half_a_minute(alive: Tunnel, told: Told) -> None:
    before = resumed(alive)
    with Load(alive) as load:
        alive.site.hosts.cut()
        cut = time.monotonic()
        wait_until(
            lambda: alive.gateway.control("status")["links"][0]["waiting_flows"] == 5,
            "the end of the link",
        )
        load.stop.wait(30 - (time.monotonic() - cut))
        alive.site.hosts.mend()
        mended = time.monotonic()
        took = load.recovered_after(mended)
        told(f"after 30 s without a path, flows went on within {took:.2f} s")
        assert took < RECOVERED_MAX
        load.ended_as_wanted()
    # Metrics are written out twice a second.
    wait_until(lambda: resumed(alive) > before, "the resume in the metrics")


def test_short_cuts_at_any_moment(alive: Tunnel, told: Told) -> None:
    took = []
    with Load(alive) as load:
        moments = random.Random(11)
        for _ in range(CUTS):
            load.stop.wait(moments.uniform(0, 0.5))
            alive.site.hosts.cut()
            load.stop.wait(moments.uniform(0.05, 3))
            alive.site.hosts.mend()
            took.append(load.recovered_after(time.monotonic()))
            load.goes_on()
        load.ended_as_wanted()
    told(
        f"after cuts of 0.05 to 3 s, flows went on within, at the median, {sorted(took)[CUTS // 2]:.2f} s"
    )
    told(f"and within at most {max(took):.2f} s")
    assert max(took) < RECOVERED_MAX


def test_the_gateway_s_address_changes(alive: Tunnel, told: Told) -> None:
    with Load(alive) as load:
        changed = time.monotonic()
        address(alive, GATEWAY_ADDRESS, "10.77.0.7")
        took = load.recovered_after(time.monotonic() + 0.05)
        load.ended_as_wanted()
        told(f"after another address, no answer for at most {load.stalled_since(changed):.2f} s")
    assert took < RECOVERED_MAX
    address(alive, "10.77.0.7", GATEWAY_ADDRESS)
    wait_until(lambda: path(alive)[0] == GATEWAY_ADDRESS, "the first address in use again")


@pytest.mark.parametrize("sender", ["gateway", "endpoint"])
def test_one_way_is_blocked(
    alive: Tunnel, sender: Literal["gateway", "endpoint"], told: Told
) -> None:
    """Consent fails (RFC 7675), and what one side sends on this pair of ports arrives no more.

    What the other side sends arrives all the time. A new link has other ports.
    """
    _, ours, theirs = path(alive)
    with Load(alive) as load:
        blocked = time.monotonic()
        with one_way_blocked(alive.site.hosts, sender, ours, theirs):
            took = load.recovered_after(blocked + 0.2) + 0.2
            load.ended_as_wanted()
    told(f"after what the {sender} sends was blocked, flows went on within {took:.2f} s")
    assert took < RECOVERED_MAX
    assert path(alive)[1:] != (ours, theirs)


def test_the_far_side_loses_a_worker_while_the_path_is_gone(alive: Tunnel) -> None:
    """Exactly the flows of that worker end, on both sides."""
    with contextlib.ExitStack() as held:
        socks = [held.enter_context(alive.connect("echo")) for _ in range(16)]
        by_port = {sock.getsockname()[1]: sock for sock in socks}
        victim = alive.endpoint.workers()[0]
        rows = {row["conn_id"]: row for row in alive.endpoint.control("connections")}
        numbers = {w["pid"]: w["index"] for w in alive.endpoint.control("status")["workers"]}
        doomed: list[socket.socket] = []
        others: list[socket.socket] = []
        for row in alive.gateway.control("connections"):
            sock = by_port.get(int(row["client"].rpartition(":")[2]))
            if sock is not None:
                lost = rows[row["conn_id"]]["worker"] == numbers[victim]
                (doomed if lost else others).append(sock)
        assert doomed
        assert others
        assert len(doomed) + len(others) == len(socks)
        alive.site.hosts.cut()
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: not alive.linked(), "the end of the link", timeout=40)
        wait_until(lambda: len(alive.endpoint.workers()) == 2, "another worker")
        alive.site.hosts.mend()
        for sock in others:
            sock.sendall(b"still here")
            assert sock.recv(100) == b"still here"
        for sock in doomed:
            assert ended(sock, 10)
    alive.endpoint.wait_log("was killed by SIGKILL")


def ended(sock: socket.socket, timeout: float) -> bool:
    """Whether the connection has ended within so many seconds, in order or by a reset."""
    if not select.select([sock], [], [], timeout)[0]:
        return False
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_gateway_that_sleeps_and_wakes(alive: Tunnel, told: Told) -> None:
    """A closed lid: nobody is blamed for the time in which nothing ran."""
    workers = alive.gateway.workers()
    processes = [alive.gateway.pid, *alive.gateway.children()]
    with Load(alive) as load:
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        load.stop.wait(PAUSE)
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
        woke = time.monotonic()
        with alive.connect("echo") as sock:
            sock.sendall(b"first")
            assert sock.recv(100) == b"first"
        first = time.monotonic() - woke
        told(f"after a sleep, the first request was answered within {first:.2f} s")
        assert first < RECOVERED_MAX
        took = load.recovered_after(woke)
        told(f"after a sleep, flows went on within {took:.2f} s")
        assert took < RECOVERED_MAX
        load.ended_as_wanted()
    assert alive.gateway.workers() == workers


def test_a_download_in_a_train(alive: Tunnel, told: Told) -> None:
    """10 MB at 1 MB/s, 3 s without a path, another address: done within 16 s."""
    begun = time.monotonic()
    cut = threading.Thread(target=lambda: _into_a_tunnel(alive, begun))
    digest = hashlib.sha256()
    size = 10_000_000
    with alive.connect("http", timeout=60) as sock:
        sock.sendall(f"GET /bytes/{size} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += sock.recv(1)
        cut.start()
        pace = Pace(1_000_000, threading.Event())
        while size:
            data = sock.recv(65_536)
            assert data
            digest.update(data)
            size -= len(data)
            pace.passed(len(data))
    took = time.monotonic() - begun
    cut.join()
    told(f"10 MB at 1 MB/s, 3 s without a path, another address: {took:.2f} s")
    assert digest.hexdigest() == body_hash(10_000_000)
    assert took < 16
    address(alive, "10.77.0.8", GATEWAY_ADDRESS)
    wait_until(lambda: path(alive)[0] == GATEWAY_ADDRESS, "the first address in use again")


def _into_a_tunnel(tunnel: Tunnel, begun: float) -> None:
    waiting = threading.Event()
    waiting.wait(max(0.0, begun + 3 - time.monotonic()))
    tunnel.site.hosts.cut()
    waiting.wait(3)
    address(tunnel, GATEWAY_ADDRESS, "10.77.0.8")
    tunnel.site.hosts.mend()


def test_a_session_that_is_given_up_ends_by_reset_and_keeps_nothing(alive: Tunnel) -> None:
    for role, daemon in (("gateway", alive.gateway), ("endpoint", alive.endpoint)):
        alive.write(role, {"resume_timeout": 3})
        daemon.reload()
    resets = alive.site.state()["resets"].get("echo", 0)
    given_up = alive.metric("resumes_total", result="given-up")
    with Load(alive) as load:
        alive.site.hosts.cut()
        for sock in (load.idle, load.shell, load.down):
            assert select.select([sock], [], [], 60)[0]
        wait_until(
            lambda: load.errors and alive.site.state()["resets"].get("echo", 0) >= resets + 2,
            "resets",
        )
        with pytest.raises(ConnectionResetError):
            load.idle.recv(1)
        for role in ("gateway", "endpoint"):
            wait_until(lambda: alive.metric("flows_active", role) == 0, "no flow", timeout=30)  # noqa: B023
            wait_until(lambda: buffered(alive, role) == 0, "nothing kept")  # noqa: B023
        alive.site.hosts.mend()
    wait_until(
        lambda: (
            alive.metric("resumes_total", result="given-up") == given_up + 1
            and alive.metric("sessions_detached") == 0
        ),
        "the end of the session in the metrics",
    )
    for role, daemon in (("gateway", alive.gateway), ("endpoint", alive.endpoint)):
        alive.write(role, {"resume_timeout": 3600})
        daemon.reload()
    alive.wait_linked(60)


def buffered(tunnel: Tunnel, role: str) -> int:
    """Bytes that the flows of one side hold."""
    daemon = tunnel.gateway if role == "gateway" else tunnel.endpoint
    held: int = daemon.control("status")["counters"]["buffered"]
    return held


def test_the_endpoint_begins_anew(alive: Tunnel, told: Told) -> None:
    """Its flows end, and new ones work without a hand."""
    with Load(alive) as load:
        endpoint = alive.endpoint
        endpoint.killed = True
        for pid in [*endpoint.children(), endpoint.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        endpoint.kill()
        alive.start_endpoint()
        begun = time.monotonic()
        assert ended(load.idle, 60)
        told(
            f"after the endpoint's restart, old flows ended within {time.monotonic() - begun:.2f} s"
        )
    with Load(alive) as load:
        told(
            f"after the endpoint's restart, new flows worked within {time.monotonic() - begun:.2f} s"
        )
        load.ended_as_wanted()
