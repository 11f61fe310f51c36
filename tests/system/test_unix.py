"""SOCKS clients on a Unix socket, through the whole tunnel."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.corporate import need
from support.hosts import DOMAIN, ENDPOINT_INSIDE_ADDRESS, TARGET_ADDRESS
from support.processes import Daemon, wait_until
from support.rawsocks import UDP_ASSOCIATE, address, exactly, packet, read_answer, unpack
from support.tunnels import MakeTunnel, Tunnel
from support.units import Unit

NOBODY = 65_534

CONNECTS = "import socket, sys; print(socket.socket(socket.AF_UNIX).connect_ex(sys.argv[1]))"


def make(make_tunnel: MakeTunnel, place: str = "runtime", **gateway: object) -> tuple[Tunnel, Path]:
    """A tunnel whose gateway listens on a Unix socket; its path, as this machine has it."""
    tunnel = make_tunnel(start=False)
    home = tunnel.homes["gateway"]
    directory = home.runtime_directory if place == "runtime" else home.state_directory
    path = directory / "socks.sock"
    tunnel.write("gateway", {"socks": {"listen": [f"unix:{path}"]}, **gateway})
    tunnel.start()
    if isinstance(tunnel.gateway, Unit):
        path = tunnel.gateway.machine.root / path.relative_to("/")
    return tunnel, path


def curl(tunnel: Tunnel, path: Path, host: str = f"v4.{DOMAIN}") -> str:
    """What the target's HTTP server says of a request by curl."""
    url = f"http://{host}:{tunnel.site.ports['http']}/whoami"
    return tunnel.site.gateway.run(
        need("curl"), "-sS", "--proxy", f"socks5h://localhost{path}", url
    ).stdout


def test_curl_by_name(make_tunnel: MakeTunnel) -> None:
    tunnel, path = make(make_tunnel)
    assert f'"address": "{ENDPOINT_INSIDE_ADDRESS}"' in curl(tunnel, path)
    (listening,) = tunnel.gateway.control("status")["listen"]
    assert listening == f"unix:{tunnel.homes['gateway'].runtime_directory}/socks.sock"
    assert path.stat().st_mode & 0o777 == 0o660


def test_connect_and_associate_and_who_the_client_is(make_tunnel: MakeTunnel) -> None:
    tunnel, path = make(make_tunnel)
    with (
        tunnel.site.gateway.inside(),
        socket.socket(socket.AF_UNIX) as client,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
    ):
        client.settimeout(30)
        client.connect(str(path))
        client.sendall(b"\x05\x01\0" + bytes([5, UDP_ASSOCIATE, 0]) + address("0.0.0.0", 0))
        assert exactly(client, 2) == b"\x05\0"
        answer = read_answer(client)
        assert (answer.code, answer.host) == (0, "127.0.0.1")
        datagrams.settimeout(10)
        port = tunnel.site.ports["udp_echo"]
        for attempt in range(5):
            datagrams.sendto(packet(TARGET_ADDRESS, port, b"ping"), (answer.host, answer.port))
            try:
                assert unpack(datagrams.recv(65_536)) == (TARGET_ADDRESS, port, b"ping")
                break
            except TimeoutError:
                assert attempt < 4
        (row,) = wait_until(lambda: tunnel.gateway.control("connections"), "the association")
        # A host that boots has this process in another PID namespace than its own, which is pid 0.
        inside = 0 if isinstance(tunnel.gateway, Unit) else os.getpid()
        assert row["client"] == f"unix:pid={inside},uid={os.getuid()}"


