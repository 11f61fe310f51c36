"""Starting, stopping, crashing, reloading, and losing the link: real processes and real signals."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from support.hosts import TARGET_ADDRESS
from support.processes import SOCKS_TUNNEL, Instance, command_line, wait_until
from support.rawsocks import request
from support.tunnels import MakeTunnel, Site, Tunnel, write_key


def echo(sock: socket.socket, data: bytes = b"x") -> bool:
    """Whether a flow to the echo server brings data back."""
    try:
        sock.sendall(data)
        return sock.recv(len(data)) == data
    except OSError:
        return False


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Returns so many bytes from a connection, or fewer if it ends before."""
    received = b""
    while len(received) < size and (piece := sock.recv(size - len(received))):
        received += piece
    return received


def ended(sock: socket.socket, timeout: float) -> bool:
    """Whether the connection ends within `timeout`."""
    if not select.select([sock], [], [], timeout)[0]:
        return False
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


# --- starting -------------------------------------------------------------------------------------


def test_ready_means_that_clients_can_connect(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(start=False)
    tunnel.start_gateway()
    with tunnel.site.gateway.inside():
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, tunnel.socks_port), timeout=30).close()
    assert len(tunnel.gateway.workers()) == 2
    # It tells the service manager, who has it a moment later.
    wait_until(lambda: "2 workers" in tunnel.gateway.status_line(), "the status line")


def run_with(site: Site, directory: Path, text: str) -> subprocess.CompletedProcess[str]:
    """`socks-tunnel run` with a configuration that cannot work."""
    write_key(directory / "gateway.key")
    config = directory / "gateway.toml"
    config.write_text(text)
    return site.gateway.run(
        *(SOCKS_TUNNEL, "run", "--config", config),
        env={**os.environ, "RUNTIME_DIRECTORY": str(directory)},
        check=False,
    )


GATEWAY = """
role = "gateway"
[identity]
private_key_file = "gateway.key"
[[peers]]
name = "office"
public_key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
url = "http://10.77.0.2:8765/"
"""


def test_listener_off_loopback_is_refused(site: Site, tmp_path: Path) -> None:
    done = run_with(site, tmp_path, GATEWAY + '[socks]\nlisten = ["10.77.0.1:1080"]\n')
    assert done.returncode == 78
    assert "10.77.0.1:1080" in done.stderr
    assert "Traceback" not in done.stderr


def test_occupied_port_ends_with_a_clear_message(site: Site, tmp_path: Path) -> None:
    with site.gateway.inside():
        occupied = socket.create_server(("127.0.0.1", 0))
    with occupied:
        address = f"127.0.0.1:{occupied.getsockname()[1]}"
        done = run_with(
            site,
            tmp_path,
            GATEWAY + f'[socks]\nlisten = ["{address}"]\n[metrics]\nlisten = ""\n',
        )
    assert done.returncode not in (0, 70)
    assert address in done.stderr
    assert "Traceback" not in done.stderr


def test_mistakes_end_with_78(site: Site, tmp_path: Path) -> None:
    done = run_with(site, tmp_path, GATEWAY + "[sox]\nlisten = 1\n")
    assert done.returncode == 78
    assert "sox" in done.stderr


# --- waiting for the link -------------------------------------------------------------------------


def test_requests_wait_for_the_link(make_tunnel: MakeTunnel) -> None:
    # On a busy machine the endpoint takes longer to start than a request waits by default.
    tunnel = make_tunnel(gateway={"socks": {"connect_timeout": 90}}, start=False)
    tunnel.start_gateway()
    with tunnel.site.gateway.inside():
        sock = socket.create_connection(tunnel.proxy, timeout=120)
    with sock:
        name = TARGET_ADDRESS.encode()
        port = tunnel.site.ports["echo"].to_bytes(2, "big")
        sock.sendall(b"\x05\x01\x00\x05\x01\x00\x03" + bytes([len(name)]) + name + port)
        tunnel.start_endpoint()
        answer = b""
        while len(answer) < 12:
            piece = sock.recv(100)
            assert piece, f"closed after {answer!r}"
            answer += piece
        assert answer[:4] == b"\x05\x00\x05\x00"
        assert echo(sock)


