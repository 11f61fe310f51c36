"""What happens to a link, and what becomes of the flows on it: nothing, or what has to.

In each scene, flows of all kinds are open: transfers both ways, a real ssh session with a shell, an echo,
one that is idle, and a call of datagrams. What they carry is compared. tests/long has the long scenes.

The scenes share one tunnel, whose network is their own: each leaves it as it was, and waits until the
flows of the one before have ended.
"""

import contextlib
import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from support.figures import Told
from support.hosts import GATEWAY_ADDRESS
from support.load import Flow, Load, Pace, ended
from support.paths import one_way_blocked, settled_path, sooner_than_silence
from support.processes import wait_until
from support.remote_shell import PORT as SSH_PORT
from support.targets import body_hash
from support.tunnels import Site, Tunnel

PAUSE = 20.0
"""Seconds that all processes of the gateway are stopped."""

CUTS = 10

CLOSING = Path(__file__).parents[1] / "support" / "closing"
CLOSE = signal.SIGRTMIN + 3
"""A folder for PYTHONPATH, and the signal that closes all peer connections of a daemon with it."""

REBOOT = 3.0
"""Seconds that a host which boots is silent."""

FLOWS: frozenset[Flow] = frozenset({"download", "upload", "echo", "shell", "idle", "call"})

ROLES = ("gateway", "endpoint")

RECOVERED_MAX = 45.0
"""Seconds; a loose bound on a loaded machine. What it really took is printed."""

pytestmark = pytest.mark.timeout(600)  # on a loaded machine; a scene is made within the first test


@pytest.fixture(scope="module")
def scene(make_site: Callable[[], Site]) -> Iterator[Tunnel]:
    """A tunnel on hosts of its own, over IPv4 alone, in the foreground: it is stopped as a process."""
    site = make_site()
    with contextlib.closing(site):
        hosts = site.hosts
        hosts.gateway.run("ip", "-6", "address", "flush", "dev", "gw0", "scope", "global")
        hosts.endpoint.run("ip", "-6", "address", "flush", "dev", "ep0", "scope", "global")
        with contextlib.ExitStack() as stack:
            with closable():
                tunnel = stack.enter_context(site.tunnel(foreground=True).running())
            yield tunnel


@contextlib.contextmanager
def closable() -> Iterator[None]:
    """What is started in this block closes its peer connections at :data:`CLOSE`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(CLOSING))
        yield


@pytest.fixture
def alive(scene: Tunnel) -> Iterator[Tunnel]:
    """The tunnel with one link and no flow; nothing that it logged is a bug."""
    settled_path(scene)
    for role in ROLES:
        wait_until(lambda: not flows_of(scene, role), f"no flow of an earlier scene on the {role}")  # noqa: B023
    for daemon in scene.daemons[-2:]:
        wait_until(lambda: len(daemon.workers()) == 2, f"both workers of the {daemon.name}")  # noqa: B023
    yield scene
    for daemon in scene.daemons[-2:]:
        daemon.assert_clean()


def address(tunnel: Tunnel, before: str, after: str) -> None:
    """Gives the gateway's host another address."""
    host = tunnel.site.hosts.gateway
    host.run("ip", "address", "del", f"{before}/24", "dev", "gw0")
    host.run("ip", "address", "add", f"{after}/24", "dev", "gw0")


@contextlib.contextmanager
def without_a_path(tunnel: Tunnel) -> Iterator[None]:
    """Nothing passes between the hosts in this block."""
    tunnel.site.hosts.cut()
    try:
        yield
    finally:
        tunnel.site.hosts.mend()


@contextlib.contextmanager
def at_another_address(tunnel: Tunnel, other: str) -> Iterator[None]:
    """The gateway's host gets its first address back at the end of this block, and uses it."""
    try:
        yield
    finally:
        address(tunnel, other, GATEWAY_ADDRESS)
    wait_until(
        lambda: settled_path(tunnel)[0] == GATEWAY_ADDRESS, "the first address again", timeout=90
    )


def flows_of(tunnel: Tunnel, role: str) -> list[dict[str, Any]]:
    """Returns the flows that one side has."""
    daemon = tunnel.gateway if role == "gateway" else tunnel.endpoint
    rows: list[dict[str, Any]] = daemon.control("connections")
    return rows


def resumed(tunnel: Tunnel, role: str = "gateway") -> float:
    return tunnel.metric("resumes_total", role, result="resumed")


