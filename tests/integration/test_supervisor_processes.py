"""Two real supervisors with real workers on loopback: deaths, drains, reloads. No root needed."""

import contextlib
import errno
import os
import re
import select
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import socks

from socks_tunnel.signaling.identity import PrivateIdentity
from support.processes import Daemon, command_line, descendants, toml, wait_until


class Echo(socketserver.BaseRequestHandler):
    """Sends everything back."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(65_536):
                self.request.sendall(data)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


@pytest.fixture(scope="module")
def target() -> Iterator[tuple[str, int]]:
    with Server(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        host, port = server.server_address[:2]
        yield str(host), port
        server.shutdown()
        thread.join()


class Hosts:
    """A gateway and an endpoint, started as a user starts them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.daemons: list[Daemon] = []
        self.public: dict[str, str] = {}
        for role in ("gateway", "endpoint"):
            identity = PrivateIdentity.generate()
            key = directory / f"{role}.key"
            key.touch(mode=0o600)
            key.write_bytes(identity.to_pem())
            self.public[role] = identity.public_text
        self.gateway: Daemon
        self.endpoint: Daemon

    def write(self, role: str, **tables: Any) -> None:
        other = "endpoint" if role == "gateway" else "gateway"
        peer = {"name": other, "public_key": self.public[other]}
        config: dict[str, Any] = {
            "role": role,
            "identity": {"private_key_file": f"{role}.key"},
            "ice": {"addresses": ["127.0.0.1"]},
            "workers": {"count": 2},
            "metrics": {"listen": "127.0.0.1:0"},
        }
        if role == "gateway":
            config["socks"] = {"listen": ["127.0.0.1:0"], "connect_timeout": 60}
            peer["url"] = "unix:offers.sock"
        else:
            config["signaling"] = {"listen": "unix:offers.sock"}
            config["policy"] = {"allowed_hosts": ["127.0.0.0/8"], "allowed_ports": ["*"]}
        config["peers"] = [peer]
        (self.directory / f"{role}.toml").write_text(toml({**config, **tables}))

    def start(self, role: str, **tables: Any) -> Daemon:
        self.write(role, **tables)
        daemon = Daemon(role, self.directory)
        setattr(self, role, daemon)
        self.daemons.append(daemon)
        daemon.wait_notified("READY=1")
        return daemon

    def link(self, **gateway: Any) -> "Hosts":
        self.start("endpoint")
        self.start("gateway", **gateway)
        self.wait_linked()
        return self

    def linked(self) -> bool:
        return any(link["state"] == "up" for link in self.gateway.control("status")["links"])

    def wait_linked(self) -> None:
        wait_until(self.linked, f"a link:\n{self.gateway.tail()}", timeout=60)

    def connect(self, target: tuple[str, int]) -> socket.socket:
        host, port = self.gateway.control("status")["listen"][0].rsplit(":", 1)
        sock = socks.socksocket()
        sock.set_proxy(socks.SOCKS5, host, int(port))
        sock.settimeout(60)
        sock.connect(target)
        plain: socket.socket = sock
        return plain

    def flows(self) -> list[int]:
        rows = self.gateway.control("status")["workers"]
        return [row["flows_tcp"] for row in rows]

    def wait_flows(self, count: int) -> list[int]:
        """The flows of each worker, once there are so many: one that is busy may not answer in time."""

        def found() -> list[int] | None:
            flows = self.flows()
            return flows if sum(flows) == count else None

        return wait_until(found, f"{count} flows")

    def close(self) -> None:
        try:
            for daemon in reversed(self.daemons):
                if daemon.popen.returncode is None:
                    daemon.stop(60)
                else:
                    daemon.assert_clean()
        finally:
            for daemon in self.daemons:
                daemon.kill()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    yield made
    made.close()


def echoes(sock: socket.socket, data: bytes = b"hello") -> bool:
    sock.sendall(data)
    got = b""
    while len(got) < len(data):
        piece = sock.recv(65_536)
        if not piece:
            return False
        got += piece
    return got == data


