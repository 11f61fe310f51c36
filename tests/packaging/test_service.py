"""The unit on a booted systemd, on two hosts of different Debian releases.

The tests of one pair of hosts share them. Each leaves the tunnel working, and is right alone and in any order
but for the last one, which removes and purges the package. The order of this file, which pytest and xdist
keep, puts it there.

This file is long because its tests share two booted hosts.
"""

import contextlib
import json
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from socks_tunnel.ops.compiled import MODULES
from support.hosts import DOMAIN, TARGET_ADDRESS
from support.installed import PROXY, QUERY, START_TIMEOUT, Host, Scene
from support.living import Living
from support.machines import MEMORY_GROUPS, Machine
from support.processes import toml, wait_until
from support.rawsocks import greet, request
from support.targets import body_hash
from support.workshop import PREVIOUS, PURE_BEFORE, repack

# The first test of a run waits for roots to be made and packages to be built.
pytestmark = [pytest.mark.netns, pytest.mark.timeout(1500)]

ANSWER_OF_DNS = bytes([10, 77, 1, 2])

GATEWAY_ADDRESS6 = "fd77::1/64"

PROCESSES = "pgrep --uid socks-tunnel --list-full || true"
"""Lists what runs as the service's user; nothing if nothing does."""

BROKEN = {
    "0.0.7": (
        {
            "usr/lib/socks-tunnel/lib/*/site-packages/socks_tunnel/supervisor/router.py": (
                "import logging",
                "import no_such_library",
            )
        },
        "No module named 'no_such_library'",
    ),
    "0.0.8": ({"usr/bin/socks-tunnel": ("bin/python3", "bin/no-such-python")}, "not found"),
}
"""Versions of which the daemon, or not even the command, starts: what is wrong, and what says so."""

WATCHDOG = 15
"""Seconds; the unit's own 30 would only make the test of it longer."""


def hold_flow(scene: Scene, server: str = "echo") -> socket.socket:
    """A connection to a target server through the tunnel, from the gateway's host."""

    def connect() -> socket.socket:
        sock, answer = request(PROXY, f"www.{DOMAIN}", scene.site.ports[server], timeout=60)
        assert answer.code == 0
        return sock

    flow: socket.socket = scene.on_gateway(connect)
    return flow


def hold_flows_on_all_workers(scene: Scene, host: Host) -> list[socket.socket]:
    """Such connections, so many that each worker of `host` has one."""
    flows: list[socket.socket] = []
    with ThreadPoolExecutor(8) as pool:  # at once, so that no worker can take them all
        while len(flows) < 400:
            flows += pool.map(lambda _: hold_flow(scene), range(8))
            listed = host.machine.sh(f"socks-tunnel connections --instance {host.role} --json")
            if len({row["worker"] for row in json.loads(listed)}) == 2:
                return flows
    raise AssertionError(f"one worker has all {len(flows)} flows")


def echoes(flow: socket.socket) -> bool:
    """Returns whether a held flow still answers."""
    try:
        flow.sendall(b"ping")
        return flow.recv(4) == b"ping"
    except OSError:
        return False


def forked(host: Host) -> list[int]:
    """Returns the children but for the nursery, once these are two workers and the exporter.

    A child looks like the nursery that it is forked from until it has its own command line.
    """
    nurseries = host.machine.children(host.pid, "socks_tunnel.nursery")
    children = [pid for pid in host.machine.children(host.pid) if pid not in nurseries]
    return children if len(children) == 3 else []


@contextlib.contextmanager
def changed(host: Host, **changes: object) -> Iterator[None]:
    """Another configuration for the length of a block; starting with it is up to the caller."""
    host.configure(**changes)
    try:
        yield
    finally:
        host.configure()


# --- the unit as it is ------------------------------------------------------------------------