def what_waits_is_shown(tunnel: Tunnel, role: str) -> None:
    """Says whether `status` and `connections` agree on it: since when, how much, until when."""
    daemon = tunnel.gateway if role == "gateway" else tunnel.endpoint

    def shown() -> bool:
        # What is under way to a socket, or from one, may move between the two answers.
        flows, status = flows_of(tunnel, role), daemon.control("status")
        link = status["links"][0]  # what waits is the same in all, if attempts are under way
        return bool(
            link["waiting_flows"] == len(flows)
            and not any(flow["linked"] for flow in flows)
            and link["waiting_held"] == sum(flow["held"] for flow in flows) > 0
            and {flow["waiting_since"] for flow in flows} == {link["waiting_since"]}
            and all(0 < flow["waiting_left"] < 3600 for flow in flows)
            and abs(flows[0]["waiting_left"] - link["waiting_left"]) <= 5
        )

    wait_until(shown, f"the session that waits, as {role} shows it", timeout=60)


def test_a_path_that_swallows_everything_for_half_a_minute(alive: Tunnel, told: Told) -> None:
    before = resumed(alive)
    with Load(alive, ssh=True) as load:
        with without_a_path(alive):
            cut = time.monotonic()
            wait_until(
                lambda: alive.gateway.control("status")["links"][0]["waiting_flows"] == len(FLOWS),
                "the end of the link",
                timeout=90,
            )
            for role in ROLES:
                what_waits_is_shown(alive, role)
            load.stop.wait(30 - (time.monotonic() - cut))
        mended = time.monotonic()
        took = load.recovered_after(mended)
        told(f"after 30 s without a path, flows went on within {took:.2f} s")
        assert took < RECOVERED_MAX
        load.ended_as_wanted()
    # Metrics are written out twice a second.
    wait_until(lambda: resumed(alive) > before, "the resume in the metrics")


def test_short_cuts_at_any_moment(alive: Tunnel, told: Told) -> None:
    took = []
    with Load(alive, ssh=True) as load:
        moments = random.Random(11)
        for _ in range(CUTS):
            load.stop.wait(moments.uniform(0, 0.5))
            with without_a_path(alive):
                load.stop.wait(moments.uniform(0.05, 3))
            took.append(load.recovered_after(time.monotonic()))
            load.goes_on()
        load.ended_as_wanted()
    told(
        f"after cuts of 0.05 to 3 s, flows went on within, at the median, {sorted(took)[CUTS // 2]:.2f} s"
    )
    told(f"and within at most {max(took):.2f} s")
    assert max(took) < RECOVERED_MAX


def test_the_gateway_s_address_changes(alive: Tunnel, told: Told) -> None:
    with at_another_address(alive, "10.77.0.7"), Load(alive, ssh=True) as load:
        changed = time.monotonic()
        address(alive, GATEWAY_ADDRESS, "10.77.0.7")
        took = load.recovered_after(time.monotonic() + 0.05)
        load.ended_as_wanted()
        told(f"after another address, no answer for at most {load.stalled_since(changed):.2f} s")
    assert took < RECOVERED_MAX


def test_an_address_that_has_nothing_to_do_with_the_link_costs_no_other_link(alive: Tunnel) -> None:
    """A program that starts containers brings such addresses all day long.

    What concerns a link is logged in another sentence, without the question. The path is not looked
    at: a busy host may have another link for a reason of its own.
    """
    seen = len(alive.gateway.log_text())
    host = alive.site.hosts.gateway
    host.run("ip", "address", "add", "172.17.0.1/16", "dev", "lo", "scope", "global")
    try:
        alive.gateway.wait_log(
            "new address, 172\\.17\\.0\\.1.*; the peer is asked whether it is heard", after=seen
        )
        with alive.connect("echo") as sock:
            sock.sendall(b"as before")
            assert sock.recv(100) == b"as before"
    finally:
        host.run("ip", "address", "del", "172.17.0.1/16", "dev", "lo")
    alive.gateway.wait_log(
        "lost its address, 172\\.17\\.0\\.1.*; the peer is asked whether it is heard", after=seen
    )


def test_the_endpoint_s_peer_connection_is_closed_under_it(alive: Tunnel, told: Told) -> None:
    seen = len(alive.endpoint.log_text())
    with Load(alive, ssh=True) as load:
        os.kill(alive.endpoint.pid, CLOSE)
        alive.endpoint.wait_log("link laptop-17 is down: ", after=seen)
        took = load.recovered_after(time.monotonic())
        load.ended_as_wanted()
    told(f"after the peer connection was closed, flows went on within {took:.2f} s")
    assert took < RECOVERED_MAX