def is_closed(sock: socket.socket, timeout: float = 60) -> bool:
    if not select.select([sock], [], [], timeout)[0]:
        return False
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def until_dead(pids: list[int]) -> None:
    wait_until(lambda: not any(command_line(pid) for pid in pids), f"{pids} gone")


def test_flows_pass_and_both_sides_tell_of_them(hosts: Hosts, target: tuple[str, int]) -> None:
    hosts.link()
    with hosts.connect(target) as sock:
        assert echoes(sock, os.urandom(300_000))
        # A worker that is busy for long has no row in the answer.
        (row,) = wait_until(lambda: hosts.gateway.control("connections"), "the flow")
        assert row["destination"] == f"{target[0]}:{target[1]}"
        assert row["worker"] in {0, 1}
        wait_until(lambda: sum(hosts.flows()) == 1, "one flow")

        def link_rows() -> list[tuple[str, str, int]]:
            links = hosts.endpoint.control("status")["links"]
            return [(link["peer"], link["state"], link["flows"]) for link in links]

        # Two are there while one takes over from another, which a busy machine may cause.
        wait_until(lambda: link_rows() == [("gateway", "up", 1)], "the link with its flow")
    wait_until(lambda: sum(hosts.flows()) == 0, "the flow's end")


def test_a_killed_worker_takes_its_own_flows_alone(hosts: Hosts, target: tuple[str, int]) -> None:
    hosts.link()
    socks_by_worker: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        count = 0
        while len(socks_by_worker) < 2:  # the kernel decides which worker accepts
            before = hosts.wait_flows(count)
            sock = stack.enter_context(hosts.connect(target))
            assert echoes(sock)
            count += 1
            after = hosts.wait_flows(count)
            (worker,) = [i for i in (0, 1) if after[i] > before[i]]
            socks_by_worker.setdefault(worker, sock)
        victim = hosts.gateway.control("status")["workers"][1]["pid"]
        os.kill(victim, signal.SIGKILL)
        hosts.gateway.killed = True
        assert is_closed(socks_by_worker[1])
        assert echoes(socks_by_worker[0])
        hosts.gateway.wait_log(r"worker 1 was killed by SIGKILL .*; restarting in 0\.\d s")
        hosts.gateway.wait_log(r"\d+ flows ended with worker 1; their peers were told")
        wait_until(
            lambda: hosts.gateway.control("status")["workers"][1]["state"] == "running",
            "worker 1 running again",
        )
        assert hosts.gateway.control("status")["workers"][1]["restarts"] == 1
        wait_until(
            lambda: hosts.endpoint.control("status")["links"][0]["flows"] == hosts.flows()[0],
            "the endpoint without the dead worker's flows",
        )
        with hosts.connect(target) as sock:
            assert echoes(sock)


def test_a_dead_endpoint_is_noticed_and_dialled_again(
    hosts: Hosts, target: tuple[str, int]
) -> None:
    hosts.link()
    with hosts.connect(target) as sock:
        assert echoes(sock)
        children = list(descendants(hosts.endpoint.pid))
        hosts.endpoint.killed = True
        hosts.endpoint.popen.kill()
        hosts.endpoint.popen.wait()
        until_dead(children)
        wait_until(lambda: not hosts.linked(), "the link down")  # after 15 s
        hosts.gateway.wait_log(r"link endpoint is down: .*; 1 flows wait for the next link")
        hosts.start("endpoint")
        hosts.wait_linked()
        assert is_closed(sock), "the endpoint that knew this flow is gone"
    with hosts.connect(target) as sock:
        assert echoes(sock)