def test_the_unit_says_what_it_does(scene: Scene) -> None:
    for host in scene.both:
        (peer,) = host.settings["peers"]
        host.wait_status(rf"^{host.role}: link {peer['name']} up .*, \d+ flows?, 2 workers$")
        shown = host.show("Type", "User", "Slice", "LogRateLimitBurst")
        kind = "notify" if host.machine.suite == "bookworm" else "notify-reload"
        assert shown["Type"] == kind
        assert shown["User"] == "socks-tunnel"
        assert shown["Slice"] == "sockstunnel.slice"
        assert shown["LogRateLimitBurst"] == "100000"


def test_the_sandbox(scene: Scene) -> None:
    for host in scene.both:
        machine = host.machine
        table = machine.sh(f"systemd-analyze security --no-pager {host.unit}", check=False)
        exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", table)
        assert exposure, table
        assert float(exposure[1]) <= 1.5, table
        workers = host.wait_workers()
        children = wait_until(
            partial(forked, host), "workers and an exporter", timeout=START_TIMEOUT, interval=0.2
        )
        files = " ".join(f"/proc/{pid}/oom_score_adj" for pid in (host.pid, *children))
        own = machine.sh(f"cat /proc/{host.pid}/oom_score_adj")
        wanted = [own, *(str(int(own) + 500) for _ in children)]
        # Each child raises its own when it starts.
        wait_until(
            lambda: machine.sh(f"cat {files}").split() == wanted,  # noqa: B023
            f"scores of {wanted}",
            timeout=START_TIMEOUT,
        )
        for pid in (host.pid, *workers):
            status = machine.sh(f"cat /proc/{pid}/status")
            assert re.search(r"^CapEff:\s0+$", status, re.MULTILINE)
            assert re.search(r"^CapBnd:\s0+$", status, re.MULTILINE)
            assert re.search(r"^NoNewPrivs:\s1$", status, re.MULTILINE)
            assert re.search(r"^Seccomp:\s2$", status, re.MULTILINE)
        complaints = machine.sh(
            "systemd-analyze verify --man=no socks-tunnel@gateway.service socks-tunnel@gateway.socket 2>&1"
        )
        assert complaints == ""


def test_which_data_path_runs_is_said_truthfully(scene: Scene) -> None:
    """The earlier version of one release is pure Python, and both kinds understand each other."""
    for host in scene.both:
        compiled = host.machine.suite != PURE_BEFORE
        said = f"compiled ({len(MODULES)} modules)" if compiled else "pure Python"
        assert f"fast path:     {said};" in host.version()
        host.wait_workers()
        assert host.runs_compiled() == {compiled}


def test_the_key_stays_roots(scene: Scene) -> None:
    for host in scene.both:
        owner = host.machine.sh(f"stat -c '%U %a' /etc/socks-tunnel/{host.role}.key")
        assert owner == "root 600"
        denied = host.machine.sh(
            f"setpriv --reuid=socks-tunnel --clear-groups cat /etc/socks-tunnel/{host.role}.key 2>&1",
            check=False,
        )
        assert "Permission denied" in denied


# --- traffic under the sandbox ----------------------------------------------------------------


def test_tcp_both_ways(scene: Scene) -> None:
    size = 16 << 20
    received = scene.curl(f"bytes/{size}", "| sha256sum")
    assert received.split()[0] == body_hash(size)
    scene.gateway.machine.sh(f"head -c {size} /dev/urandom >/var/tmp/upload")
    answer = scene.curl("upload", "--upload-file /var/tmp/upload")
    sent = scene.gateway.machine.sh("sha256sum /var/tmp/upload").split()[0]
    assert sent in answer


def test_udp(scene: Scene) -> None:
    answer = scene.ask_dns()
    assert answer[:2] == b"\x07\x07"
    assert ANSWER_OF_DNS in answer


