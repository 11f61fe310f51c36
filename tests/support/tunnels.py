"""The scene of the system tests: three hosts, target servers and DNS, and tunnels between them."""

import base64
import contextlib
import copy
import functools
import http.client
import itertools
import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from support.hosts import (
    DOMAIN,
    ENDPOINT_ADDRESS,
    TARGET_ADDRESS,
    TARGET_ADDRESS6,
    Host,
    ThreeHosts,
)
from support.processes import PATIENCE, Daemon, Instance, Targets, toml, wait_until
from support.remote_shell import SshServer

Settings = dict[str, Any]


def write_key(path: Path) -> str:
    """A new private key in `path`; the public key as configurations write it."""
    key = Ed25519PrivateKey.generate()
    path.touch(0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.b64encode(public).decode()


def merged(base: Settings, changes: Mapping[str, Any]) -> Settings:
    """`base` with `changes` laid over it, table by table; a value of None removes the key."""
    result = dict(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result


class Home:
    """Where one side of a tunnel lives: its files, and how it is run.

    This one is a directory of the test, and the program runs in the foreground on the host.
    """

    def __init__(self, host: Host, directory: Path, role: str) -> None:
        self.host = host
        self.folder = directory
        self.instance = role

    @property
    def runtime_directory(self) -> Path:
        """Its runtime directory, under the name that the program has for it."""
        return self.folder / f"run-{self.instance}"

    @property
    def state_directory(self) -> Path:
        """Another directory that it may write to, which stays when it ends; as above."""
        return self.folder

    def put(self, name: str, text: str) -> Path:
        """Write a file beside the configuration that the program can read and others cannot."""
        path = self.folder / name
        path.touch(0o600)
        path.write_text(text)
        return path

    def make_key(self) -> str:
        """A private key of its own, under the instance's name; the public key."""
        return write_key(self.folder / f"{self.instance}.key")

    def start(self, settings: Settings) -> Instance:
        """Start the program with these settings, which are in its configuration file already."""
        del settings
        return Daemon(self.instance, self.folder, prefix=self.host.command())


class Site:
    """Three hosts, with target servers and a name server running on the target's."""

    def __init__(self, hosts: ThreeHosts | None = None) -> None:
        self.hosts = hosts or ThreeHosts()
        self.directory = Path(tempfile.mkdtemp(prefix="socks-tunnel-test-"))
        self.numbers = itertools.count()
        self._exit = contextlib.ExitStack()
        self._exit.callback(shutil.rmtree, self.directory)
        self._exit.callback(self.hosts.delete)
        try:
            self.targets = Targets(self.hosts.target.command())
            self._exit.callback(self.targets.stop)
            if shutil.which("dnsmasq"):
                self._start_dns()
        except BaseException:
            self._exit.close()
            raise

    @property
    def ports(self) -> dict[str, int]:
        """The target servers' ports by name."""
        return self.targets.ports

    @property
    def gateway(self) -> Host:
        """Where the SOCKS clients and the gateway run."""
        return self.hosts.gateway

    @functools.cached_property
    def ssh_server(self) -> SshServer:
        """An sshd on the target's host; started when it is first used."""
        server = SshServer(self.hosts.target, self.directory / "sshd")
        self._exit.callback(server.close)
        return server

    def _start_dns(self) -> None:
        command = [
            *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file="),
            *("--no-resolv", "--no-hosts", "--user=root", "--log-facility=-", "--port=53"),
            *("--local-service=net", "--bind-interfaces", "--interface=tg0"),
            f"--local=/{DOMAIN}/",
            f"--host-record=www.{DOMAIN},{TARGET_ADDRESS},{TARGET_ADDRESS6}",
            f"--host-record=v4.{DOMAIN},{TARGET_ADDRESS}",
            f"--host-record=v6.{DOMAIN},{TARGET_ADDRESS6}",
            f"--host-record=loop.{DOMAIN},127.0.0.1",
            # Nobody has the first address, so only a second attempt connects.
            f"--host-record=late.{DOMAIN},10.77.1.99",
            f"--host-record=late.{DOMAIN},{TARGET_ADDRESS}",
            f"--txt-record=text.{DOMAIN},{'x' * 200},{'y' * 200},{'z' * 200}",
            f"--mx-host={DOMAIN},mail.{DOMAIN},10",
        ]
        dns = self.hosts.target.start(
            *command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._exit.callback(dns.wait)
        self._exit.callback(dns.terminate)
        with self.hosts.target.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
            query.settimeout(0.1)
            query.connect((TARGET_ADDRESS, 53))

            def answered() -> bool:
                # Header with one question, its name www.DOMAIN, type A, class IN (RFC 1035 4.1).
                labels = b"".join(bytes([len(p)]) + p.encode() for p in ["www", *DOMAIN.split(".")])
                try:
                    query.send(b"\0\1\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1")
                    return bool(query.recv(512))
                except (TimeoutError, ConnectionRefusedError):
                    return False

            wait_until(answered, "an answer of dnsmasq")

    def state(self) -> dict[str, Any]:
        """What the target servers saw so far."""
        state: dict[str, Any] = json.loads(self._ask("GET", "/state"))
        return state

    def open_gate(self, name: str) -> None:
        """Let the HTTP server go on with a body that waits at a gate."""
        self._ask("POST", f"/gates/{name}")

    def _ask(self, method: str, path: str) -> bytes:
        """Ask the HTTP server, from its own host."""

        def ask() -> bytes:
            connection = http.client.HTTPConnection("127.0.0.1", self.ports["http"], timeout=60)
            with contextlib.closing(connection):
                connection.request(method, path)
                return connection.getresponse().read()

        return self.hosts.target.call(ask)

    def home(self, role: str, number: int, directory: Path) -> Home:
        """Where one side of tunnel `number`, which has that directory, is to live."""
        del number
        return self.foreground_home(role, directory)

    def foreground_home(self, role: str, directory: Path) -> Home:
        """The same for a program in the foreground."""
        host = self.hosts.gateway if role == "gateway" else self.hosts.endpoint
        return Home(host, directory, role)

    def tunnel(
        self,
        gateway: Mapping[str, Any] | None = None,
        endpoint: Mapping[str, Any] | None = None,
        *,
        foreground: bool = False,
    ) -> "Tunnel":
        """A gateway and an endpoint, not started; arguments are laid over the usual configurations."""
        return Tunnel(self, gateway or {}, endpoint or {}, foreground=foreground)

    def close(self) -> None:
        """End everything."""
        self._exit.close()


class Tunnel:
    """A gateway and an endpoint of a site, each a real `socks-tunnel run`; ports are their own.

    They run as the site runs them, or, if asked for, in the foreground.
    """

    def __init__(
        self,
        site: Site,
        gateway: Mapping[str, Any],
        endpoint: Mapping[str, Any],
        *,
        foreground: bool = False,
    ) -> None:
        self.site = site
        number = next(site.numbers)
        self.directory = site.directory / f"tunnel-{number}"
        self.directory.mkdir()
        self.socks_port = 11080 + number
        self.metrics_port = 19464 + number
        self.signaling_port = 18765 + number
        self.daemons: list[Instance] = []
        self.homes = {
            role: site.foreground_home(role, self.directory)
            if foreground
            else site.home(role, number, self.directory)
            for role in ("gateway", "endpoint")
        }
        keys = {role: home.make_key() for role, home in self.homes.items()}
        usual_gateway: Settings = {
            "role": "gateway",
            "drain_timeout": 5,
            "identity": {"private_key_file": f"{self.homes['gateway'].instance}.key"},
            "socks": {
                "listen": [f"127.0.0.1:{self.socks_port}", f"[::1]:{self.socks_port}"],
                "connect_timeout": 20,
            },
            "peers": [
                {
                    "name": "office",
                    "public_key": keys["endpoint"],
                    "url": f"http://{ENDPOINT_ADDRESS}:{self.signaling_port}/",
                }
            ],
            "workers": {"count": 2},
            "metrics": {"listen": f"127.0.0.1:{self.metrics_port}"},
            "log": {"level": "info", "format": "text"},
        }
        usual_endpoint: Settings = {
            "role": "endpoint",
            "drain_timeout": 5,
            "identity": {"private_key_file": f"{self.homes['endpoint'].instance}.key"},
            "signaling": {"listen": f"{ENDPOINT_ADDRESS}:{self.signaling_port}"},
            "peers": [{"name": "laptop-17", "public_key": keys["gateway"]}],
            "policy": {
                "allowed_hosts": ["10.77.1.0/24", "fd77:1::/64", f"*.{DOMAIN}"],
                "allowed_ports": ["*"],
                "denied_ports": [25],
            },
            "workers": {"count": 2},
            "metrics": {"listen": f"127.0.0.1:{self.metrics_port}"},
            "log": {"level": "info", "format": "text"},
        }
        self.gateway_settings = merged(usual_gateway, gateway)
        self.endpoint_settings = merged(usual_endpoint, endpoint)
        self.gateway: Instance
        self.endpoint: Instance

    @property
    def proxy(self) -> tuple[str, int]:
        """Address of the SOCKS5 listener on the gateway's host."""
        return "127.0.0.1", self.socks_port

    def write(self, role: str, changes: Mapping[str, Any] | None = None) -> Path:
        """Write one side's configuration file, with changes that stay for later calls."""
        settings = self.gateway_settings if role == "gateway" else self.endpoint_settings
        settings.update(merged(copy.deepcopy(settings), changes or {}))
        home = self.homes[role]
        return home.put(f"{home.instance}.toml", toml(settings))

    def start_endpoint(self) -> Instance:
        """Start the endpoint, and wait until it is ready."""
        self.endpoint = self._spawn("endpoint")
        self.endpoint.wait_ready()
        return self.endpoint

    def start_gateway(self) -> Instance:
        """Start the gateway, and wait until it is ready: listening, with or without a link."""
        self.gateway = self._spawn("gateway")
        self.gateway.wait_ready()
        return self.gateway

    def _spawn(self, role: str) -> Instance:
        self.write(role)
        settings = self.gateway_settings if role == "gateway" else self.endpoint_settings
        instance = self.homes[role].start(settings)
        self.daemons.append(instance)
        return instance

    def start(self) -> "Tunnel":
        """Start both, and wait for the link."""
        self.endpoint = self._spawn("endpoint")
        self.gateway = self._spawn("gateway")
        self.endpoint.wait_ready()
        self.gateway.wait_ready()
        self.wait_linked()
        return self

    def linked(self) -> bool:
        """Whether the gateway says that its link is up."""
        return any(link["state"] == "up" for link in self.gateway.control("status")["links"])

    def wait_linked(self, timeout: float = 150) -> None:
        """Wait for the link."""
        wait_until(self.linked, f"a link:\n{self.gateway.tail()}", timeout=timeout, interval=0.05)

    def connect(
        self, port: int | str, host: str = TARGET_ADDRESS, timeout: float = PATIENCE
    ) -> socket.socket:
        """A connection to a target server (by name) or port through the tunnel, by PySocks."""
        import socks

        if isinstance(port, str):
            port = self.site.ports[port]
        with self.site.gateway.inside():
            proxied = socks.socksocket()
        proxied.set_proxy(socks.SOCKS5, *self.proxy, rdns=True)
        sock: socket.socket = proxied
        sock.settimeout(timeout)
        try:
            sock.connect((host, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def metrics(self, role: str = "gateway", path: str = "/metrics") -> tuple[int, str]:
        """Status and body of a scrape of one side's exporter."""
        host = self.site.hosts.gateway if role == "gateway" else self.site.hosts.endpoint

        def ask() -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", self.metrics_port, timeout=60)
            with contextlib.closing(connection):
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, response.read().decode()

        return host.call(ask)

    def metric(self, name: str, role: str = "gateway", **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        from prometheus_client.parser import text_string_to_metric_families

        _, text = self.metrics(role)
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == f"socks_tunnel_{name}"
            and all(sample.labels.get(k) == v for k, v in labels.items())
        )

    @contextlib.contextmanager
    def running(self) -> Iterator["Tunnel"]:
        """Start it, and at the end of the block print its logs and stop it."""
        try:
            self.start()
            yield self
        finally:
            print(self.logs())
            self.stop()

    def logs(self) -> str:
        """Everything both sides logged, for the report of a failed test."""
        return "\n".join(f"== {d.name} ==\n{d.tail()}" for d in self.daemons)

    def stop(self) -> None:
        """End both in order, the gateway first, and assert that each went well."""
        try:
            for daemon in reversed(self.daemons):
                daemon.stop()
        finally:
            for daemon in self.daemons:
                daemon.kill()


class MakeTunnel(Protocol):
    """Starts a tunnel of the test's own; the settings are laid over the usual configurations.

    With `own_network`, its hosts are its own too, so that the network may be broken. With
    `foreground`, both run in the foreground, for what is about a process and no unit.
    """

    def __call__(
        self,
        gateway: Mapping[str, Any] | None = None,
        endpoint: Mapping[str, Any] | None = None,
        *,
        start: bool = True,
        own_network: bool = False,
        foreground: bool = False,
    ) -> Tunnel: ...
