"""`socks-tunnel demo` and `pair`: what a newcomer does first."""

import contextlib
import hashlib
import random
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.hosts import (
    ENDPOINT_ADDRESS,
    ENDPOINT_INSIDE_ADDRESS,
    TARGET_ADDRESS,
    Host,
    why_no_namespaces,
)
from support.processes import SOCKS_TUNNEL, Daemon, Process, Targets, wait_until
from support.rawsocks import Association
from support.targets import body_hash
from support.tunnels import Site


def run_demo(listen: str, directory: Path, prefix: tuple[str, ...] = ()) -> Process:
    """A running demo."""
    return Process("demo", [SOCKS_TUNNEL, "demo", "--listen", listen], directory, prefix=prefix)


def printed(demo: Process, pattern: str) -> re.Match[str]:
    """Wait for a line on the demo's standard output."""

    def probe() -> re.Match[str] | None:
        if demo.popen.poll() is not None:
            raise AssertionError(f"demo ended with {demo.popen.returncode}:\n{demo.tail()}")
        return re.search(pattern, demo.output.read_text())

    return wait_until(probe, f"{pattern!r} printed by demo:\n{demo.tail()}")


def free_port() -> int:
    """A TCP port of loopback that nobody has, and that nobody gets who asks for just any."""
    range_of_any = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    ports = list(range(10_000, int(range_of_any[0])))
    random.shuffle(ports)
    for port in ports:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError(f"no port below {range_of_any[0]} is free")


@pytest.fixture
def lonely_host() -> Iterator[Host]:
    """A host with no address but loopback."""
    if reason := why_no_namespaces():
        pytest.skip(reason)
    host = Host("lo")
    yield host
    host.delete()


@pytest.fixture(params=["this machine", "only loopback"])
def place(request: pytest.FixtureRequest) -> Host | None:
    """Where the demo runs: here, or on a host with no address but loopback."""
    if request.param == "this machine":
        return None
    host: Host = request.getfixturevalue("lonely_host")
    return host


def test_demo_carries_tcp_and_udp_until_ctrl_c(place: Host | None, tmp_path: Path) -> None:
    prefix = tuple(place.command()) if place else ()
    port = free_port()
    targets = Targets(prefix)
    demo = run_demo(f"127.0.0.1:{port}", tmp_path, prefix)
    try:
        # The line to try is one that works as it stands, but for the URL.
        line = printed(demo, rf"curl .*127\.0\.0\.1:{port}.*").group()
        assert "--socks5" in line
        size = 3_000_000
        done = subprocess.run(
            [
                *prefix,
                *("curl", "-sS", "--socks5-hostname", f"127.0.0.1:{port}"),
                f"http://127.0.0.1:{targets.ports['http']}/bytes/{size}",
            ],
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert done.stderr == b""
        assert hashlib.sha256(done.stdout).hexdigest() == body_hash(size)

        def associated() -> Association:
            return Association(("127.0.0.1", port))

        with place.call(associated) if place else associated() as association:
            answer = association.ask("127.0.0.1", targets.ports["udp_echo"], b"hello")
            assert answer == ("127.0.0.1", targets.ports["udp_echo"], b"hello")

        # The command for the status is one that works as it stands.
        command = shlex.split(printed(demo, r"status +(\S.* --socket .*)").group(1))
        shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert "role: gateway" in shown.stdout, shown.stderr

        demo.signal(signal.SIGINT)
        assert demo.wait() == 0
        wait_until(lambda: not demo.children(), "all its processes gone")
        demo.assert_clean()
    finally:
        demo.kill()
        targets.stop()


def test_demo_beside_an_occupied_port(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        address = f"127.0.0.1:{occupied.getsockname()[1]}"
        demo = run_demo(address, tmp_path)
        try:
            status = demo.wait()
            assert status not in (0, 70)
            assert address in demo.log_text()
            assert "--listen" in demo.log_text()
            demo.assert_clean()
        finally:
            demo.kill()


def test_demo_with_a_policy_file(tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"allowed_hosts": "127.0.0.1", "allowed_ports": "1-1023"}')
    port = free_port()
    demo = Process(
        "demo",
        [SOCKS_TUNNEL, "demo", "--listen", f"127.0.0.1:{port}", "--policy", str(policy)],
        tmp_path,
    )
    try:
        printed(demo, "curl ")
        done = subprocess.run(
            ["curl", "-sS", "--socks5", f"127.0.0.1:{port}", f"http://127.0.0.1:{port}/"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 97
        assert "(2)" in done.stderr
        demo.signal(signal.SIGTERM)
        assert demo.wait() == 0
        demo.assert_clean()
    finally:
        demo.kill()


def test_pair_run_curl_on_two_hosts(site: Site, tmp_path: Path) -> None:
    """The example of the README: `pair` writes both sides, `run` starts them, curl goes through."""
    url = f"http://{ENDPOINT_ADDRESS}:8700/"
    done = subprocess.run(
        [
            *(SOCKS_TUNNEL, "pair", "--gateway", str(tmp_path / "here")),
            *("--endpoint", str(tmp_path / "there"), "--url", url),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for daemon_config in ("here/gateway.toml", "there/endpoint.toml"):
        check = subprocess.run(
            [SOCKS_TUNNEL, "check-config", str(tmp_path / daemon_config)],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert check.returncode == 0, check.stderr
    config = tmp_path / "there" / "endpoint.toml"
    text = config.read_text()
    config.write_text(re.sub(r"allowed_ports = .*", 'allowed_ports = ["*"]', text))
    endpoint = Daemon("endpoint", tmp_path / "there", prefix=site.hosts.endpoint.command())
    gateway = Daemon("gateway", tmp_path / "here", prefix=site.hosts.gateway.command())
    try:
        endpoint.wait_notified("READY=1")
        gateway.wait_notified("READY=1")
        wait_until(
            lambda: any(link["state"] == "up" for link in gateway.control("status")["links"]),
            "the link, for which a request waits ten seconds",
            timeout=90,
        )
        done = site.gateway.run(
            *("curl", "-sS", "--socks5", "127.0.0.1:1080"),
            f"http://{TARGET_ADDRESS}:{site.ports['http']}/whoami",
        )
        assert ENDPOINT_INSIDE_ADDRESS in done.stdout
        gateway.stop()
        endpoint.stop()
    finally:
        gateway.kill()
        endpoint.kill()
