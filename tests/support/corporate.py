"""The office of the protocol tests: real servers on the target's host, and one tunnel to reach them.

Every forward is there from the start, each on the port that its protocol has, so that all tests share
one tunnel. On the gateway's host this is 127.0.0.1; its servers are on the target's host, which the
gateway's host cannot reach.
"""

import contextlib
import datetime as dt
import hashlib
import ipaddress
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from support.hosts import TARGET_ADDRESS, Host
from support.processes import PATIENCE, wait_until
from support.tunnels import Site, Tunnel, merged

OTHER_ADDRESS = "10.77.1.3"
"""A second address of the target's host, for servers that need one of their own."""

WITHOUT_SENDMMSG = Path(__file__).with_name("without_sendmmsg.py")

IDLE_TCP = 15
"""Seconds after which the tunnel closes a silent TCP flow: what minutes are in an office."""

SBIN = ("/usr/sbin", "/sbin")

FORWARDS = [
    ("udp", 53, OTHER_ADDRESS, 53),
    ("tcp", 53, OTHER_ADDRESS, 53),
    ("udp", 67, TARGET_ADDRESS, 67),
    ("udp", 88, TARGET_ADDRESS, 88),
    ("tcp", 88, TARGET_ADDRESS, 88),
    ("udp", 123, TARGET_ADDRESS, 123),
    ("udp", 161, TARGET_ADDRESS, 161),
    ("tcp", 389, TARGET_ADDRESS, 389),
    ("udp", 389, TARGET_ADDRESS, 389),
    ("udp", 443, TARGET_ADDRESS, 8443),
    ("udp", 514, TARGET_ADDRESS, 514),
    ("udp", 3478, TARGET_ADDRESS, 3478),
    ("udp", 5060, TARGET_ADDRESS, 5060),
    ("udp", 5061, TARGET_ADDRESS, 5061),
    ("tcp", 5432, TARGET_ADDRESS, 5432),
    ("tcp", 6379, TARGET_ADDRESS, 6379),
    ("udp", 6000, TARGET_ADDRESS, 6000),
]
"""Protocol, port on 127.0.0.1 of the gateway's host, the target's address and port."""


def need(command: str) -> str:
    """The path of a program; skips the test where it is missing."""
    path = shutil.which(command, path=os.pathsep.join((os.environ["PATH"], *SBIN)))
    if path is None:
        pytest.skip(f"the program {command} is missing (tests/support/packages installs it)")
    return path


def is_bound(host: Host, protocol: str, port: int) -> bool:
    """Whether a TCP listener or a UDP socket of the host has this port, on whatever address."""

    def tables() -> list[str]:
        files = [Path(f"/proc/thread-self/net/{protocol}{suffix}") for suffix in ("", "6")]
        return [line for file in files for line in file.read_text().splitlines()[1:]]

    for line in host.call(tables):
        _, local, remote, state, *_ = line.split()
        # State 0A is LISTEN; an unconnected UDP socket has no remote port.
        waiting = state == "0A" if protocol == "tcp" else remote.endswith(":0000")
        if waiting and int(local.rpartition(":")[2], 16) == port:
            return True
    return False