def test_metrics(scene: Scene) -> None:
    scene.wait_works()

    def has_counted(machine: Machine) -> bool:
        text = machine.sh("curl --silent --fail http://127.0.0.1:9464/metrics", check=False)
        return bool(re.search(r'^socks_tunnel_flows_total\{kind="tcp"\} [1-9]', text, re.MULTILINE))

    def is_ready(machine: Machine) -> bool:
        return machine.sh("curl --silent --fail http://127.0.0.1:9464/readyz || echo no") != "no"

    for host in scene.both:
        # Both are told to the exporter within a second.
        for reached in (has_counted, is_ready):
            wait_until(
                partial(reached, host.machine),
                f"{reached.__name__} of the {host.role}",
                timeout=START_TIMEOUT,
                interval=0.2,
            )


def test_commands_on_the_instance(scene: Scene) -> None:
    for host in scene.both:
        assert f'"role": "{host.role}"' in host.machine.sh(
            f"socks-tunnel status --instance {host.role} --json"
        )


# --- reload -----------------------------------------------------------------------------------


def test_reload_of_a_policy(scene: Scene) -> None:
    endpoint = scene.endpoint
    flow = hold_flow(scene)
    pid = endpoint.pid
    policy = {"allowed_ports": [53, scene.site.ports["echo"]]}
    with contextlib.closing(flow), changed(endpoint, policy=policy):
        endpoint.systemctl("reload")
        endpoint.wait_state("active")
        # curl's exit status 97: the proxy refused, once the workers have the new policy.
        wait_until(
            lambda: scene.curl("whoami", "; echo $?", check=False).endswith("97"),
            "a refusal by the new policy",
            timeout=START_TIMEOUT,
        )
        assert echoes(flow)
    endpoint.systemctl("reload")
    scene.wait_works()
    assert endpoint.pid == pid


def test_a_reload_with_mistakes_fails_and_changes_nothing(scene: Scene) -> None:
    for host in scene.both:
        since = host.machine.cursor()
        with changed(host, drain_timout=3), pytest.raises(AssertionError, match="exit status 1"):
            host.systemctl("reload")
        host.wait_journal("drain_timeout", since)  # the nearest key is named
        host.wait_state("active")
    scene.wait_works()


def test_a_key_is_changed_while_both_are_accepted(scene: Scene) -> None:
    gateway, endpoint = scene.gateway, scene.endpoint
    public = gateway.machine.sh("socks-tunnel keygen /etc/socks-tunnel/gateway.key.new")
    peer = {"name": "laptop-new", "public_key": public}
    endpoint.machine.write("/etc/socks-tunnel/peers.d/new.toml", toml({"peers": [peer]}))
    with changed(endpoint, include=["peers.d/*.toml"]):
        endpoint.systemctl("reload")
        scene.wait_works()
        gateway.machine.sh("cd /etc/socks-tunnel && mv gateway.key.new gateway.key")
        gateway.systemctl("restart")
        scene.wait_works()
        endpoint.settings["peers"] = [peer]
    endpoint.machine.sh("rm -r /etc/socks-tunnel/peers.d")
    endpoint.systemctl("reload")
    scene.wait_works()  # by the link that was up: the old key's peer is gone, the new one's stays
    endpoint.wait_for_status("link laptop-new up")


def test_an_endpoints_key_is_changed_while_both_are_accepted(scene: Scene) -> None:
    gateway, endpoint = scene.gateway, scene.endpoint
    public = endpoint.machine.sh("socks-tunnel keygen /etc/socks-tunnel/endpoint.key.new")
    (old,) = gateway.settings["peers"]
    new = old | {"name": "office-new", "public_key": public}
    with changed(gateway, peers=[old, new]):
        gateway.systemctl("reload")
        scene.wait_works()
        gateway.wait_for_status("link office up")
        endpoint.machine.sh("cd /etc/socks-tunnel && mv endpoint.key.new endpoint.key")
        endpoint.systemctl("restart")
        scene.wait_works()
        gateway.settings["peers"] = [new]
    gateway.systemctl("reload")
    scene.wait_works()
    gateway.wait_for_status("link office-new up")


