"""Clients that nobody here wrote, through the whole tunnel."""

import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.corporate import need
from support.hosts import (
    DOMAIN,
    ENDPOINT_INSIDE_ADDRESS,
    ENDPOINT_INSIDE_ADDRESS6,
    TARGET_ADDRESS,
    TARGET_ADDRESS6,
)
from support.processes import SOCKS_TUNNEL, wait_until
from support.tunnels import Site, Tunnel

SUPPORT = Path(__file__).parent.parent / "support"
NPM = SUPPORT / "npm"


# --- curl -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--socks5", "--socks5-hostname"])
@pytest.mark.parametrize(
    ("host", "seen_as"),
    [
        (TARGET_ADDRESS, ENDPOINT_INSIDE_ADDRESS),
        (f"[{TARGET_ADDRESS6}]", ENDPOINT_INSIDE_ADDRESS6),
    ],
)
def test_curl_by_address(tunnel: Tunnel, option: str, host: str, seen_as: str) -> None:
    url = f"http://{host}:{tunnel.site.ports['http']}/whoami"
    done = tunnel.site.gateway.run(
        need("curl"), "-gsS", option, f"127.0.0.1:{tunnel.socks_port}", url
    )
    assert f'"address": "{seen_as}"' in done.stdout


@pytest.mark.parametrize(
    ("name", "seen_as"),
    [
        ("v4", ENDPOINT_INSIDE_ADDRESS),
        ("V4", ENDPOINT_INSIDE_ADDRESS),
        ("v6", ENDPOINT_INSIDE_ADDRESS6),
        # Of its two addresses nobody has the first.
        ("late", ENDPOINT_INSIDE_ADDRESS),
    ],
)
def test_curl_by_name_that_only_the_endpoint_resolves(
    tunnel: Tunnel, name: str, seen_as: str
) -> None:
    url = f"http://{name}.{DOMAIN}:{tunnel.site.ports['http']}/whoami"
    done = tunnel.site.gateway.run(
        need("curl"), "-sS", "--socks5-hostname", f"127.0.0.1:{tunnel.socks_port}", url
    )
    assert f'"address": "{seen_as}"' in done.stdout


def test_curl_over_the_listener_on_ipv6(tunnel: Tunnel) -> None:
    url = f"http://www.{DOMAIN}:{tunnel.site.ports['http']}/whoami"
    done = tunnel.site.gateway.run(
        need("curl"), "-gsS", "--socks5-hostname", f"[::1]:{tunnel.socks_port}", url
    )
    assert '"address"' in done.stdout


@pytest.mark.parametrize(
    ("destination", "code"),
    [
        (f"{TARGET_ADDRESS}:9", 5),  # nobody listens on the discard port
        (f"{TARGET_ADDRESS}:25", 2),  # denied_ports
        ("192.0.2.1:80", 2),  # not in allowed_hosts
        (f"loop.{DOMAIN}:80", 2),  # an allowed name that resolves to loopback
        (f"nobody.{DOMAIN}:80", 4),
    ],
)
def test_curl_is_told_why(tunnel: Tunnel, destination: str, code: int) -> None:
    done = tunnel.site.gateway.run(
        *(need("curl"), "-sS", "--socks5-hostname", f"127.0.0.1:{tunnel.socks_port}"),
        f"http://{destination}/",
        check=False,
    )
    assert done.returncode == 97, done  # CURLE_PROXY: the proxy's handshake failed
    assert f"({code})" in done.stderr


