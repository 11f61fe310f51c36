"""Hosts that join an endpoint: real processes and commands, by both carriers."""

import json
import random
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.supervisor import control_client
from support.processes import SOCKS_TUNNEL, Daemon, Process, Targets, toml, wait_until


def free_port() -> int:
    """Returns a port of loopback that is free, and that the system gives to nobody by itself."""
    while True:
        port = random.randint(20_000, 29_999)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class Place:
    """An endpoint that nobody has been paired with, and who joins it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.targets = Targets()
        self.running: list[Process] = []
        self.settings: dict[str, Any] = {}
        self.url = ""
        self.endpoint: Daemon

    def begin(self, *, rendezvous: bool) -> None:
        key = self.key("endpoint")
        directory = self.directory
        signaling: dict[str, Any] = {}
        if rendezvous:
            port = free_port()
            self.url = f"ws://127.0.0.1:{port}/"
            signaling["rendezvous"] = self.url
            table = {"name": "office", "public_key": key.public_text}
            settings = {"listen": f"127.0.0.1:{port}", "clients": "enrolled", "keys": [table]}
            (directory / "rendezvous.toml").write_text(toml(settings))
            service = [SOCKS_TUNNEL, "rendezvous", "--config", str(directory / "rendezvous.toml")]
            process = Process("rendezvous", service, directory)
            self.running.append(process)
            process.wait_notified("READY=1")
        else:
            port = free_port()
            self.url = f"http://127.0.0.1:{port}/"
            signaling["listen"] = f"127.0.0.1:{port}"
        self.settings = {
            "role": "endpoint",
            "identity": {"private_key_file": "endpoint.key"},
            "signaling": signaling,
            "policy": {"allowed_hosts": [], "allowed_ports": []},
            "policies": {"staff": {"allowed_hosts": ["127.0.0.1"], "allowed_ports": ["*"]}},
            "ice": {"addresses": ["127.0.0.1"]},
            "workers": {"count": 1},
            "metrics": {"listen": ""},
        }
        (directory / "endpoint.toml").write_text(toml(self.settings))
        self.endpoint = self.start("endpoint")

    def key(self, name: str) -> PrivateIdentity:
        identity = PrivateIdentity.generate()
        path = self.directory / f"{name}.key"
        path.touch(mode=0o600)
        path.write_bytes(identity.to_pem())
        return identity

    def start(self, name: str) -> Daemon:
        daemon = Daemon(name, self.directory)
        self.running.append(daemon)
        daemon.wait_ready()
        return daemon

    def command(self, *arguments: str, status: int = 0) -> str:
        ended = subprocess.run(
            [SOCKS_TUNNEL, *arguments], capture_output=True, text=True, timeout=120
        )
        assert ended.returncode == status, ended
        return ended.stdout if status == 0 else ended.stderr

    def ask_endpoint(self, *arguments: str, status: int = 0) -> str:
        control = self.endpoint.runtime_directory / "control.sock"
        return self.command(*arguments, "--socket", str(control), status=status)

    def invite(self, *options: str) -> str:
        return self.ask_endpoint("invite", *options).strip()

    def join(self, token: str, name: str = "gateway", status: int = 0) -> str:
        config = self.directory / f"{name}.toml"
        more = ["--token", token, "--config", str(config), "--name", "laptop", "--timeout", "30"]
        return self.command("join", self.url, *more, status=status)

    def start_gateway(self, name: str = "gateway") -> tuple[Daemon, HostPort]:
        port = free_port()
        path = self.directory / f"{name}.toml"
        text = path.read_text().replace("127.0.0.1:1080", f"127.0.0.1:{port}")
        path.write_text(text.replace('listen = "127.0.0.1:9464"', 'listen = ""'))
        return self.start(name), HostPort("127.0.0.1", port)

    def close(self) -> None:
        try:
            for process in reversed(self.running):
                process.stop()
        finally:
            for process in self.running:
                process.kill()
            self.targets.stop()


@pytest.fixture(params=["direct", "rendezvous"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    try:
        made.begin(rendezvous=request.param == "rendezvous")
        yield made
    finally:
        made.close()


def reply_of(proxy: HostPort, port: int) -> tuple[socket.socket, int]:
    """Connects through the gateway; returns the connection and the SOCKS5 reply code."""
    sock = socket.create_connection(proxy, timeout=30)
    sock.sendall(b"\5\1\0" + b"\5\1\0\1" + bytes([127, 0, 0, 1]) + port.to_bytes(2, "big"))
    answer = b""
    while len(answer) < 12:
        piece = sock.recv(12 - len(answer))
        assert piece, answer
        answer += piece
    return sock, answer[3]


def test_from_an_invitation_to_a_flow_and_to_its_end(place: Place) -> None:
    token = place.invite("--tag", "staff")
    told = place.join(token)
    assert "joined as laptop with the tag staff" in told
    gateway, proxy = place.start_gateway()
    gateway.wait_log("link endpoint is up")
    sock, reply = reply_of(proxy, place.targets.ports["echo"])
    with sock:
        assert reply == 0
        sock.sendall(b"hello")
        assert sock.recv(5) == b"hello"
        rows = json.loads(place.ask_endpoint("peers", "--json"))
        (peer,) = rows["peers"]
        assert (peer["name"], peer["tag"], peer["until"]) == ("laptop", "staff", None)
        assert peer["seen"] is not None
        assert [each["uses_left"] for each in rows["invitations"]] == [0]

        control = place.endpoint.runtime_directory / "control.sock"
        place.command("peers", "--socket", str(control), "revoke", "laptop")
        with pytest.raises(ConnectionResetError):  # it was cut off, and has not ended in order
            sock.recv(1)
    place.endpoint.wait_log(r"the enrolment of laptop is revoked")
    gateway.wait_log(r"link endpoint is down")
    again = gateway.log_text()
    gateway.wait_log(r"cannot reach endpoint: .* refused the offer", after=len(again))
    assert token not in place.endpoint.log_text() + gateway.log_text()


def test_another_key_for_a_host_that_has_joined(place: Place) -> None:
    place.join(place.invite("--tag", "staff"))
    gateway, proxy = place.start_gateway()
    gateway.wait_log("link endpoint is up")
    sock, reply = reply_of(proxy, place.targets.ports["echo"])
    with sock:
        assert reply == 0
        before = (place.directory / "gateway.key").read_bytes()
        config = str(place.directory / "gateway.toml")
        told = place.command("join", place.url, "--renew", "--config", config)
        assert "the old one is good for a day" in told
        assert (place.directory / "gateway.key").read_bytes() != before
        (peer,) = json.loads(place.ask_endpoint("peers", "--json"))["peers"]
        assert len(peer["public_keys"]) == 2
        gateway.reload()
        gateway.wait_log("this host has another key for its next links")
        sock.sendall(b"both")
        assert sock.recv(4) == b"both"
    place.command("check-config", config)
    gateway.stop()
    place.running.remove(gateway)
    again = place.start("gateway")
    again.wait_log(r"link endpoint is up[\s\S]*link endpoint is up")
    sock, reply = reply_of(proxy, place.targets.ports["echo"])
    sock.close()
    assert reply == 0


def test_what_is_refused_is_said(place: Place) -> None:
    assert "there is no [policies.guests]" in place.ask_endpoint(
        "invite", "--tag", "guests", status=1
    )
    wrong = place.join("st1_" + "A" * 74, status=2)
    assert "the token is damaged" in wrong
    token = place.invite()
    place.join(token, "first")
    assert "the invitation has been used up" in place.join(token, "second", status=1)
    assert (place.directory / "second.key").exists(), "another attempt uses the same key"
    assert not (place.directory / "second.toml").exists()
    (left,) = json.loads(place.ask_endpoint("peers", "--json"))["invitations"]
    control = str(place.endpoint.runtime_directory / "control.sock")
    place.command("peers", "--socket", control, "withdraw", left["invitation"])
    assert "refused" in place.join(token, "second", status=1)
    place.endpoint.wait_log("refused a request to join from .*: there is no such invitation")
    assert "is there already" in place.join(token, "first", status=73)
    refused = control_client.request(Path(control), {"op": "revoke", "name": "nobody"})
    assert refused == {"ok": False, "error": "no host of the name nobody has joined"}


def test_members_survive_a_restart_and_their_policy(place: Place) -> None:
    place.join(place.invite("--tag", "staff"))
    place.endpoint.stop()
    place.running.remove(place.endpoint)
    place.endpoint = place.start("endpoint")
    gateway, proxy = place.start_gateway()
    gateway.wait_log("link endpoint is up")
    sock, reply = reply_of(proxy, place.targets.ports["echo"])
    with sock:
        assert reply == 0
        del place.settings["policies"]
        (place.directory / "endpoint.toml").write_text(toml(place.settings))
        place.endpoint.reload()
        place.endpoint.wait_log(
            r"the host laptop has joined, but is refused: there is no \[policies"
        )
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    wait_until(lambda: not place.endpoint.control("status")["links"], "no peers left")