def test_ports_below_1024_with_the_drop_in(scene: Scene) -> None:
    gateway = scene.gateway
    folder = f"/etc/systemd/system/{gateway.unit}.d"
    forward = {"listen": "udp://127.0.0.1:53", "target": f"{TARGET_ADDRESS}:53"}
    with changed(gateway, forwards=[forward]):
        gateway.machine.sh(
            f"install -D -m 644 -t {folder} /usr/share/doc/socks-tunnel/examples/low-ports.conf"
        )
        gateway.machine.sh("systemctl daemon-reload")
        gateway.systemctl("restart")
        scene.wait_works()

        def ask() -> bytes:
            """Returns what comes back; nothing if the question or its answer was lost."""
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(10)
                sock.connect(("127.0.0.1", 53))
                sock.send(QUERY)
                with contextlib.suppress(TimeoutError):
                    return sock.recv(512)
                return b""

        answer = wait_until(lambda: scene.on_gateway(ask), "an answer", timeout=START_TIMEOUT)
        assert ANSWER_OF_DNS in answer
    gateway.machine.sh(f"rm -r {folder} && systemctl daemon-reload")
    gateway.systemctl("restart")
    scene.wait_works()


# --- failures ---------------------------------------------------------------------------------


def test_a_killed_worker_takes_its_own_flows_only(scene: Scene) -> None:
    for host in scene.both:
        flows = hold_flows_on_all_workers(scene, host)
        pid = host.pid
        victim, *others = host.wait_workers()
        host.machine.sh(f"kill -KILL {victim}")
        host.wait_for_another_worker(victim, 2)
        alive = [flow for flow in flows if echoes(flow)]
        assert 0 < len(alive) < len(flows)
        assert set(others) < set(host.wait_workers())
        assert (host.state, host.pid) == ("active", pid)
        scene.wait_works()
        for flow in flows:
            flow.close()


@pytest.mark.skipif(not MEMORY_GROUPS.is_dir(), reason="no memory controller of cgroup v1 here")
def test_out_of_memory_takes_a_worker(scene: Scene) -> None:
    """The kernel's choice, when all processes of the unit share what memory there is."""
    host = scene.endpoint
    with host.machine.memory_group() as group, contextlib.ExitStack() as held:
        try:
            host.systemctl("restart")
            scene.wait_works()
            pid, since = host.pid, host.machine.cursor()
            used = int((group / "memory.usage_in_bytes").read_text())
            (group / "memory.limit_in_bytes").write_text(f"{used + (4 << 20)}\n")
            # Flows whose target reads nothing: a window of each waits in a worker for that.
            flows = [held.enter_context(hold_flow(scene, "sink")) for _ in range(32)]
            for flow in flows:
                flow.setblocking(False)
                # Closed by a RST: their target would never read what is on the way to it.
                flow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            block = bytes(1 << 20)

            def a_worker_was_killed() -> bool:
                counters = (group / "memory.oom_control").read_text().splitlines()
                if "oom_kill 0" not in counters and re.search(
                    r"worker \d+ was killed by SIGKILL", host.journal(since)
                ):
                    return True
                # If it was the exporter, there is memory to use up again.
                for flow in select.select([], flows, [], 0.1)[1]:
                    with contextlib.suppress(OSError):  # it may have been the worker's
                        flow.send(block)
                return False

            wait_until(a_worker_was_killed, "no worker killed", timeout=240)
            (group / "memory.limit_in_bytes").write_text("-1\n")
            assert (host.state, host.pid) == ("active", pid)
            host.wait_workers()
            scene.wait_works()
        finally:
            held.close()
            host.systemctl("stop")
    host.systemctl("start")
    scene.wait_works()


def test_a_killed_supervisor_is_started_again(scene: Scene) -> None:
    for host in scene.both:
        pid = host.pid
        began = time.monotonic()
        host.machine.sh(f"kill -KILL {pid}")
        host.wait_for_another(pid)
        scene.wait_works()
        assert time.monotonic() - began > 1  # RestartSec= is 2 s
        assert host.show("NRestarts")["NRestarts"] != "0"


