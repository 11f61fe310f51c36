"""`wait`, `exec`, `nc`, `connections`, `kill` and `drain`, as scripts use them."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.corporate import need
from support.hosts import DOMAIN, ENDPOINT_INSIDE_ADDRESS, TARGET_ADDRESS
from support.processes import SOCKS_TUNNEL, Instance, descendants, wait_until
from support.tunnels import MakeTunnel, Tunnel


def control(instance: Instance) -> str:
    return str(instance.runtime_directory / "control.sock")


def socks_tunnel(
    tunnel: Tunnel, *arguments: str | Path, stdin: bytes | None = b"", timeout: float = 120
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command on the gateway's host; one that names the instance by its socket."""
    command, *rest = arguments
    return subprocess.run(
        tunnel.site.gateway.command(SOCKS_TUNNEL, command, *rest),
        input=stdin,
        capture_output=True,
        timeout=timeout,
        check=False,
    )


def of_instance(tunnel: Tunnel) -> tuple[str, str]:
    return "--socket", control(tunnel.gateway)


# --- nc -------------------------------------------------------------------------------------------


def nc(
    tunnel: Tunnel, *arguments: str | Path, stdin: bytes | None = b""
) -> subprocess.CompletedProcess[bytes]:
    return socks_tunnel(tunnel, "nc", *of_instance(tunnel), *arguments, stdin=stdin)


def test_nc_passes_the_end_of_input_on(tunnel: Tunnel) -> None:
    """The server answers only after the end of what it gets."""
    payload = os.urandom(3_000_000)
    done = nc(tunnel, TARGET_ADDRESS, str(tunnel.site.ports["hash"]), stdin=payload)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.split() == [b"3000000", hashlib.sha256(payload).hexdigest().encode()]