class Server:
    """A server program in the foreground on one of the hosts, with all it writes in one file."""

    def __init__(
        self,
        name: str,
        directory: Path,
        host: Host,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None,
        user: str | None,
    ) -> None:
        self.name = name
        self.host = host
        self.log = directory / f"{name}.log"
        with self.log.open("ab") as log:
            self.popen = host.start(
                *command if user is None else (*as_user(user), *command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env={**os.environ, **(environment or {})},
                process_group=0,  # a Ctrl-C ends pytest, which ends this in order
            )

    def wait_bound(self, protocol: str, port: int, timeout: float = PATIENCE) -> None:
        """Wait until it serves a port; fails at once when it ends."""

        def probe() -> bool:
            status = self.popen.poll()
            assert status is None, f"{self.name}: status {status}\n{self.tail()}"
            return is_bound(self.host, protocol, port)

        wait_until(probe, f"{self.name} at {protocol} port {port}:\n{self.tail()}", timeout=timeout)

    def wait_log(self, text: str, timeout: float = PATIENCE) -> None:
        """Wait until it has written a text; fails at once when it ends."""

        def probe() -> bool:
            status = self.popen.poll()
            assert status is None, f"{self.name}: status {status}\n{self.tail()}"
            return text in self.log.read_text(errors="replace")

        wait_until(probe, f"{text!r} from {self.name}:\n{self.tail()}", timeout=timeout)

    def tail(self, lines: int = 40) -> str:
        """The end of what it wrote."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, in order where it does so in time."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
            try:
                self.popen.wait(15)
            except subprocess.TimeoutExpired:
                # Its group: it may have children that serve on.
                os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


def as_user(name: str) -> tuple[str, ...]:
    """The beginning of a command line that runs a program as that user."""
    user = pwd.getpwnam(name)
    return "setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"


class Corporate(Tunnel):
    """A tunnel into the office: `client` is the gateway's host, `office` the host of its servers.

    Its forwards are on that loopback address, and each of its sides has that many workers.
    """

    def __init__(
        self,
        site: Site,
        endpoint: Mapping[str, Any] | None = None,
        *,
        forwards: bool = True,
        loopback: str = "127.0.0.1",
        workers: int = 2,
    ) -> None:
        tables = [
            {"listen": f"{protocol}://{loopback}:{port}", "target": f"{host}:{target_port}"}
            for protocol, port, host, target_port in (FORWARDS if forwards else ())
        ]
        count = {"workers": {"count": workers}}
        super().__init__(
            site,
            {"forwards": tables, "socks": {"idle_tcp": IDLE_TCP}, **count},
            merged({"policy": {"denied_ports": []}, **count}, endpoint or {}),
        )
        self.client = site.hosts.gateway
        self.office = site.hosts.target
        self.servers: list[Server] = []

    @property
    def socks(self) -> str:
        """ADDRESS:PORT of the SOCKS5 listener on the client's host."""
        return f"127.0.0.1:{self.socks_port}"

    def folder(self, name: str, owner: str | None = None) -> Path:
        """A new directory, readable by every user; writable for `owner`."""
        for parent in (self.directory, *self.directory.parents[:1]):
            parent.chmod(0o755)
        path = self.directory / name
        path.mkdir()
        path.chmod(0o755)
        if owner is not None:
            shutil.chown(path, owner)
        return path

    @contextlib.contextmanager
    def serve(
        self,
        *command: str | Path,
        directory: Path,
        tcp: Sequence[int] = (),
        udp: Sequence[int] = (),
        host: Host | None = None,
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
        ended_by: signal.Signals = signal.SIGTERM,
    ) -> Iterator[Server]:
        """Run a server in the office (or on `host`) for this block, entered once its ports are bound."""
        name = Path(command[0]).name
        host = host or self.office
        server = Server(name, directory, host, command, environment, user)
        self.servers.append(server)
        try:
            for port in tcp:
                server.wait_bound("tcp", port)
            for port in udp:
                server.wait_bound("udp", port)
            yield server
        finally:
            server.stop(ended_by)
            self.servers.remove(server)

    def run(
        self, *arguments: str | Path, check: bool = True, timeout: float = 150, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a client program on the client's host, its output captured as text."""
        return self.client.run(*arguments, check=check, timeout=timeout, **options)

    def socksify(self, *, sendmmsg: bool = True) -> list[str | Path]:
        """The beginning of a command line that runs a program under dante's socksify.

        Without `sendmmsg` the program finds none; see without_sendmmsg.py.
        """
        program = need("socksify")
        config = self.directory / "socks.conf"
        config.write_text(
            "resolveprotocol: fake\n"
            "route {\n  from: 0.0.0.0/0 to: 127.0.0.0/8 via: direct\n}\n"
            f"route {{\n  from: 0.0.0.0/0 to: 0.0.0.0/0 via: 127.0.0.1 port = {self.socks_port}\n"
            "  protocol: tcp udp\n  proxyprotocol: socks_v5\n  method: none\n}\n"
        )
        start: list[str | Path] = [] if sendmmsg else [sys.executable, WITHOUT_SENDMMSG]
        return [*start, "env", f"SOCKS_CONF={config}", program]

    def proxychains(self) -> list[str | Path]:
        """The beginning of a command line that runs a program under proxychains4."""
        program = need("proxychains4")
        config = self.directory / "proxychains.conf"
        config.write_text(
            "strict_chain\nproxy_dns\nremote_dns_subnet 224\ntcp_read_time_out 15000\n"
            f"tcp_connect_time_out 8000\n[ProxyList]\nsocks5 127.0.0.1 {self.socks_port}\n"
        )
        return [program, "-q", "-f", config]

    @contextlib.contextmanager
    def loss(self, percent: int = 1) -> Iterator[None]:
        """Between gateway and endpoint, drop packets at random, in each direction."""
        chance = f"numgen random mod 100 < {percent} drop"
        self.site.hosts.endpoint.run(
            "nft",
            "add table inet loss; "
            "add chain inet loss in { type filter hook input priority 0; }; "
            f"add rule inet loss in iifname ep0 {chance}; "
            "add chain inet loss out { type filter hook output priority 0; }; "
            f"add rule inet loss out oifname ep0 {chance}",
        )
        try:
            yield
        finally:
            self.site.hosts.endpoint.run("nft", "delete table inet loss")

    def wait_metric(self, least: float, name: str, role: str = "gateway", **labels: str) -> None:
        """Wait until a counter is at least that: workers write theirs once a second."""
        wait_until(
            lambda: self.metric(name, role, **labels) >= least,
            f"{name} {labels} of at least {least}",
            interval=0.1,
        )

    def udp_dropped(self, reason: str, role: str) -> float:
        """Datagrams that a side dropped so far for that reason."""
        return self.metric("udp_dropped_total", role, reason=reason)

    def logs(self) -> str:
        """What both sides and the servers that run logged, for the report of a failed test."""
        return "\n".join(
            [super().logs(), *(f"== {server.name} ==\n{server.tail()}" for server in self.servers)]
        )


@contextlib.contextmanager
def corporate_tunnel(
    site: Site, endpoint: Mapping[str, Any] | None = None, **options: Any
) -> Iterator[Corporate]:
    """Start a tunnel into the office; at the end it is stopped and must have run cleanly."""
    corporate = Corporate(site, endpoint, **options)
    try:
        corporate.start()
        yield corporate
    except BaseException:
        for daemon in corporate.daemons:
            daemon.kill()
        raise
    corporate.stop()


@contextlib.contextmanager
def ssh_server(corporate: Corporate, directory: Path) -> Iterator[list[str | Path]]:
    """An SSH server in the office, port 22; options for its clients, who come through the tunnel."""
    program = need("sshd")
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True
        )
    shutil.copy(directory / "user.pub", directory / "authorized_keys")
    (directory / "sshd_config").write_text(
        f"ListenAddress {TARGET_ADDRESS}:22\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"PermitRootLogin prohibit-password\nHostKey {directory}/host\n"
        f"AuthorizedKeysFile {directory}/authorized_keys\n"
        "Subsystem sftp internal-sftp\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    with corporate.serve(
        program, "-D", "-e", "-f", directory / "sshd_config", directory=directory, tcp=[22]
    ):
        proxy = f"{need('nc.openbsd')} -X 5 -x {corporate.socks} %h %p"
        yield [
            *("-F", "/dev/null", "-i", directory / "user", "-o", "BatchMode=yes"),
            *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
            *("-o", "LogLevel=ERROR", "-o", f"ProxyCommand={proxy}"),
        ]


def write_certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A certificate that signs itself for a name (and 127.0.0.1), and its key: PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    local = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), local]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "certificate.pem", directory / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    paths[1].touch(0o600)
    paths[1].write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    )
    return paths


def write_random(path: Path, size: int) -> str:
    """A file of random bytes; its SHA-256 in hex."""
    block = os.urandom(1 << 20)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for number in range(-(-size // len(block))):
            # Random bytes are slow to make: the blocks differ in their beginning only.
            piece = (number.to_bytes(8) + block[8:])[: size - number * len(block)]
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