def test_the_watchdog_ends_a_frozen_supervisor(scene: Scene) -> None:
    host = scene.gateway
    folder = f"/etc/systemd/system/{host.unit}.d"
    host.machine.write(f"{folder}/short.conf", f"[Service]\nWatchdogSec={WATCHDOG}\n")
    host.machine.sh("systemctl daemon-reload")
    host.systemctl("restart")
    scene.wait_works()
    pid, since = host.pid, host.machine.cursor()
    host.machine.sh(f"kill -STOP {pid}")
    host.wait_for_another(pid)
    host.wait_journal("Watchdog timeout", since)
    host.machine.sh(f"rm -r {folder} && systemctl daemon-reload")
    host.systemctl("restart")
    scene.wait_works()


def test_a_bad_configuration_fails_once(scene: Scene) -> None:
    for host in scene.both:
        since = host.machine.cursor()
        with changed(host, workers={"cuont": 2}):
            host.systemctl("restart", check=False)
            host.wait_state("failed")
            assert host.show("ExecMainStatus") == {"ExecMainStatus": "78"}
            journal = host.wait_journal("workers.cuont", since)
            assert re.search(rf"{host.role}\.toml:\d+: workers\.cuont: .*count", journal), journal
            # RestartSec is 2 s: by now it would have tried again.
            time.sleep(4)
            assert host.state == "failed"
            assert host.journal(since).count("cuont") == 1
        host.systemctl("start")
    scene.wait_works()


# --- socket activation ------------------------------------------------------------------------


def test_with_the_socket_unit_a_restart_refuses_nobody(scene: Scene) -> None:
    host = scene.gateway
    host.systemctl("stop")
    host.machine.sh("systemctl start socks-tunnel@gateway.socket")
    host.systemctl("start")
    scene.wait_works()
    failures: list[OSError | AssertionError] = []
    greeted = 0
    ending = threading.Event()

    def keep_connecting() -> None:
        nonlocal greeted
        while not ending.is_set():
            try:
                greet(PROXY, timeout=START_TIMEOUT).close()
                greeted += 1
            except (OSError, AssertionError) as error:
                failures.append(error)
            ending.wait(0.01)

    client = threading.Thread(target=scene.on_gateway, args=(keep_connecting,))
    client.start()
    try:
        wait_until(lambda: greeted > 20, "some greetings", timeout=START_TIMEOUT)
        before, pid = greeted, host.pid
        host.systemctl("restart")
        wait_until(
            lambda: greeted > before + 20, "greetings by the new supervisor", timeout=START_TIMEOUT
        )
        assert host.pid != pid
    finally:
        ending.set()
        client.join()
    # A client that the old worker has accepted is answered by it, and one that waits by the new.
    assert failures == []
    host.systemctl("stop")
    host.machine.sh("systemctl stop socks-tunnel@gateway.socket")
    host.systemctl("start")
    scene.wait_works()


def test_the_socket_unit_serves_ipv4_where_ipv6_is_off(scene: Scene) -> None:
    """`[::1]` cannot be bound there: FreeBind= lets the unit start all the same."""
    host = scene.gateway
    off = "net.ipv6.conf.all.disable_ipv6 net.ipv6.conf.lo.disable_ipv6"
    before = host.machine.sh(f"sysctl -n {off}").split()
    host.systemctl("stop")
    host.machine.sh(f"for each in {off}; do sysctl -qw $each=1; done")
    try:
        assert "::1" not in host.machine.sh("ip -6 address show dev lo")
        host.machine.sh("systemctl start socks-tunnel@gateway.socket")
        host.systemctl("start")
        scene.wait_works()
        scene.on_gateway(lambda: greet(PROXY, timeout=60).close())
    finally:
        names = off.split()
        for name, value in zip(names, before, strict=True):
            host.machine.sh(f"sysctl -qw {name}={value}")
        # The kernel has removed the addresses.
        host.machine.run("ip", "address", "replace", GATEWAY_ADDRESS6, "dev", "gw0", "nodad")
        host.systemctl("stop")
        host.machine.sh("systemctl stop socks-tunnel@gateway.socket")
        host.systemctl("start")
    scene.wait_works()


