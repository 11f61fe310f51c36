"""nginx and Caddy before a rendezvous service, by the very blocks of configuration that docs/reach.md has."""

import contextlib
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from support.certificates import Authority
from support.checkout import ROOT
from support.corporate import need
from support.processes import wait_until

Kind = Literal["nginx", "caddy"]

DOCS = ROOT / "docs" / "reach.md"

DOCUMENTED_NAME = "rendezvous.example.net"
DOCUMENTED_SERVICE = "127.0.0.1:8443"

_NGINX = """
daemon off; pid {folder}/nginx.pid; error_log stderr notice;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{
    listen {address}:443 ssl;
    ssl_certificate {folder}/proxy.pem; ssl_certificate_key {folder}/proxy.pem;
{block}
  }}
}}
"""

_CADDY = """
{{
  admin unix/{folder}/caddy.sock
  auto_https off
}}
{block}
"""


def documented(language: str) -> str:
    """Returns the block of docs/reach.md in that language; for TOML, that of a service behind a proxy."""
    section = DOCS.read_text("utf-8").partition("Behind nginx or Caddy")[2]
    (block, *_) = re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)
    return str(block)


class ReverseProxy:
    """A proxy on port 443 of `address`, before a service at `service`, an ADDRESS:PORT.

    `start` is Popen, or what starts a process on another host; `connect` makes a TCP connection from
    where the proxy can be reached. `read_timeout` is nginx's `proxy_read_timeout`, instead of the
    documented one.
    """

    def __init__(
        self,
        kind: Kind,
        folder: Path,
        address: str,
        service: str,
        *,
        start: Callable[..., "subprocess.Popen[bytes]"],
        connect: Callable[[], socket.socket],
        read_timeout: str | None = None,
    ) -> None:
        self.kind = kind
        self.address = address
        self.authority = folder / "proxy-ca.pem"
        self._folder = folder
        self._start, self._connect = start, connect
        self._popen: subprocess.Popen[bytes] | None = None
        self._log = folder / f"{kind}.log"
        self._config = folder / f"{kind}.conf"
        made = Authority("Front")
        self.authority.write_text(made.certificate)
        certificate = folder / "proxy.pem"
        certificate.touch(0o600)
        certificate.write_text(made.issue(address).both)
        block = documented("nginx" if kind == "nginx" else "caddyfile")
        assert DOCUMENTED_SERVICE in block
        block = block.replace(DOCUMENTED_SERVICE, service)
        if kind == "nginx":
            if read_timeout is not None:
                block, count = re.subn(
                    r"proxy_read_timeout \w+", f"proxy_read_timeout {read_timeout}", block
                )
                assert count == 1
            text = _NGINX.format(folder=folder, address=address, block=block)
        else:
            site = f"https://{address} {{\n    bind {address}\n    tls {certificate} {certificate}"
            block, count = re.subn(rf"{re.escape(DOCUMENTED_NAME)} {{", site, block)
            assert count == 1
            text = _CADDY.format(folder=folder, block=block)
        self._config.write_text(text)

    def start(self) -> None:
        """Starts it, and waits until it takes connections."""
        if self.kind == "nginx":
            command: list[str | Path] = [need("nginx"), "-c", self._config, "-e", "stderr"]
        else:
            command = [need("caddy"), "run", "--adapter", "caddyfile", "--config", self._config]
        with self._log.open("ab") as log:
            self._popen = popen = self._start(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={
                    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                    "HOME": str(self._folder),
                    "XDG_DATA_HOME": str(self._folder),
                },
            )

        def takes() -> bool:
            assert popen.poll() is None, self._log.read_text()
            with contextlib.suppress(OSError), self._connect():
                return True
            return False

        wait_until(takes, f"{self.kind} that takes connections")

    def reload(self) -> None:
        """Has it read its configuration again, and waits until new processes of its have that."""
        if self.kind == "nginx":
            before = self._log.read_text().count("start worker process ")
            pid = int((self._folder / "nginx.pid").read_text())
            subprocess.run(["kill", "-HUP", str(pid)], check=True)
            wait_until(
                lambda: self._log.read_text().count("start worker process ") > before,
                "new workers of nginx",
            )
        else:
            subprocess.run(
                [
                    *(need("caddy"), "reload", "--force", "--adapter", "caddyfile"),
                    *("--config", self._config, "--address", f"unix/{self._folder}/caddy.sock"),
                ],
                check=True,
                capture_output=True,
            )

    def stop(self) -> None:
        """Ends it as an administrator's restart does, with its connections."""
        if self._popen is not None:
            self._popen.terminate()
            self._popen.wait(60)
            self._popen = None


def on_this_machine(kind: Kind, folder: Path, service: str, **more: Any) -> ReverseProxy:
    """Returns a proxy on an address of loopback that no other test has."""
    numbers = folder.stat().st_ino
    address = f"127.{64 + numbers % 128}.{numbers >> 7 & 255}.{1 + (numbers >> 15) % 250}"

    def connect() -> socket.socket:
        return socket.create_connection((address, 443), timeout=30)

    return ReverseProxy(
        kind, folder, address, service, start=subprocess.Popen, connect=connect, **more
    )