@pytest.mark.parametrize("role", ["gateway", "endpoint"])
def test_a_drain_lets_flows_end_and_nothing_new_in(
    hosts: Hosts, target: tuple[str, int], role: str
) -> None:
    hosts.link()
    daemon: Daemon = getattr(hosts, role)
    host, port = hosts.gateway.control("status")["listen"][0].rsplit(":", 1)
    with hosts.connect(target) as sock:
        assert echoes(sock)
        daemon.signal(signal.SIGTERM)
        daemon.wait_log("SIGTERM: draining; 1 flows have up to 20 s to end")
        if role == "gateway":
            wait_until(lambda: refused((host, int(port))), "the listener shut")
        else:
            hosts.gateway.wait_log("link endpoint: the peer takes no new flows")
        assert echoes(sock), "what was open goes on"
        assert daemon.popen.poll() is None
    assert daemon.wait() == 0
    daemon.wait_log("all flows have ended")
    wait_until(lambda: "STOPPING=1" in daemon.notified(), "STOPPING=1")


def refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_drain_ends_when_its_time_is_up(hosts: Hosts, target: tuple[str, int]) -> None:
    hosts.link(drain_timeout=2)
    with hosts.connect(target) as sock:
        assert echoes(sock)
        began = time.monotonic()
        hosts.gateway.signal(signal.SIGTERM)
        assert hosts.gateway.wait() == 0
        assert time.monotonic() - began >= 2
        assert is_closed(sock)
    hosts.gateway.wait_log("1 flows are still open after 2 s")
    wait_until(
        lambda: {link["state"] for link in hosts.endpoint.control("status")["links"]} == {"down"},
        "the goodbye",
    )


def test_a_second_signal_ends_at_once(hosts: Hosts, target: tuple[str, int]) -> None:
    hosts.link(drain_timeout=3600)
    children = list(descendants(hosts.gateway.pid))
    with hosts.connect(target) as sock:
        assert echoes(sock)
        hosts.gateway.signal(signal.SIGTERM)
        hosts.gateway.wait_log("SIGTERM: draining")
        assert hosts.gateway.popen.poll() is None
        hosts.gateway.signal(signal.SIGTERM)
        assert hosts.gateway.wait() == 0
        assert is_closed(sock)
    until_dead(children)


def test_no_child_outlives_a_killed_supervisor(hosts: Hosts, target: tuple[str, int]) -> None:
    hosts.link()
    with hosts.connect(target) as sock:
        assert echoes(sock)
        wait_until(
            lambda: len(hosts.gateway.workers()) == 2 and hosts.gateway.children("exporter"),
            "two workers and the exporter",
        )
        children = list(descendants(hosts.gateway.pid))
        hosts.gateway.killed = True
        hosts.gateway.popen.kill()
        hosts.gateway.popen.wait()
        until_dead(children)
        assert is_closed(sock)


def test_a_reload_changes_the_policy_and_a_bad_file_changes_nothing(
    hosts: Hosts, target: tuple[str, int]
) -> None:
    hosts.link()
    config = hosts.endpoint.config.read_text()
    hosts.endpoint.config.write_text(config + "\n[sox]\n")
    hosts.endpoint.signal(signal.SIGHUP)
    hosts.endpoint.wait_log(r"endpoint\.toml:\d+: sox: unknown key")
    hosts.endpoint.wait_log("not reloaded: the old configuration stays")
    with hosts.connect(target) as sock:
        assert echoes(sock)
    hosts.write("endpoint", policy={"allowed_hosts": ["10.0.0.0/8"], "allowed_ports": ["*"]})
    after = len(hosts.endpoint.log_text())
    hosts.endpoint.signal(signal.SIGHUP)
    hosts.endpoint.wait_log("reloaded ", after=after)
    assert wait_until(lambda: not_allowed(hosts, target), "the new policy in all workers")
    hosts.wait_linked()


def not_allowed(hosts: Hosts, target: tuple[str, int]) -> bool:
    try:
        hosts.connect(target).close()
    except socks.ProxyError as error:
        return "0x02" in str(error)
    return False