# --- stop, upgrade, removal -------------------------------------------------------------------


def test_stop_lets_a_download_end(scene: Scene) -> None:
    gateway = scene.gateway
    with changed(gateway, drain_timeout=240):  # half of a download may take longer than usual
        gateway.systemctl("reload")
    download = scene.start_download()
    with ThreadPoolExecutor(1) as pool:
        since = gateway.machine.cursor()
        stopping = pool.submit(gateway.systemctl, "stop")
        gateway.wait_for_drain(since)
        gateway.wait_state("deactivating")
        assert download.running
        download.finish()
        stopping.result()
    gateway.wait_state("inactive")
    assert gateway.show("Result", "ExecMainStatus") == {"Result": "success", "ExecMainStatus": "0"}
    gateway.wait_journal("all flows have ended", since)
    gateway.systemctl("start")
    scene.wait_works()


def test_stop_cuts_what_does_not_end(scene: Scene) -> None:
    gateway = scene.gateway
    # A drain asks systemd for the time that it needs, however short TimeoutStopSec is.
    folder = f"/etc/systemd/system/{gateway.unit}.d"
    gateway.machine.write(f"{folder}/short.conf", "[Service]\nTimeoutStopSec=8\n")
    gateway.machine.sh("systemctl daemon-reload")
    with changed(gateway, drain_timeout=10):
        gateway.systemctl("reload")
    with contextlib.closing(hold_flow(scene)):
        since = gateway.machine.cursor()
        gateway.systemctl("stop")
        gateway.wait_journal("flows are still open after 10 s", since)
    gateway.wait_state("inactive")
    assert gateway.show("Result", "ExecMainStatus") == {"Result": "success", "ExecMainStatus": "0"}
    gateway.machine.sh(f"rm -r {folder} && systemctl daemon-reload")
    gateway.systemctl("start")
    scene.wait_works()


def test_flows_live_through_upgrades(
    scene: Scene,
    packages: dict[str, Path],
    previous_packages: dict[str, Path],
    tmp_path: Path,
) -> None:
    """The program is replaced in place, on the gateway, on the endpoint, and on both at once."""
    machine = scene.gateway.machine
    conffile = "/etc/needrestart/conf.d/socks-tunnel.conf"
    machine.sh(f"echo '# mine' >>{conffile}")
    configuration = machine.sh("sha256sum /etc/socks-tunnel/* " + conffile)
    pids = [(host.pid, host.wait_workers()) for host in scene.both]
    tmp_path.chmod(0o755)
    with Living(scene, tmp_path, idle=1000, size=500_000_000, rate="12M") as living:

        def install(hosts: tuple[Host, ...], versions: dict[str, Path]) -> None:
            since = [host.machine.cursor() for host in hosts]
            with ThreadPoolExecutor(2) as pool:
                printed = list(
                    pool.map(lambda host: host.install(versions[host.machine.suite]), hosts)
                )
            for host, text, cursor in zip(hosts, printed, since, strict=True):
                assert "has taken the place of" in text, text
                assert "restarting" not in text
                host.wait_journal("flows go on with it", cursor)
                host.wait_state("active")
                compiled = versions is packages or host.machine.suite != PURE_BEFORE
                wait_until(
                    lambda: host.runs_compiled() == {compiled},  # noqa: B023
                    f"{host.role} compiled: {compiled}",
                    timeout=START_TIMEOUT,
                    interval=0.5,
                )
            living.goes_on()

        install((scene.gateway,), packages)
        install((scene.endpoint,), packages)
        install(scene.both, previous_packages)
        living.finish()
    assert [(host.pid, host.wait_workers()) for host in scene.both] == pids
    assert machine.sh("sha256sum /etc/socks-tunnel/* " + conffile) == configuration


