"""What an operator sees: status, metrics, logs, audit records."""

import json
import re
import socket
import subprocess
from typing import Any

import pytest

from socks_tunnel.ops.audit_reading import parse
from support.hosts import ENDPOINT_ADDRESS, TARGET_ADDRESS
from support.processes import SOCKS_TUNNEL, Daemon, wait_until
from support.rawsocks import Association, request
from support.terminal import Terminal
from support.tunnels import MakeTunnel, Site, Tunnel


def command(tunnel: Tunnel, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command about the tunnel's gateway."""
    name, *rest = arguments
    return tunnel.site.gateway.run(
        *(SOCKS_TUNNEL, name, "--socket", tunnel.gateway.runtime_directory / "control.sock"),
        *rest,
    )


def assert_settles(tunnel: Tunnel, name: str, role: str, value: float, **labels: str) -> None:
    """Assert that a metric reaches a value: workers write theirs once a second."""
    wait_until(
        lambda: tunnel.metric(name, role, **labels) == value,
        f"{name} {labels} of the {role} at {value}, not {tunnel.metric(name, role, **labels)}",
    )


def test_status(tunnel: Tunnel) -> None:
    def one_link_up() -> dict[str, Any] | None:
        """The status with one link: two are there while one takes over from another."""
        found: dict[str, Any] = json.loads(command(tunnel, "status", "--json").stdout)
        return found if [link["state"] for link in found["links"]] == ["up"] else None

    status = wait_until(one_link_up, "one link that is up")
    assert status["role"] == "gateway"
    assert len(status["workers"]) == 2
    assert status["listen"] == [f"{host}:{tunnel.socks_port}" for host in ("127.0.0.1", "[::1]")]
    assert re.search(r"\boffice\b.*\bup\b", command(tunnel, "status").stdout)
    endpoint = tunnel.endpoint.control("status")
    assert endpoint["listen"] == [f"{ENDPOINT_ADDRESS}:{tunnel.signaling_port}"]


def test_connections(tunnel: Tunnel) -> None:
    with tunnel.connect("echo") as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        client = f"127.0.0.1:{sock.getsockname()[1]}"

        def rows() -> list[dict[str, Any]]:
            return [r for r in tunnel.gateway.control("connections") if r["client"] == client]

        (row,) = wait_until(rows, "the flow")
        assert row["destination"] == f"{TARGET_ADDRESS}:{tunnel.site.ports['echo']}"
    wait_until(
        lambda: client not in json.dumps(tunnel.gateway.control("connections")), "no such flow"
    )


def test_top(tunnel: Tunnel) -> None:
    control = tunnel.gateway.runtime_directory / "control.sock"
    # The journal lags behind: what earlier tests asked for must be in it before it is counted.
    before = len(tunnel.gateway.log_text())
    tunnel.gateway.control("status")
    log = tunnel.gateway.wait_log(r"control request 'status' of .*\n", after=before).end()
    with (
        tunnel.connect("echo") as sock,
        Terminal(tunnel.site.gateway.command(SOCKS_TUNNEL, "top", "--socket", control)) as terminal,
    ):
        terminal.shows(r"^gateway \S+  ready  up")
        terminal.shows(r"^office +up +\d+\.\d")

        def is_fast() -> bool:
            sock.sendall(bytes(20_000))
            received = 0
            while received < 20_000:
                received += len(sock.recv(65_536))
            terminal._read(0.05)
            where = f"{TARGET_ADDRESS}:{tunnel.site.ports['echo']}"
            # At 80 columns it may be cut off.
            line = next((x for x in terminal.screen.lines if where[:14] in x), "")
            return bool(re.search(r" \d+(\.\d+)?[kM] +\d+(\.\d+)?[kM] +\d+(\.\d+)?[kM]$", line))

        wait_until(is_fast, "rates of a flow")
        terminal.type("q")
        assert terminal.ended() == 0
        terminal.assert_restored()
    tunnel.gateway.wait_log("control request 'connections'", after=log)
    fresh = tunnel.gateway.log_text()[log:]
    assert fresh.count("control request 'connections'") == 1, "watching does not fill the log"


def test_control_socket_is_closed_to_others(tunnel: Tunnel) -> None:
    path = tunnel.gateway.runtime_directory / "control.sock"
    assert path.stat().st_mode & 0o777 == 0o660
    log = len(tunnel.gateway.log_text())
    tunnel.gateway.control("status")
    tunnel.gateway.wait_log(r"control request 'status' of process \d+ \(uid 0, gid 0\)", after=log)


def test_metrics(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel()
    payload = bytes(100_000)
    with tunnel.connect("echo") as sock:
        sock.sendall(payload)
        received = b""
        while len(received) < len(payload):
            received += sock.recv(65_536)
        wait_until(lambda: tunnel.metric("flows_active", kind="tcp") == 1, "the flow counted")
    for role in ("gateway", "endpoint"):
        for direction in ("up", "down"):
            labels = {"direction": direction, "kind": "tcp"}
            # Neither a byte less nor, afterwards, one more.
            assert_settles(tunnel, "bytes_total", role, len(payload), **labels)
        assert_settles(tunnel, "flows_active", role, 0, kind="tcp")
        assert_settles(tunnel, "flows_total", role, 1, kind="tcp")
    names = {
        "up", "build_info", "links", "link_rtt_seconds_bucket", "flows_active", "flows_total",
        "requests_total", "bytes_total", "connect_seconds_bucket", "worker_restarts_total",
        "buffered_bytes", "workers",
    }  # fmt: skip

    def missing() -> set[str]:
        _, text = tunnel.metrics()
        return {n for n in names if not re.search(rf"^socks_tunnel_{n}[{{ ]", text, re.MULTILINE)}

    wait_until(lambda: not missing(), f"metrics that are missing: {missing()}")
    assert_settles(tunnel, "up", "gateway", 1)
    assert_settles(tunnel, "links", "gateway", 1, state="up")
    wait_until(lambda: tunnel.metric("link_rtt_seconds_count") >= 1, "a round trip measured")
    # No destination or user in any label, and a peer only beside a route of the configuration.
    status, text = tunnel.metrics()
    assert status == 200
    for forbidden in (TARGET_ADDRESS, str(tunnel.site.ports["echo"]), "laptop-17"):
        assert f'"{forbidden}' not in text
    naming = [line for line in text.splitlines() if '"office' in line]
    assert not [line for line in naming if 'peer="office",route="' not in line]


def test_health(tunnel: Tunnel) -> None:
    # The supervisor tells the exporter once a second how it is.
    for path in ("/healthz", "/readyz"):
        wait_until(lambda: tunnel.metrics(path=path)[0] == 200, f"{path} says 200")  # noqa: B023
    assert tunnel.metrics(path="/elsewhere")[0] == 404


def test_policy_decisions_are_counted_and_audited(tunnel: Tunnel) -> None:
    port = tunnel.site.ports["echo"]
    allowed = tunnel.metric("policy_decisions_total", "endpoint", verdict="allowed")
    denied = tunnel.metric("policy_decisions_total", "endpoint", verdict="denied")
    log = len(tunnel.endpoint.log_text())
    with tunnel.connect("echo") as sock:
        sock.sendall(b"12345")
        assert sock.recv(5) == b"12345"
    with tunnel.site.gateway.inside():
        request(tunnel.proxy, TARGET_ADDRESS, 25)[0].close()
        with Association(tunnel.proxy) as association:
            udp = tunnel.site.ports["udp_echo"]
            assert association.ask(TARGET_ADDRESS, udp, b"123")[2] == b"123"
    wait_until(
        lambda: (
            tunnel.metric("policy_decisions_total", "endpoint", verdict="allowed") >= allowed + 2
            and tunnel.metric("policy_decisions_total", "endpoint", verdict="denied") > denied
        ),
        "the decisions counted",
    )
    rules: list[tuple[str, dict[str, Any]]] = [
        ("10.77.1.0", {"destination": f"{TARGET_ADDRESS}:{port}", "command": "connect"}),
        ("25", {"destination": f"{TARGET_ADDRESS}:25", "verdict": "denied"}),
        ("10.77.1.0", {"destination": f"{TARGET_ADDRESS}:{udp}", "command": "udp-associate"}),
    ]

    def tcp_ended(record: dict[str, Any]) -> bool:
        where = {"destination": f"{TARGET_ADDRESS}:{port}", "command": "connect"}
        return (where | {"message": "flow ended", "up": 5, "down": 5}).items() <= record.items()

    def udp_ended(record: dict[str, Any]) -> bool:
        """Of three bytes each way at least: a datagram that was late has been sent again."""
        fields = {"message": "flow ended", "command": "udp-associate"}
        return fields.items() <= record.items() and min(record["up"], record["down"]) >= 3

    def are_there() -> bool:
        lines = tunnel.endpoint.log_text()[log:].splitlines()
        records = [record for line in lines if (record := parse(line)) is not None]
        usual = {"peer": "laptop-17", "verdict": "allowed", "message": "policy decision"}
        return all(
            any((usual | fields).items() <= r.items() and rule in r["rule"] for r in records)
            for rule, fields in rules
        ) and all(any(ended(record) for record in records) for ended in (tcp_ended, udp_ended))

    wait_until(are_there, "the audit records")


def test_killed_workers_leave_neither_gauges_nor_files(make_tunnel: MakeTunnel) -> None:
    """Counters never fall, live gauges go with their worker, files stay as many as they were."""
    tunnel = make_tunnel()
    directory = tunnel.gateway.runtime_directory / "metrics"
    held = [tunnel.connect("echo") for _ in range(8)]
    for sock in held:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
    total = 8
    assert_settles(tunnel, "flows_total", "gateway", total, kind="tcp")
    assert_settles(tunnel, "flows_active", "gateway", total, kind="tcp")
    # Each process has its files once it has said how long it has run.
    wait_until(
        lambda: all(
            tunnel.metric("process_cpu_seconds_total", process=process)
            for process in ("supervisor", "nursery", "exporter", "worker-0", "worker-1")
        ),
        "the files of all processes",
    )
    files = len(list(directory.glob("*.db")))
    victims = tunnel.gateway.workers()
    for victim in victims:
        subprocess.run(["kill", "-9", str(victim)], check=True)
    wait_until(
        lambda: (
            len(tunnel.gateway.workers()) == 2
            and not set(tunnel.gateway.workers()) & set(victims)
            and tunnel.metric("workers") == 2
        ),
        "two new workers",
    )
    assert_settles(tunnel, "flows_active", "gateway", 0, kind="tcp")
    assert_settles(tunnel, "worker_restarts_total", "gateway", 2)
    assert tunnel.metric("flows_total", kind="tcp") == total
    with tunnel.connect("echo") as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        assert_settles(tunnel, "flows_total", "gateway", total + 1, kind="tcp")
    wait_until(lambda: len(list(directory.glob("*.db"))) <= files, "no more files than before")
    for sock in held:
        sock.close()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_nothing_secret_in_any_log(make_tunnel: MakeTunnel, site: Site, log_format: str) -> None:
    from socks_tunnel.config.users import hash_password

    log = {"level": "debug", "format": log_format}
    tunnel = make_tunnel(
        gateway={"log": log, "socks": {"users_file": "users"}}, endpoint={"log": log}, start=False
    )
    tunnel.homes["gateway"].put("users", f"ana:{hash_password('hunter2-in-clear')}\n")
    tunnel.start()
    url = f"http://{TARGET_ADDRESS}:{site.ports['http']}/whoami?secret-of-the-payload"
    curl = ["curl", "-sS", "--socks5", f"127.0.0.1:{tunnel.socks_port}"]
    good = site.gateway.run(*curl, "--proxy-user", "ana:hunter2-in-clear", url)
    assert '"address"' in good.stdout
    bad = site.gateway.run(*curl, "--proxy-user", "ana:wrong-in-clear", url, check=False)
    assert bad.returncode == 97
    none = site.gateway.run(*curl, url, check=False)
    assert none.returncode == 97
    tunnel.gateway.control("status")
    tunnel.stop()
    secrets = ["in-clear", "secret-of-the-payload", "$scrypt$", "BEGIN PRIVATE KEY"]
    for daemon in tunnel.daemons:
        secrets += daemon.config.with_suffix(".key").read_text().splitlines()[1:-1]
    for daemon in tunnel.daemons:
        text = daemon.log_text()
        assert text
        for secret in secrets:
            assert secret not in text
        # aiortc logs the SDP, without what lets others move the path (RFC 8445 section 7.2.2).
        assert "ice-pwd" not in text.replace("ice-pwd:...", "")
        if log_format == "json":
            assert all(isinstance(json.loads(line), dict) for line in text.splitlines())


def test_state_report_on_sigusr1(tunnel: Tunnel) -> None:
    import signal

    before = len(tunnel.gateway.log_text())
    tunnel.gateway.signal(signal.SIGUSR1)
    tunnel.gateway.wait_log(r"office.*\bup\b", after=before)


def test_notifies_a_watchdog(make_tunnel: MakeTunnel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    gateway = make_tunnel(foreground=True).gateway  # in the place of systemd
    assert isinstance(gateway, Daemon)
    seen = gateway.notified().count("WATCHDOG=1")
    wait_until(lambda: gateway.notified().count("WATCHDOG=1") >= seen + 3, "WATCHDOG=1")


def test_a_second_instance_is_refused(tunnel: Tunnel) -> None:
    """The control socket of a running instance is not taken away by another start of it."""
    import os

    done = tunnel.site.gateway.run(
        *(SOCKS_TUNNEL, "run", "--config", tunnel.gateway.config),
        env={**os.environ, "RUNTIME_DIRECTORY": str(tunnel.gateway.runtime_directory)},
        check=False,
    )
    assert done.returncode == 73
    assert "Traceback" not in done.stderr
    assert tunnel.gateway.control("status")["role"] == "gateway"
    with tunnel.site.gateway.inside(), socket.create_connection(tunnel.proxy, timeout=30):
        pass
