"""An endpoint that nobody has been paired with, and hosts that join it: real processes."""

import random
import socket
import subprocess
from pathlib import Path
from typing import Any

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.signaling.identity import PrivateIdentity
from support.processes import SOCKS_TUNNEL, Daemon, Process, Targets, toml


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

    def begin(self, *, rendezvous: bool, **more: Any) -> None:
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
            self.begin_service()
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
            **more,
        }
        (directory / "endpoint.toml").write_text(toml(self.settings))
        self.endpoint = self.start("endpoint")

    def begin_service(self) -> None:
        config = self.directory / "rendezvous.toml"
        service = [SOCKS_TUNNEL, "rendezvous", "--config", str(config)]
        process = Process("rendezvous", service, self.directory)
        self.running.append(process)
        process.wait_notified("READY=1")

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
        more = ["--token", token, "--config", str(config), "--name", "laptop", "--timeout", "60"]
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