def test_versions_that_do_not_start_end_nothing(
    scene: Scene, previous_packages: dict[str, Path], tmp_path: Path
) -> None:
    """apt installs them, the message says that the running version goes on, and a good one is taken."""
    host = scene.gateway
    machine, package = host.machine, previous_packages[host.machine.suite]
    with contextlib.closing(hold_flow(scene)) as flow:
        before = (host.pid, host.wait_workers())
        for version, (changes, why) in BROKEN.items():
            broken = repack(package, tmp_path / version, version=version, changes=changes)
            text = host.install(broken)  # which fails if apt's exit status is not 0
            assert f"socks-tunnel: {host.unit} goes on with the version that it runs" in text, text
            assert why in text, text
            assert "restarting" not in text
            installed = machine.sh("dpkg-query --show -f '${Status} ${Version}' socks-tunnel")
            assert installed.startswith(f"install ok installed {version}-"), installed
            assert machine.sh("dpkg --audit") == ""
            assert echoes(flow)
            assert (host.state, host.pid) == ("active", before[0])
        text = host.install(package)
        assert "has taken the place of" in text, text
        host.wait_state("active")
        assert echoes(flow)
        assert (host.pid, host.wait_workers()) == before
        shown = machine.sh(f"socks-tunnel status --instance {host.role} --json")
        assert json.loads(shown)["version"] == PREVIOUS
    scene.wait_works()


def test_needrestart_reports_and_an_upgrade_in_place_does_what_it_asks_for(scene: Scene) -> None:
    host = scene.gateway
    pid = host.pid
    library = host.machine.sh(f"awk '/libm\\.so/ {{ print $6; exit }}' /proc/{pid}/maps")
    # As an upgrade of the library does: a new file takes the place of the one that is in use.
    host.machine.sh(f"cp {library} {library}.new && mv {library}.new {library}")
    listed = host.machine.sh("needrestart -b -r a 2>&1")
    assert f"NEEDRESTART-SVC: {host.unit}" in listed, listed
    assert host.pid == pid
    # What its configuration tells the operator to do: the new library is loaded, and flows go on.
    with contextlib.closing(hold_flow(scene)) as flow:
        printed = host.machine.sh(f"socks-tunnel upgrade --instance {host.role} 2>&1")
        assert "has taken the place of" in printed, printed
        wait_until(
            lambda: host.unit not in host.machine.sh("needrestart -b -r l 2>&1"),
            f"{host.unit} with the new library",
            timeout=START_TIMEOUT,
            interval=0.5,
        )
        assert echoes(flow)
    assert host.pid == pid


def test_the_journal_has_no_traceback(scene: Scene) -> None:
    for host in scene.both:
        journal = host.wait_journal("ready")
        assert not re.search(r"Traceback|never retrieved|was destroyed but it is pending", journal)


def test_remove_stops_and_purge_keeps_keys(scene: Scene) -> None:
    for host in scene.both:
        machine = host.machine
        machine.sh(f"systemctl enable {host.unit} 2>&1")
        machine.sh(
            "systemctl start socks-tunnel@other.socket" if host.role == "endpoint" else "true"
        )
        machine.sh("apt-get remove --yes socks-tunnel 2>&1")
        host.wait_state("inactive")
        for command in (PROCESSES, "systemctl list-units --no-legend 'socks-tunnel@*'"):
            wait_until(
                lambda: machine.sh(command) == "",  # noqa: B023
                f"nothing left: {command}",
                timeout=START_TIMEOUT,
                interval=0.2,
            )
        machine.sh("apt-get purge --yes socks-tunnel 2>&1")
        left = machine.sh(
            "find / -ignore_readdir_race -xdev \\( -path /proc -o -path /sys -o -path /var/tmp \\) -prune -o "
            "\\( -name '*socks-tunnel*' -o -name '*sockstunnel*' -o -path '*/socks-tunnel/*' \\) -print"
        )
        # What docs/packaging.md says: the administrator's own files, keys among them.
        assert set(left.splitlines()) == {
            "/etc/socks-tunnel",
            f"/etc/socks-tunnel/{host.role}.key",
            f"/etc/socks-tunnel/{host.role}.toml",
            "/etc/systemd/system/socks-tunnel@.service.d",
        }