@pytest.mark.parametrize("sender", ["gateway", "endpoint"])
def test_one_way_is_blocked(
    alive: Tunnel, sender: Literal["gateway", "endpoint"], told: Told
) -> None:
    """Consent fails (RFC 7675), and what one side sends on this pair of ports arrives no more.

    What the other side sends arrives all the time. A new link has other ports.
    """
    with Load(alive, ssh=True) as load:
        _, ours, theirs = settled_path(alive)
        with sooner_than_silence(alive):
            blocked = time.monotonic()
            with one_way_blocked(alive.site.hosts, sender, ours, theirs):
                took = load.recovered_after(blocked + 0.2) + 0.2
                load.ended_as_wanted()
    told(f"after what the {sender} sends was blocked, flows went on within {took:.2f} s")
    assert took < RECOVERED_MAX
    settled_path(alive, other_than=(ours, theirs))


def test_the_far_side_loses_a_worker_while_the_path_is_gone(alive: Tunnel) -> None:
    """Exactly the flows of that worker end, on both sides."""
    with contextlib.ExitStack() as held, Load(alive, ssh=True) as load:
        socks = [held.enter_context(alive.connect("echo", timeout=120)) for _ in range(16)]
        victim = alive.endpoint.workers()[0]
        ports, flows = those_of(alive, load, victim)
        doomed = [sock for sock in socks if sock.getsockname()[1] in ports]
        others = [sock for sock in socks if sock not in doomed]
        assert doomed
        assert others
        with without_a_path(alive):
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: not alive.linked(), "the end of the link", timeout=90)
            wait_until(
                lambda: len(now := alive.endpoint.workers()) == 2 and victim not in now,
                "another worker",
            )
        for sock in others:
            sock.sendall(b"still here")
            assert sock.recv(100) == b"still here"
        for sock in doomed:
            assert ended(sock, 120)
        if "idle" in flows:
            assert ended(load.idle, 120)
        wait_until(lambda: load.ends.keys() == flows - {"idle"}, f"the end of {flows}: {load.ends}")
        load.ended_as_wanted(*flows)
    alive.endpoint.wait_log("was killed by SIGKILL")


def those_of(tunnel: Tunnel, load: Load, worker: int) -> tuple[set[int], set[Flow]]:
    """Returns which flows one worker of the endpoint has: clients' ports, and the load's by name."""
    numbers = {row["pid"]: row["index"] for row in tunnel.endpoint.control("status")["workers"]}
    at: dict[int, int] = {}
    rows: list[dict[str, Any]] = []

    def known_to_both() -> bool:
        at.clear()
        at.update({row["conn_id"]: row["worker"] for row in flows_of(tunnel, "endpoint")})
        rows[:] = flows_of(tunnel, "gateway")
        return len(rows) == 16 + len(FLOWS) and at.keys() == {row["conn_id"] for row in rows}

    wait_until(known_to_both, "all flows on both sides")
    ports = set()
    flows: set[Flow] = set()
    for row in rows:
        if at[row["conn_id"]] == numbers[worker]:
            ports.add(int(row["client"].rpartition(":")[2]))
            if row["kind"] == "udp":
                flows.add("call")
            elif row["destination"].endswith(f":{SSH_PORT}"):
                flows.add("shell")
    flows |= {name for name, sock in load.sockets.items() if sock.getsockname()[1] in ports}
    return ports, flows


def test_a_gateway_that_sleeps_and_wakes(alive: Tunnel, told: Told) -> None:
    """A closed lid: nobody is blamed for the time in which nothing ran."""
    workers = alive.gateway.workers()
    processes = [alive.gateway.pid, *alive.gateway.lasting()]
    with Load(alive, ssh=True) as load:
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
    """10 MB at 1 MB/s, 3 s without a path, another address: within 16 s on an idle machine."""
    digest = hashlib.sha256()
    size = 10_000_000
    with (
        at_another_address(alive, "10.77.0.8"),
        Load(alive, pace=200_000, ssh=True) as load,
        alive.connect("http", timeout=120) as sock,
    ):
        begun = time.monotonic()
        cut = threading.Thread(target=lambda: _into_a_tunnel(alive, begun))
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
        load.ended_as_wanted()
    told(f"10 MB at 1 MB/s, 3 s without a path, another address: {took:.2f} s")
    assert digest.hexdigest() == body_hash(10_000_000)
    assert took < 13 + RECOVERED_MAX


