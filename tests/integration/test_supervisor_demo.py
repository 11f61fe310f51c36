"""`socks-tunnel demo`: what it says, what works, and that nothing of it stays behind."""

import json
import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import socks

from socks_tunnel.config.loader import load
from socks_tunnel.demo import demonstration as demo
from socks_tunnel.protocol.addresses import HostPort
from support.processes import SOCKS_TUNNEL, Process, command_line, descendants, wait_until

PAGE = re.compile(r"curl --socks5-hostname (\S+):(\d+) http://(\S+):(\d+)/")


class Demo(Process):
    """A demo with a directory for temporary files that nobody else uses."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        # Not below pytest's: paths of sockets are short.
        self.temporary = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
        super().__init__(
            "demo",
            [SOCKS_TUNNEL, "demo", *arguments],
            directory,
            environment={"TMPDIR": str(self.temporary)},
        )

    def printed(self) -> re.Match[str]:
        def look() -> re.Match[str] | None:
            assert self.popen.poll() is None, self.tail()
            return PAGE.search(self.output.read_text())

        return wait_until(look, "the line to try", timeout=90)

    def fetch(self) -> bytes:
        host, port, target, target_port = self.printed().groups()
        with socks.socksocket() as sock:
            sock.set_proxy(socks.SOCKS5, host, int(port))
            sock.settimeout(60)
            sock.connect((target, int(target_port)))
            sock.sendall(b"GET / HTTP/1.0\r\nHost: demo\r\n\r\n")
            page = b""
            while piece := sock.recv(65_536):
                page += piece
        return page


Start = Callable[..., Demo]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[Demo] = []

    def make(*arguments: str) -> Demo:
        made.append(Demo(tmp_path, "--listen", "127.0.0.1:0", *arguments))
        return made[-1]

    yield make
    for process in made:
        process.kill()
        shutil.rmtree(process.temporary)
        process.assert_clean()


def until_dead(pids: list[int]) -> None:
    wait_until(lambda: not any(command_line(pid) for pid in pids), f"{pids} gone")


def test_the_printed_line_works_and_ctrl_c_leaves_nothing(start: Start) -> None:
    process = start()
    assert b"It works" in process.fetch()
    # Two supervisors, each with its workers and an exporter. A nursery may have ended already.
    number = 2 + 2 * (len(os.sched_getaffinity(0)) + 1)
    wait_until(lambda: len(process.lasting()) == number, f"{number} processes")
    children = list(descendants(process.pid))
    (directory,) = process.temporary.iterdir()
    socket_path = directory / "run-gateway" / "control.sock"
    assert f"status --socket {socket_path}" in process.output.read_text()
    assert socket_path.is_socket()
    process.signal(signal.SIGINT)
    assert process.wait() == 0
    until_dead(children)
    assert list(process.temporary.iterdir()) == []
    assert "WARNING" not in process.log_text()


def test_both_sides_can_meet_at_a_rendezvous_service(start: Start) -> None:
    process = start("--rendezvous")
    assert b"It works" in process.fetch()
    assert "through the rendezvous service on 127.0.0.1:" in process.output.read_text()
    (directory,) = process.temporary.iterdir()
    gateway, endpoint = (
        (directory / f"{role}.toml").read_text() for role in ("gateway", "endpoint")
    )
    assert "url = " not in gateway
    assert "rendezvous = " in gateway
    assert "listen" not in endpoint.partition("[signaling]")[2]
    children = list(descendants(process.pid))
    process.signal(signal.SIGINT)
    assert process.wait() == 0
    until_dead(children)
    assert "WARNING" not in process.log_text()


def test_a_killed_demo_leaves_no_process(start: Start) -> None:
    process = start()
    process.printed()
    children = list(descendants(process.pid))
    process.popen.kill()
    process.popen.wait()
    until_dead(children)


def test_a_side_that_ends_by_itself_ends_the_demo_with_a_sentence(start: Start) -> None:
    process = start()
    process.printed()
    children = list(descendants(process.pid))
    (endpoint,) = process.children("endpoint.toml")
    os.kill(endpoint, signal.SIGTERM)
    assert process.wait() == 69
    process.wait_log("socks-tunnel demo: the endpoint exited with status 0")
    until_dead(children)


def test_a_policy_file_decides(start: Start, tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"allowed_hosts": "10.0.0.0/8", "allowed_ports": "80"}))
    process = start("--policy", str(policy))
    with pytest.raises(socks.ProxyError, match="0x02"):
        process.fetch()
    assert f"what {policy} allows" in process.output.read_text()


def test_an_occupied_port_gets_one_clear_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        address = HostPort(*occupied.getsockname()[:2])
        assert demo.run(address, None) == 73
    _, errors = capfd.readouterr()
    assert errors.count("\n") == 1
    assert f"cannot listen on {address}: another program listens there" in errors
    assert "socks-tunnel demo --listen 127.0.0.1:1080" in errors


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "localhost"])
def test_the_demo_serves_this_machine_alone(host: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert demo.run(HostPort(host, 1080), None) == 2
    assert "the demo serves this machine only" in capfd.readouterr().err


def test_a_long_tmpdir_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 60)))
    with demo._temporary_directory() as directory:
        assert Path(directory).parent == Path("/tmp")
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    with pytest.raises(demo._DemoError, match="no temporary directory") as caught:
        demo._temporary_directory()
    assert caught.value.exit_code == 73


async def test_its_configurations_are_usable_and_keep_their_keys_private(tmp_path: Path) -> None:
    demo._Demo(HostPort("::1", 1080), None, tmp_path)._write_configurations()
    gateway, endpoint = load(tmp_path / "gateway.toml"), load(tmp_path / "endpoint.toml")
    assert gateway.peers[0].name == "endpoint"
    assert endpoint.peers[0].name == "gateway"
    assert gateway.socks.listen == (HostPort("::1", 1080),)
    assert gateway.peers[0].public_key != endpoint.peers[0].public_key