def test_requests_without_a_link_fail_after_connect_timeout(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(gateway={"socks": {"connect_timeout": 2}}, start=False)
    tunnel.start_gateway()
    start = time.monotonic()
    with tunnel.site.gateway.inside():
        sock, answer = request(tunnel.proxy, TARGET_ADDRESS, 80, timeout=60)
    sock.close()
    assert answer.code == 1
    assert time.monotonic() - start > 1.9
    assert not tunnel.linked()


def test_stranger_is_refused_and_both_logs_say_so(make_tunnel: MakeTunnel, tmp_path: Path) -> None:
    stranger = write_key(tmp_path / "stranger.key")
    tunnel = make_tunnel(
        endpoint={"peers": [{"name": "laptop-17", "public_key": stranger}]}, start=False
    )
    tunnel.start_endpoint()
    tunnel.start_gateway()
    tunnel.gateway.wait_log("refused the offer")
    tunnel.endpoint.wait_log(
        r"rejected an offer from 10\.77\.0\.1: no configured peer has the public key"
    )
    wait_until(
        lambda: tunnel.metric("signaling_rejected_total", "endpoint") >= 1, "a rejection counted"
    )
    assert not tunnel.linked()


# --- crashes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["gateway", "endpoint"])
def test_killed_worker_takes_only_its_own_flows(make_tunnel: MakeTunnel, role: str) -> None:
    tunnel = make_tunnel()
    daemon = tunnel.gateway if role == "gateway" else tunnel.endpoint

    def open_at_target() -> int:
        seen: int = tunnel.site.state()["open"]["echo"]
        return seen

    with contextlib.ExitStack() as held:
        socks = [held.enter_context(tunnel.connect("echo")) for _ in range(24)]
        assert all(echo(sock) for sock in socks)
        # Those of earlier tests may end only now.
        wait_until(lambda: open_at_target() == len(socks), "only these flows at the target")
        victim = daemon.workers()[0]
        ports = wait_until(lambda: ports_of(tunnel, daemon, victim, len(socks)), "all flows")
        doomed = [sock for sock in socks if sock.getsockname()[1] in ports]
        others = [sock for sock in socks if sock not in doomed]
        assert doomed
        assert others
        os.kill(victim, signal.SIGKILL)
        # Told by the other worker's side, not by any timeout: the flows would have hours.
        assert all(ended(sock, 60) for sock in doomed)
        wait_until(lambda: open_at_target() == len(others), "their ends at the target")
        wait_until(
            lambda: len(now := daemon.workers()) == 2 and victim not in now,
            "another worker in its place",
        )
        assert all(echo(sock) for sock in others)
        assert open_at_target() == len(others)
    wait_until(lambda: tunnel.metric("worker_restarts_total", role) == 1, "one restart counted")
    with tunnel.connect("echo") as sock:
        assert echo(sock)
    daemon.wait_log(r"worker \d+ was killed by SIGKILL")


def ports_of(tunnel: Tunnel, daemon: Instance, worker: int, count: int) -> set[int] | None:
    """The clients' ports of the flows that a worker has; None until both sides list so many flows."""
    numbers = {row["pid"]: row["index"] for row in daemon.control("status")["workers"]}
    at = {row["conn_id"]: row["worker"] for row in daemon.control("connections")}
    rows = tunnel.gateway.control("connections")
    # A host that boots has process ids of its own.
    status = Path(f"/proc/{worker}/status").read_text()
    inside = int(status.partition("NSpid:")[2].splitlines()[0].split()[-1])
    if not len(rows) == len(at) == count or inside not in numbers:
        return None
    return {
        int(row["client"].rpartition(":")[2])
        for row in rows
        if at.get(row["conn_id"]) == numbers[inside]
    }


def test_killed_exporter_comes_back(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel()
    assert tunnel.metrics()[0] == 200
    exporters = tunnel.gateway.children("exporter")
    assert len(exporters) == 1
    os.kill(exporters[0], signal.SIGKILL)

    def served() -> bool:
        try:
            return tunnel.metrics()[0] == 200
        except OSError:
            return False

    wait_until(lambda: tunnel.gateway.children("exporter") not in ([], exporters), "another one")
    wait_until(served, "a scrape")


def test_killed_supervisor_leaves_no_process(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(foreground=True)  # systemd would start it again
    children = tunnel.endpoint.children()
    assert len(children) >= 3
    tunnel.endpoint.killed = True
    tunnel.endpoint.signal(signal.SIGKILL)
    tunnel.endpoint.wait()
    wait_until(lambda: not any(map(command_line, children)), "its children gone")
    # A new one in its place is found by the gateway.
    tunnel.start_endpoint()
    wait_until(lambda: echo_once(tunnel), "a way through", timeout=120)


def echo_once(tunnel: Tunnel) -> bool:
    """Whether a new flow to the echo server works."""
    import socks

    try:
        with tunnel.connect("echo", timeout=20) as sock:
            return echo(sock)
    except (OSError, socks.ProxyError):
        return False


def test_workers_that_cannot_boot_end_the_start(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(start=False, foreground=True)  # the module path is the test's
    config = tunnel.write("gateway")
    # A module of this name first on the path, so that a worker's interpreter ends at once.
    broken = tunnel.directory / "broken"
    broken.mkdir()
    (broken / "socks_tunnel_workers.py").write_text("raise SystemExit('cannot boot')\n")
    done = tunnel.site.gateway.run(
        *(SOCKS_TUNNEL, "run", "--config", config),
        env={**os.environ, "PYTHONPATH": str(broken), "RUNTIME_DIRECTORY": str(broken)},
        check=False,
    )
    assert done.returncode not in (0, -signal.SIGTERM)
    assert "worker" in done.stderr
    assert "Traceback" not in done.stderr


# --- stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["gateway", "endpoint"])
def test_drain_waits_for_flows_and_ends_with_the_last(make_tunnel: MakeTunnel, role: str) -> None:
    tunnel = make_tunnel(gateway={"drain_timeout": 300}, endpoint={"drain_timeout": 300})
    daemon = tunnel.gateway if role == "gateway" else tunnel.endpoint
    with tunnel.connect("echo") as sock:
        assert echo(sock)
        daemon.signal(signal.SIGTERM)
        daemon.wait_stopping()
        if role == "gateway":
            with tunnel.site.gateway.inside():

                def refused() -> bool:
                    try:
                        socket.create_connection(tunnel.proxy, timeout=30).close()
                    except ConnectionRefusedError:
                        return True
                    return False

                wait_until(refused, "the listener closed")
        assert echo(sock, b"still here")
        assert not daemon.ends_within(1.5)
        assert echo(sock, b"and still")
    assert daemon.wait(90) == 0


def test_drain_timeout_ends_what_is_left(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(gateway={"drain_timeout": 2})
    with tunnel.connect("echo") as sock:
        assert echo(sock)
        start = time.monotonic()
        tunnel.gateway.signal(signal.SIGTERM)
        assert tunnel.gateway.wait(90) == 0
        assert time.monotonic() - start > 1.9
        assert ended(sock, 60)


def test_second_sigterm_ends_at_once(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(gateway={"drain_timeout": 300})
    with tunnel.connect("echo") as sock:
        assert echo(sock)
        tunnel.gateway.signal(signal.SIGTERM)
        tunnel.gateway.wait_stopping()
        tunnel.gateway.signal(signal.SIGTERM)
        assert tunnel.gateway.wait(90) == 0
        assert ended(sock, 60)


def test_idle_gateway_stops_at_once_and_tells_the_endpoint(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(gateway={"drain_timeout": 300})
    seen = len(tunnel.endpoint.log_text())
    tunnel.gateway.stop(90)
    # By its own word, and not by the silence that a lost link needs.
    down = tunnel.endpoint.wait_log(r"link laptop-17 is down: .*", after=seen)[0]
    assert "nothing was heard" not in down
    wait_until(lambda: not links_up(tunnel, "endpoint"), "the link gone at the endpoint")


def test_drain_by_the_command(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(gateway={"drain_timeout": 300})
    with tunnel.connect("echo") as sock:
        assert echo(sock)
        tunnel.gateway.control("drain")
        tunnel.gateway.wait_stopping()

        def refused() -> bool:
            with tunnel.site.gateway.inside():
                try:
                    socket.create_connection(tunnel.proxy, timeout=30).close()
                except ConnectionRefusedError:
                    return True
                return False

        wait_until(refused, "the listener closed")
        assert echo(sock, b"still here")
        assert not tunnel.gateway.ends_within(0)
    assert tunnel.gateway.wait(90) == 0


# --- reload ---------------------------------------------------------------------------------------


def answer_of(tunnel: Tunnel, port: int) -> int:
    """The reply code for a CONNECT to the target."""
    with tunnel.site.gateway.inside():
        sock, answer = request(tunnel.proxy, TARGET_ADDRESS, port)
    sock.close()
    return answer.code


def test_a_reload_changes_the_policy_and_ends_the_flows_that_it_forbids(
    make_tunnel: MakeTunnel,
) -> None:
    tunnel = make_tunnel()
    port = tunnel.site.ports["echo"]
    with tunnel.connect("echo") as sock:
        assert echo(sock)
        tunnel.write("endpoint", {"policy": {"denied_ports": [25, port]}})
        tunnel.endpoint.reload()
        wait_until(lambda: answer_of(tunnel, port) == 2, "the new policy")
        wait_until(lambda: not echo(sock), "the end of the flow that it forbids")
        tunnel.write("endpoint", {"policy": {"denied_ports": [25]}})
        tunnel.endpoint.reload()
        wait_until(lambda: answer_of(tunnel, port) == 0, "the old policy again")


def test_reload_of_a_broken_configuration_changes_nothing(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel()
    config = tunnel.endpoint.config
    good = config.read_text()
    config.write_text(good + "\n[polcy]\n")
    tunnel.endpoint.signal(signal.SIGHUP)
    tunnel.endpoint.wait_log("polcy")
    assert echo_once(tunnel)
    config.write_text(good)


def test_reload_that_removes_a_peer_ends_its_link(make_tunnel: MakeTunnel, tmp_path: Path) -> None:
    tunnel = make_tunnel()
    stranger = write_key(tmp_path / "stranger.key")
    tunnel.write("endpoint", {"peers": [{"name": "another", "public_key": stranger}]})
    tunnel.endpoint.reload()
    wait_until(lambda: not tunnel.linked(), "the link gone")


# --- the link -------------------------------------------------------------------------------------


ROLES = ("gateway", "endpoint")


def links_up(tunnel: Tunnel, role: str) -> int:
    """How many links one side says are up."""
    daemon = tunnel.gateway if role == "gateway" else tunnel.endpoint
    return [link["state"] for link in daemon.control("status")["links"]].count("up")


@pytest.mark.timeout(480)
def test_a_flow_outlives_a_link_that_is_given_up(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(own_network=True)
    hosts = tunnel.site.hosts
    with tunnel.connect("echo", timeout=120) as sock:
        assert echo(sock)
        hosts.cut()
        sock.sendall(late := b"sent while nothing gets through")
        start = time.monotonic()
        # Both sides give the link up 15 s after the last sign of life.
        wait_until(lambda: not any(links_up(tunnel, role) for role in ROLES), "no link", timeout=90)
        took = time.monotonic() - start
        assert took > 5, took
        assert not ended(sock, 0)
        hosts.mend()
        tunnel.wait_linked(90)
        assert receive_exactly(sock, len(late)) == late
        assert echo(sock, b"and after it")
    wait_until(
        # A busy machine may have had another link take over besides.
        lambda: all(tunnel.metric("resumes_total", r, result="resumed") >= 1 for r in ROLES),
        "a resume counted by each side",
    )
    wait_until(
        lambda: not any(tunnel.metric("flows_active", r, kind="tcp") for r in ROLES),
        "no flow left on either side",
    )
    wait_until(lambda: links_up(tunnel, "endpoint") == 1, "one link at the endpoint")


def test_endpoint_serves_several_gateways(make_tunnel: MakeTunnel, site: Site) -> None:
    """Two identities with policies of their own on one endpoint; one gateway's end leaves the other."""
    first = make_tunnel(start=False)
    second = make_tunnel(start=False)
    echo_port = site.ports["echo"]
    peers = [
        *first.endpoint_settings["peers"],
        {
            "name": "second",
            "public_key": second.endpoint_settings["peers"][0]["public_key"],
            "policy": "narrow",
        },
    ]
    first.write(
        "endpoint",
        {
            "peers": peers,
            "policies": {"narrow": {"allowed_hosts": ["0.0.0.0"], "allowed_ports": [echo_port]}},
        },
    )
    second.write("gateway", {"peers": first.gateway_settings["peers"]})
    first.start()
    second.start_gateway()
    second.wait_linked()
    with first.connect("echo") as one, second.connect("echo") as two:
        assert echo(one)
        assert echo(two)
        assert answer_of(first, site.ports["discard"]) == 0
        assert answer_of(second, site.ports["discard"]) == 2
        second.gateway.stop()
        assert ended(two, 60)
        assert echo(one)