def may_connect(tunnel: Tunnel, path: Path, *groups: str) -> bool:
    """Whether a user of no rights, in these groups, can connect to the socket at `path`."""
    # -B: nobody may write bytecode. The path is one of the gateway's own host.
    command = [
        *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}"),
        f"--groups={','.join(groups)}" if groups else "--clear-groups",
        *("/usr/bin/python3", "-c", CONNECTS, str(path)),
    ]
    if isinstance(tunnel.gateway, Unit):
        said = tunnel.gateway.machine.sh(" ".join(f"'{part}'" for part in command))
    else:
        said = tunnel.site.gateway.run(*command).stdout
    return int(said) == 0


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that everybody may enter."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def test_others_may_not_connect(make_tunnel: MakeTunnel, open_directory: Path) -> None:
    tunnel = make_tunnel(start=False)
    home = tunnel.homes["gateway"]
    directory = home.runtime_directory if hasattr(home, "machine") else open_directory
    path = directory / "socks.sock"
    tunnel.write("gateway", {"socks": {"listen": [f"unix:{path}"]}})
    tunnel.start_gateway()
    group = "socks-tunnel" if isinstance(tunnel.gateway, Unit) else "root"
    assert may_connect(tunnel, path, group)
    assert not may_connect(tunnel, path)
    if isinstance(tunnel.gateway, Unit):
        # By the mode of the socket itself too, and not by that of its directory alone.
        tunnel.gateway.machine.sh(f"chmod 755 {directory}")
        assert not may_connect(tunnel, path)
        assert may_connect(tunnel, path, group)


@pytest.mark.parametrize("place", ["runtime", "state"])
def test_a_restart_finds_no_stale_socket(make_tunnel: MakeTunnel, place: str) -> None:
    tunnel, path = make(make_tunnel, place)
    tunnel.gateway.stop()
    assert not path.exists()
    tunnel.start_gateway()
    tunnel.wait_linked()
    assert '"address"' in curl(tunnel, path)


def test_a_killed_supervisor_leaves_a_socket_that_the_next_one_replaces(
    make_tunnel: MakeTunnel,
) -> None:
    tunnel, path = make(make_tunnel, "state")
    tunnel.gateway.killed = True
    tunnel.gateway.signal(signal.SIGKILL)
    if isinstance(tunnel.gateway, Daemon):
        tunnel.gateway.wait()
        assert path.is_socket(), "nobody was there to remove it"
    else:
        # systemd starts it again by itself.
        tunnel.gateway.wait_log("removing .*/socks.sock, which an earlier process has left")
    tunnel.start_gateway()
    tunnel.wait_linked()
    assert '"address"' in curl(tunnel, path)
    tunnel.gateway.wait_log("which an earlier process has left")


def test_a_socket_of_systemd_for_a_group_of_its_own(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(start=False)
    home = tunnel.homes["gateway"]
    machine = getattr(home, "machine", None)
    if machine is None:
        pytest.skip("needs hosts that boot systemd")
    path = Path(f"/run/{home.instance}-socks.sock")
    unit = f"socks-tunnel@{home.instance}.socket"
    machine.write(
        f"/etc/systemd/system/{unit}.d/test.conf",
        f"[Socket]\nListenStream=\nListenStream={path}\nSocketMode=0660\nSocketGroup=users\n",
    )
    machine.sh(f"systemctl daemon-reload && systemctl start {unit}")
    tunnel.write("gateway", {"socks": {"listen": [f"unix:{path}"]}})
    tunnel.start()
    there = machine.root / path.relative_to("/")
    assert '"address"' in curl(tunnel, there)
    assert may_connect(tunnel, path, "users")
    assert not may_connect(tunnel, path, "socks-tunnel")
    # Who connects while nothing runs waits for the next start.
    tunnel.gateway.stop()
    assert there.is_socket(), "it is systemd's"
    waiting = subprocess.Popen(
        tunnel.site.gateway.command(
            *("curl", "-sS", "--proxy", f"socks5h://localhost{there}"),
            f"http://v4.{DOMAIN}:{tunnel.site.ports['http']}/whoami",
        ),
        stdout=subprocess.PIPE,
        text=True,
    )
    tunnel.start_gateway()
    said, _ = waiting.communicate(timeout=60)
    assert '"address"' in said
    tunnel.gateway.stop()
    machine.sh(f"systemctl stop {unit}")