def _into_a_tunnel(tunnel: Tunnel, begun: float) -> None:
    waiting = threading.Event()
    waiting.wait(max(0.0, begun + 3 - time.monotonic()))
    with without_a_path(tunnel):
        waiting.wait(3)
        address(tunnel, GATEWAY_ADDRESS, "10.77.0.8")


def test_a_session_that_is_given_up_ends_by_reset_and_keeps_nothing(alive: Tunnel) -> None:
    with sessions_kept_for(alive, 3):
        before = {role: held_bytes(alive, role) for role in ROLES}
        resets = alive.site.state()["resets"]
        given_up = alive.metric("resumes_total", result="given-up")
        with Load(alive, ssh=True) as load, without_a_path(alive):
            all_ends_by_reset(alive, load, before, resets)
        wait_until(
            lambda: (
                alive.metric("resumes_total", result="given-up") > given_up
                and alive.metric("sessions_detached") == 0
            ),
            "the end of the session in the metrics",
        )


@contextlib.contextmanager
def sessions_kept_for(tunnel: Tunnel, seconds: int) -> Iterator[None]:
    """Both sides keep a session without a link for so long in this block."""
    try:
        reload_with(tunnel, {"resume_timeout": seconds})
        yield
    finally:
        reload_with(tunnel, {"resume_timeout": 3600})


def reload_with(tunnel: Tunnel, changes: dict[str, Any]) -> None:
    for role, daemon in (("gateway", tunnel.gateway), ("endpoint", tunnel.endpoint)):
        tunnel.write(role, changes)
        daemon.reload()


def all_ends_by_reset(
    tunnel: Tunnel, load: Load, before: dict[str, float], resets: dict[str, int]
) -> None:
    """Waits until both applications of each flow have been told so, and nothing is kept."""
    wait_until(lambda: load.ends.keys() == FLOWS - {"idle"}, f"{load.ends}", timeout=90)
    for flow in ("download", "upload", "echo"):
        assert "ConnectionResetError" in load.ends[flow], load.ends
    wait_until(lambda: load.shell.ended, "the end of ssh")
    with pytest.raises(ConnectionResetError):
        load.idle.recv(1)
    wait_until(
        lambda: targets_saw_resets(tunnel, resets, {"source": 1, "hash": 1, "echo": 2}),
        "resets of all targets",
    )
    for role in ROLES:
        wait_until(lambda: tunnel.metric("flows_active", role) == 0, "no flow")  # noqa: B023
        wait_until(
            lambda: held_bytes(tunnel, role) <= before[role],  # noqa: B023
            f"nothing kept: {before[role]} {held_bytes(tunnel, role)}",
        )


def held_bytes(tunnel: Tunnel, role: str) -> float:
    """Returns the bytes that the flows of one side hold, by its status and by its metrics."""
    daemon = tunnel.gateway if role == "gateway" else tunnel.endpoint
    counted: int = daemon.control("status")["counters"]["buffered"]
    # What waits in links is not the flows': the next link says HELLO at any moment.
    places = ("worker", "ipc-worker", "ipc")
    return counted + sum(tunnel.metric("buffered_bytes", role, where=where) for where in places)


def targets_saw_resets(tunnel: Tunnel, before: dict[str, int], wanted: dict[str, int]) -> bool:
    now = tunnel.site.state()["resets"]
    return all(now.get(name, 0) >= before.get(name, 0) + count for name, count in wanted.items())


def test_the_endpoint_s_host_reboots(alive: Tunnel, told: Told) -> None:
    """Its flows end, and new ones work without a hand.

    A host that boots is silent for a while, and does not know what it said before.
    """
    with Load(alive, ssh=True) as load:
        endpoint = alive.endpoint
        with without_a_path(alive):
            endpoint.killed = True
            for pid in [*endpoint.children(), endpoint.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            endpoint.kill()
            load.stop.wait(REBOOT)
        with closable():
            alive.start_endpoint()
        begun = time.monotonic()
        assert ended(load.idle, 120)
        told(
            f"after the endpoint's reboot, old flows ended within {time.monotonic() - begun:.2f} s"
        )
        wait_until(lambda: load.ends.keys() == FLOWS - {"idle"}, f"the end of all: {load.ends}")
    with Load(alive, ssh=True) as load:
        told(
            f"after the endpoint's reboot, new flows worked within {time.monotonic() - begun:.2f} s"
        )
        load.ended_as_wanted()