def test_nc_passes_the_end_of_output_on(tunnel: Tunnel) -> None:
    """The server ends its side first. Whoever reads from nc sees that, and may still write."""
    with subprocess.Popen(
        tunnel.site.gateway.command(
            SOCKS_TUNNEL,
            "nc",
            *of_instance(tunnel),
            TARGET_ADDRESS,
            str(tunnel.site.ports["finish_first"]),
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.read() == b"that is all from here\n"
        assert client.poll() is None
        client.stdin.write(b"more")
        client.stdin.close()
        assert client.wait(120) == 0


def test_nc_by_a_name_that_only_the_endpoint_knows(tunnel: Tunnel) -> None:
    done = nc(tunnel, f"v4.{DOMAIN}", str(tunnel.site.ports["hash"]), stdin=b"by name")
    assert done.stdout.startswith(b"7 ")


def test_nc_with_datagrams(tunnel: Tunnel) -> None:
    port = str(tunnel.site.ports["udp_echo"])

    def answer() -> bytes:
        """What came back, if anything did: a datagram may be lost, or late."""
        done = nc(tunnel, "--udp", "--idle", "8", TARGET_ADDRESS, port, stdin=b"a datagram")
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout

    assert wait_until(answer, "a datagram back") == b"a datagram"


@pytest.mark.parametrize(
    ("destination", "status", "words"),
    [
        ((TARGET_ADDRESS, "9"), 69, f"{TARGET_ADDRESS}:9 refuses the connection"),
        ((TARGET_ADDRESS, "25"), 1, f"{TARGET_ADDRESS}:25 is not allowed by the policy"),
        ((f"nobody.{DOMAIN}", "80"), 69, f"nobody.{DOMAIN}:80 cannot be reached, or its name"),
    ],
)
def test_nc_says_why_not(
    tunnel: Tunnel, destination: tuple[str, str], status: int, words: str
) -> None:
    done = nc(tunnel, *destination)
    assert (done.returncode, done.stdout) == (status, b"")
    assert done.stderr.decode().startswith(f"socks-tunnel: {words}")
    assert done.stderr.count(b"\n") == 1


def test_nc_says_that_a_connection_was_reset(tunnel: Tunnel) -> None:
    done = nc(tunnel, TARGET_ADDRESS, str(tunnel.site.ports["reset"]), stdin=b"x")
    assert done.returncode == 1
    assert b"the connection was lost: Connection reset by peer" in done.stderr


def test_nc_without_an_instance(tunnel: Tunnel) -> None:
    done = socks_tunnel(tunnel, "nc", "--proxy", "127.0.0.1:9", TARGET_ADDRESS, "80")
    assert done.returncode == 69
    assert b"the proxy on 127.0.0.1:9 cannot be reached: Connection refused" in done.stderr


def test_nc_with_a_login(make_tunnel: MakeTunnel) -> None:
    """RFC 1929. The password is in the environment, where other users do not see it."""
    tunnel = make_tunnel({"socks": {"users_file": "users"}}, start=False, foreground=True)
    done = subprocess.run(
        [SOCKS_TUNNEL, "passwd", "alice", "--password", "s3cret"], capture_output=True, check=True
    )
    tunnel.homes["gateway"].put("users", done.stdout.decode())
    tunnel.start()
    request = ["nc", *of_instance(tunnel), TARGET_ADDRESS, str(tunnel.site.ports["hash"])]
    refused = socks_tunnel(tunnel, *request)
    assert refused.returncode == 1
    assert b"set SOCKS_TUNNEL_USERNAME and SOCKS_TUNNEL_PASSWORD" in refused.stderr

    def with_login(password: str) -> subprocess.CompletedProcess[bytes]:
        login = {"SOCKS_TUNNEL_USERNAME": "alice", "SOCKS_TUNNEL_PASSWORD": password}
        return subprocess.run(
            tunnel.site.gateway.command(SOCKS_TUNNEL, *request),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            env=os.environ | login,
            timeout=120,
        )

    assert b"the server refused the password" in with_login("wrong").stderr
    assert with_login("s3cret").stdout.startswith(b"0 ")


# --- wait -----------------------------------------------------------------------------------------


def test_wait_until_a_link_is_up(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(start=False, foreground=True)
    waiting = tunnel.site.gateway.start(
        SOCKS_TUNNEL, "wait", "--socket", tunnel.homes["gateway"].runtime_directory / "control.sock"
    )
    try:
        tunnel.start_gateway()
        why = socks_tunnel(tunnel, "wait", *of_instance(tunnel), "--timeout", "0")
        assert why.returncode == 69
        assert why.stderr.startswith(b"gateway has no link")
        assert waiting.poll() is None
        tunnel.start_endpoint()
        assert waiting.wait(120) == 0
    finally:
        waiting.kill()
        waiting.wait()
    tunnel.wait_linked()


# --- connections, kill, drain ---------------------------------------------------------------------


def test_one_flow_of_several_is_found_and_ended(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(foreground=True)
    kept = tunnel.connect("echo")
    kept.sendall(b"kept")
    assert kept.recv(4) == b"kept"
    victim = tunnel.connect("hash")
    victim.sendall(b"x" * 1000)
    port = tunnel.site.ports["hash"]

    def ask(*options: str) -> list[dict[str, object]]:
        done = socks_tunnel(tunnel, "connections", "--json", *of_instance(tunnel), *options)
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, object]] = json.loads(done.stdout)
        return rows

    wait_until(lambda: [row["up"] for row in ask("--sort", "up")] == [1000, 4], "1000 bytes up")
    (row,) = wait_until(lambda: ask("--filter", f"destination=*:{port}"), "the flow to end")
    assert ask("--filter", f"destination!=*:{port}", "--filter", "echo-less") == []
    done = socks_tunnel(tunnel, "kill", *of_instance(tunnel), f"office/{row['conn_id']}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"ended office/{row['conn_id']}: ".encode())
    with pytest.raises(ConnectionResetError):
        victim.recv(1)
    wait_until(lambda: tunnel.site.state()["open"].get("hash", 0) == 0, "the target's side ended")
    wait_until(lambda: len(ask()) == 1, "the gateway's side ended")
    kept.sendall(b"goes on")
    assert kept.recv(7) == b"goes on"
    again = socks_tunnel(tunnel, "kill", *of_instance(tunnel), f"office/{row['conn_id']}")
    assert again.returncode == 1
    assert b"refused: there is no open flow office/" in again.stderr
    uid = os.getuid()
    tunnel.gateway.wait_log(rf"flow killed peer=office flow={row['conn_id']} .* uid={uid} ")
    tunnel.gateway.wait_log(rf"flow ended peer=office flow={row['conn_id']} .* reason=reset")
    kept.close()
    victim.close()


def test_drain_says_how_far_it_is(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel({"drain_timeout": 90}, foreground=True)
    flow = tunnel.connect("echo")
    with subprocess.Popen(
        tunnel.site.gateway.command(SOCKS_TUNNEL, "drain", "--wait", *of_instance(tunnel)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as drain:
        assert drain.stdout is not None
        assert drain.stderr is not None
        assert drain.stdout.readline() == "draining: 1 flows may go on for 90 s\n"
        assert drain.stderr.readline().startswith("draining: 1 flows left, for another ")
        flow.close()
        assert drain.wait(120) == 0
        assert drain.stderr.read().splitlines()[-1] == "ended"
    assert tunnel.gateway.wait() == 0


# --- exec -----------------------------------------------------------------------------------------

SHOW = "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if 'proxy' in k.lower()}))"


def execute(
    tunnel: Tunnel, *arguments: str | Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Runs `exec` on the gateway's host, where the running instances are the tunnel's alone."""
    return subprocess.run(
        tunnel.site.gateway.command(SOCKS_TUNNEL, "exec", *arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, **(environment or {})},
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory whose path leaves room for the sockets of an instance."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def named(tunnel: Tunnel, tmp_path: Path) -> dict[str, str]:
    """An environment in which the running gateway is found by name, as in a user's session."""
    home = tmp_path / "socks-tunnel"
    home.mkdir()
    (home / "gateway").symlink_to(tunnel.gateway.runtime_directory)
    return {"XDG_RUNTIME_DIR": str(tmp_path), "NO_PROXY": "10.0.0.0/8", "no_proxy": "10.0.0.0/8"}


def test_exec_with_the_running_instance(tunnel: Tunnel, named: dict[str, str]) -> None:
    done = execute(
        tunnel, "--instance", "gateway", "--", sys.executable, "-c", SHOW, environment=named
    )
    assert done.returncode == 0, done.stderr
    proxy = f"socks5h://127.0.0.1:{tunnel.socks_port}"
    variables = json.loads(done.stdout)
    for name in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"):
        assert (variables[name], variables[name.lower()]) == (proxy, proxy)
    assert variables["NO_PROXY"] == variables["no_proxy"]
    assert "127.0.0.1" in variables["NO_PROXY"]
    assert "10.0.0.0/8" not in variables["NO_PROXY"]
    url = f"http://v4.{DOMAIN}:{tunnel.site.ports['http']}/whoami"
    done = execute(
        tunnel, "--instance", "gateway", "--", need("curl"), "-sS", url, environment=named
    )
    assert f'"address": "{ENDPOINT_INSIDE_ADDRESS}"' in done.stdout.decode(), done.stderr


def test_exec_has_the_status_of_the_command(tunnel: Tunnel, named: dict[str, str]) -> None:
    def status(*command: str) -> int:
        return execute(
            tunnel, "--instance", "gateway", "--", *command, environment=named
        ).returncode

    assert status("sh", "-c", "exit 42") == 42
    assert status("sh", "-c", "kill -KILL $$") == 128 + signal.SIGKILL
    assert status("/nonexistent/program") == 127
    assert status("/etc/hostname") == 126


def test_exec_passes_signals_on(tunnel: Tunnel, named: dict[str, str]) -> None:
    script = "trap 'echo caught; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    command = ["exec", "--instance", "gateway", "--", "sh", "-c", script]
    with subprocess.Popen(
        tunnel.site.gateway.command(SOCKS_TUNNEL, *command),
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | named,
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        client.send_signal(signal.SIGTERM)
        assert client.wait(120) == 7
        assert client.stdout.read() == "caught\n"


def test_exec_with_an_instance_of_its_own(make_tunnel: MakeTunnel, folder: Path) -> None:
    """It takes none of the configured ports, and nothing of it is left."""
    tunnel = make_tunnel(start=False, foreground=True)
    tunnel.start_endpoint()
    config = tunnel.write("gateway")
    with tunnel.site.gateway.inside(), socket.socket() as taken:
        taken.bind(("127.0.0.1", tunnel.socks_port))
        url = f"http://v4.{DOMAIN}:{tunnel.site.ports['http']}/whoami"
        script = f"curl -sS {url} && echo && echo $ALL_PROXY && exit 3"
        environment = {"TMPDIR": str(folder), "XDG_RUNTIME_DIR": str(folder)}
        done = execute(
            tunnel, "--config", config, "--", "sh", "-c", script, environment=environment
        )
    assert done.returncode == 3, done.stderr
    whoami, proxy = done.stdout.decode().splitlines()
    assert json.loads(whoami)["address"] == ENDPOINT_INSIDE_ADDRESS
    assert proxy.startswith("socks5h://127.0.0.1:")
    assert list(folder.iterdir()) == []
    wait_until(lambda: tunnel.endpoint.control("status")["counters"]["flows_tcp"] == 0, "no flow")


def test_exec_says_why_its_own_instance_has_no_link(make_tunnel: MakeTunnel, folder: Path) -> None:
    tunnel = make_tunnel(start=False, foreground=True)
    config = tunnel.write("gateway")
    environment = {"TMPDIR": str(folder), "XDG_RUNTIME_DIR": str(folder)}
    # Seconds in which it starts and tries; on a loaded machine, the start alone may take them all.
    for seconds in ("20", "90"):
        arguments = ("--config", config, "--timeout", seconds, "--", "true")
        done = execute(tunnel, *arguments, environment=environment)
        assert done.returncode == 69
        if b"cannot reach office: " in done.stderr:
            break
    assert b"gateway has no link: office: " in done.stderr
    assert b"cannot reach office: " in done.stderr  # its log
    assert list(folder.iterdir()) == []


def test_exec_that_is_killed_leaves_no_instance(make_tunnel: MakeTunnel, folder: Path) -> None:
    tunnel = make_tunnel(start=False, foreground=True)
    tunnel.start_endpoint()
    config = tunnel.write("gateway")
    with subprocess.Popen(
        tunnel.site.gateway.command(
            *(
                SOCKS_TUNNEL,
                "exec",
                "--config",
                config,
                "--",
                "sh",
                "-c",
                "echo begun; exec sleep 600",
            )
        ),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder), "XDG_RUNTIME_DIR": str(folder)},
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "begun\n"
        left = list(descendants(client.pid))
        client.kill()
    # The command is not ours to kill. While the shell becomes it, the process has no command line.
    sleeping = wait_until(lambda: [p for p in left if b"sleep" in _command(p)], "the command lives")
    for pid in sleeping:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(_command(pid) for pid in left), "all of it gone")


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


# --- completion -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["status", "--instance", "gate"], ["gateway"]),
        (["policy", "test", "--config", "{config}", "--peer", "of"], ["office"]),
        (["wai"], ["wait"]),
    ],
)
def test_bash_completes(
    tunnel: Tunnel, named: dict[str, str], line: list[str], expected: list[str]
) -> None:
    words = " ".join(["socks-tunnel", *line]).format(config=tunnel.gateway.config)
    script = (
        f"source <(_SOCKS_TUNNEL_COMPLETE=bash_source {SOCKS_TUNNEL})\n"
        f"COMP_WORDS=({words}) COMP_CWORD={len(line)}\n"
        f'_socks_tunnel_completion {SOCKS_TUNNEL}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env=os.environ | named
    )
    assert done.stdout.split() == expected, done.stderr


def test_live_flows_are_completed(tunnel: Tunnel, named: dict[str, str]) -> None:
    with tunnel.connect("echo") as sock:
        client = f"127.0.0.1:{sock.getsockname()[1]}"
        # Flows of earlier tests may still be there.

        def rows() -> list[dict[str, Any]]:
            return [row for row in tunnel.gateway.control("connections") if row["client"] == client]

        (row,) = wait_until(rows, "the flow")
        done = subprocess.run(
            [SOCKS_TUNNEL],
            capture_output=True,
            text=True,
            check=True,
            env={
                **os.environ,
                **named,
                "_SOCKS_TUNNEL_COMPLETE": "zsh_complete",
                "COMP_WORDS": "socks-tunnel kill --instance gateway off",
                "COMP_CWORD": "4",
            },
        )
    assert f"office/{row['conn_id']}" in done.stdout
    assert row["destination"] in done.stdout.replace("\\", "")


# --- browsers -------------------------------------------------------------------------------------


def test_a_browser_is_told_what_goes_through_the_tunnel(make_tunnel: MakeTunnel) -> None:
    """And is told something else after a reload."""
    routes = [{"hosts": [f"*.{DOMAIN}"], "peers": ["office"]}]
    tunnel = make_tunnel({"routes": routes}, foreground=True)

    def script_of() -> str | None:
        # The exporter asks the supervisor, who may be too busy to answer in time.
        status, script = tunnel.metrics("gateway", "/proxy.pac")
        return script if status == 200 else None

    def answers() -> list[str]:
        script = wait_until(script_of, "/proxy.pac")
        asked = [f"www.{DOMAIN}", "10.77.1.2", "localhost"]
        calls = "".join(f"console.log(FindProxyForURL('http://{h}/', '{h}'));" for h in asked)
        done = subprocess.run(
            [need("node"), "-e", script + calls], capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    proxy = f"SOCKS5 127.0.0.1:{tunnel.socks_port}"
    assert answers() == [proxy, "DIRECT", "DIRECT"]
    tunnel.write("gateway", {"routes": [{"hosts": ["10.77.0.0/16"], "peers": ["office"]}]})
    tunnel.gateway.reload()
    assert answers() == ["DIRECT", proxy, "DIRECT"]
    wait_until(lambda: tunnel.metrics("endpoint", "/proxy.pac")[0] == 404, "none of the endpoint")