# --- SSH ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ssh_server(site: Site) -> Iterator[tuple[list[str], Path]]:
    """An SSH server on the target's host, port 22; options and key file for its client."""
    sshd = need("sshd")
    need("ssh-keygen")
    directory = Path(tempfile.mkdtemp(prefix="ssh-", dir=site.directory))
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True
        )
    shutil.copy(directory / "user.pub", directory / "authorized_keys")
    (directory / "sshd_config").write_text(
        "Port 22\nPidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n"
        f"HostKey {directory}/host\nAuthorizedKeysFile {directory}/authorized_keys\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    with (directory / "sshd.log").open("wb") as log:
        server = site.hosts.target.start(
            sshd, "-D", "-e", "-f", directory / "sshd_config", stderr=log
        )
    try:

        def listening() -> bool:
            with socket.socket() as sock:
                return sock.connect_ex(("127.0.0.1", 22)) == 0

        wait_until(
            lambda: server.poll() is None and site.hosts.target.call(listening),
            "sshd on port 22",
        )
        yield (
            [
                *("-F", "/dev/null", "-i", str(directory / "user"), "-o", "BatchMode=yes"),
                *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
                *("-o", "LogLevel=ERROR"),
            ],
            directory,
        )
    finally:
        server.terminate()
        server.wait()


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("nc.openbsd", "-X 5 -x 127.0.0.1:{port} %h %p"),
        ("ncat", "--proxy-type socks5 --proxy 127.0.0.1:{port} %h %p"),
        (SOCKS_TUNNEL, "nc --proxy 127.0.0.1:{port} %h %p"),
    ],
)
def test_ssh_through_a_proxy_command(
    tunnel: Tunnel, ssh_server: tuple[list[str], Path], program: str, arguments: str
) -> None:
    options, _ = ssh_server
    payload = os.urandom(4 << 20)
    command = f"{need(program)} {arguments.format(port=tunnel.socks_port)}"
    done = subprocess.run(
        tunnel.site.gateway.command(
            need("ssh"),
            *options,
            *("-o", f"ProxyCommand={command}"),
            f"root@{TARGET_ADDRESS}",
            "tee /dev/stderr | sha256sum",
        ),
        input=payload,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.decode().split()[:1] == [hashlib.sha256(payload).hexdigest()], done.stderr[
        :500
    ]
    assert done.stderr == payload


# --- Python clients -------------------------------------------------------------------------------


@pytest.mark.parametrize("rdns", [True, False])
def test_pysocks_connect(tunnel: Tunnel, rdns: bool) -> None:
    import socks

    with tunnel.site.gateway.inside():
        sock = socks.socksocket()
    with sock:
        sock.set_proxy(socks.SOCKS5, *tunnel.proxy, rdns=rdns)
        sock.settimeout(30)
        sock.connect((TARGET_ADDRESS, tunnel.site.ports["echo"]))
        assert sock.get_proxy_sockname()[0] == ENDPOINT_INSIDE_ADDRESS
        sock.sendall(b"there and back")
        sock.shutdown(socket.SHUT_WR)
        assert sock.makefile("rb").read() == b"there and back"


def test_pysocks_udp(tunnel: Tunnel) -> None:
    import socks

    # PySocks opens the control connection and names its own socket in the request: the domain "0".
    with (
        tunnel.site.gateway.inside(),
        socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.set_proxy(socks.SOCKS5, *tunnel.proxy)
        sock.settimeout(10)

        def answer() -> tuple[bytes, tuple[str, int]] | None:
            """What comes back, if anything does: a datagram may be lost."""
            sock.sendto(b"datagram", (TARGET_ADDRESS, tunnel.site.ports["udp_echo"]))
            try:
                return sock.recvfrom(2048)  # type: ignore[no-any-return] # PySocks has no types
            except TimeoutError:
                return None

        data, sender = wait_until(answer, "an answer")
        assert data == b"datagram"
        assert sender == (TARGET_ADDRESS, tunnel.site.ports["udp_echo"])


def test_python_socks(tunnel: Tunnel) -> None:
    from python_socks.sync import Proxy

    proxy = Proxy.from_url(f"socks5://127.0.0.1:{tunnel.socks_port}", rdns=True)
    with tunnel.site.gateway.inside():
        sock = proxy.connect(f"www.{DOMAIN}", tunnel.site.ports["echo"], timeout=30)
    with sock:
        sock.sendall(b"there and back")
        sock.shutdown(socket.SHUT_WR)
        assert sock.makefile("rb").read() == b"there and back"


def test_python_socks_is_told_why(tunnel: Tunnel) -> None:
    from python_socks import ProxyError
    from python_socks.sync import Proxy

    proxy = Proxy.from_url(f"socks5://127.0.0.1:{tunnel.socks_port}", rdns=True)
    with tunnel.site.gateway.inside(), pytest.raises(ProxyError) as raised:
        proxy.connect(TARGET_ADDRESS, 25, timeout=30)
    assert raised.value.error_code == 2


# --- the npm package socks ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "server", "expected"),
    [("connect", "echo", "hello"), ("associate", "udp_echo", "{address} {port} hello")],
)
def test_npm_socks(tunnel: Tunnel, command: str, server: str, expected: str) -> None:
    node = need("node")
    if not (NPM / "node_modules" / "socks").is_dir():
        pytest.skip("the npm package socks is not installed (make test installs it)")
    port = tunnel.site.ports[server]
    done = tunnel.site.gateway.run(
        *(node, NPM / "client.js", command, str(tunnel.socks_port)),
        *(TARGET_ADDRESS, str(port), "hello"),
    )
    assert done.stdout.strip() == expected.format(address=TARGET_ADDRESS, port=port)


# --- programs that know no proxy ------------------------------------------------------------------


@pytest.fixture
def proxychains(tunnel: Tunnel, tmp_path: Path) -> list[str | Path]:
    """The beginning of a command line that runs a program under proxychains4."""
    program = need("proxychains4")
    config = tmp_path / "proxychains.conf"
    config.write_text(
        "strict_chain\nproxy_dns\nremote_dns_subnet 224\ntcp_read_time_out 15000\n"
        f"tcp_connect_time_out 8000\n[ProxyList]\nsocks5 127.0.0.1 {tunnel.socks_port}\n"
    )
    return [program, "-q", "-f", config]


@pytest.mark.parametrize("host", [TARGET_ADDRESS, f"v4.{DOMAIN}"])
def test_proxychains4_with_curl(tunnel: Tunnel, proxychains: list[str | Path], host: str) -> None:
    url = f"http://{host}:{tunnel.site.ports['http']}/whoami"
    done = tunnel.site.gateway.run(*proxychains, need("curl"), "-sS", "--noproxy", "*", url)
    assert f'"address": "{ENDPOINT_INSIDE_ADDRESS}"' in done.stdout


def test_proxychains4_with_dig_over_tcp(tunnel: Tunnel, proxychains: list[str | Path]) -> None:
    done = tunnel.site.gateway.run(
        *(*proxychains, need("dig"), f"@{TARGET_ADDRESS}"),
        *(f"text.{DOMAIN}", "TXT", "+tcp", "+short"),
    )
    assert done.stdout.split() == [f'"{letter * 200}"' for letter in "xyz"]


@pytest.fixture
def socksify(tunnel: Tunnel, tmp_path: Path) -> list[str | Path]:
    """The beginning of a command line that runs a program under dante's socksify."""
    program = need("socksify")
    config = tmp_path / "socks.conf"
    config.write_text(
        "resolveprotocol: fake\n"
        "route {\n  from: 0.0.0.0/0 to: 127.0.0.0/8 via: direct\n}\n"
        f"route {{\n  from: 0.0.0.0/0 to: 0.0.0.0/0 via: 127.0.0.1 port = {tunnel.socks_port}\n"
        "  protocol: tcp udp\n  proxyprotocol: socks_v5\n  method: none\n}\n"
    )
    return ["env", f"SOCKS_CONF={config}", program]


def test_socksify_with_dig_over_udp(tunnel: Tunnel, socksify: list[str | Path]) -> None:
    before = tunnel.metric("flows_total", kind="udp")
    done = tunnel.site.gateway.run(
        *(sys.executable, SUPPORT / "without_sendmmsg.py", *socksify, need("dig")),
        *(f"@{TARGET_ADDRESS}", f"v4.{DOMAIN}", "A", "+notcp", "+short"),
    )
    assert done.stdout.strip() == TARGET_ADDRESS
    wait_until(lambda: tunnel.metric("flows_total", kind="udp") > before, "an association counted")


def test_socksify_with_a_program_over_tcp(tunnel: Tunnel, socksify: list[str | Path]) -> None:
    url = f"http://{TARGET_ADDRESS}:{tunnel.site.ports['http']}/whoami"
    # Python's own sockets, by name of the address only: nothing here knows of a proxy.
    program = f"import urllib.request; print(urllib.request.urlopen({url!r}).read().decode())"
    done = tunnel.site.gateway.run(*socksify, sys.executable, "-c", program)
    assert f'"address": "{ENDPOINT_INSIDE_ADDRESS}"' in done.stdout