def unix_client(path: Path, target: tuple[str, int]) -> socket.socket:
    """A flow to the target through a SOCKS listener on a Unix socket."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(60)
    sock.connect(str(path))
    host, port = target
    sock.sendall(b"\x05\x01\0\x05\x01\0\x01" + socket.inet_aton(host) + port.to_bytes(2, "big"))
    answer = b""
    while len(answer) < 12:
        piece = sock.recv(12 - len(answer))
        assert piece, f"closed after {answer!r}"
        answer += piece
    assert answer[:4] == b"\x05\0\x05\0"
    return sock


def test_a_unix_listener_through_deaths_and_a_drain(hosts: Hosts, target: tuple[str, int]) -> None:
    socks_table = {"listen": ["unix:socks.sock"], "connect_timeout": 60}
    path = hosts.directory / "socks.sock"
    hosts.link(socks=socks_table)
    assert hosts.gateway.control("status")["listen"] == [f"unix:{path}"]
    hosts.gateway.wait_log(re.escape(f"SOCKS5 on unix:{path}"))
    assert path.stat().st_mode & 0o777 == 0o660

    # Both workers die: the socket, and who waits on it, belong to the supervisor.
    hosts.gateway.killed = True
    for worker in hosts.gateway.workers():
        os.kill(worker, signal.SIGKILL)
    with unix_client(path, target) as sock:
        assert echoes(sock)
        (row,) = wait_until(lambda: hosts.gateway.control("connections"), "the flow")
        assert row["client"] == f"unix:pid={os.getpid()},uid={os.getuid()}"

    # The supervisor dies: its file stays, and does not stand in the next one's way.
    left = list(descendants(hosts.gateway.pid))
    hosts.gateway.popen.kill()
    hosts.gateway.popen.wait()
    until_dead(left)
    inode = path.stat().st_ino
    hosts.start("gateway", socks=socks_table)
    hosts.wait_linked()
    if path.stat().st_ino == inode:
        hosts.gateway.wait_log("an earlier process")

    # Another instance does not take it away from this one.
    config = hosts.gateway.config.read_text()
    (hosts.directory / "other.toml").write_text(config)
    other = Daemon("other", hosts.directory)
    try:
        assert other.wait() == 73
        other.wait_log(re.escape(f"cannot listen on unix:{path}: another program"))
    finally:
        other.kill()

    with unix_client(path, target) as sock:
        assert echoes(sock)
        hosts.gateway.signal(signal.SIGTERM)
        hosts.gateway.wait_log("SIGTERM: draining; 1 flows have up to 20 s to end")

        def is_refused() -> bool:
            with socket.socket(socket.AF_UNIX) as late:
                return late.connect_ex(str(path)) == errno.ECONNREFUSED

        wait_until(is_refused, "the listener shut")
        assert echoes(sock), "what was open goes on"
    assert hosts.gateway.wait() == 0
    assert not path.exists()


@pytest.mark.parametrize("place", ["missing/socks.sock", "file", "run-gateway/control.sock"])
def test_a_unix_listener_that_cannot_be_had_is_named(hosts: Hosts, place: str) -> None:
    (hosts.directory / "file").write_text("precious")
    hosts.write("gateway", socks={"listen": [f"unix:{place}"]})
    reason = {
        "missing/socks.sock": f"there is no directory {hosts.directory}/missing",
        "file": "that file is no socket, and is left alone; choose another path",
        "run-gateway/control.sock": "it is the control socket of this instance",
    }[place]
    gateway = Daemon("gateway", hosts.directory)
    try:
        assert gateway.wait() == 73
        gateway.wait_log(
            re.escape(f"socks.listen: cannot listen on unix:{hosts.directory}/{place}: {reason}")
        )
    finally:
        gateway.kill()
    assert (hosts.directory / "file").read_text() == "precious"


def test_an_instance_of_the_same_name_is_refused(hosts: Hosts) -> None:
    gateway = hosts.start("gateway")
    second = Daemon("gateway", hosts.directory)
    try:
        assert second.wait() == 73
        second.wait_log("an instance 'gateway' is running already")
    finally:
        second.kill()
    assert gateway.control("status")["state"] == "ready"
