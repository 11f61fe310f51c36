"""`diagnose` where one host is enough: each fault is made to happen."""

import base64
import errno
import http.server
import json
import os
import shlex
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from socks_tunnel import cli
from socks_tunnel.diagnosis import bundle
from socks_tunnel.diagnosis.network import name_servers
from socks_tunnel.ops.findings import Finding
from support.processes import SOCKS_TUNNEL
from support.tunnels import write_key

PEER = base64.b64encode(bytes(32)).decode()


class Host:
    """A configuration in a directory of its own, and what `diagnose` finds of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        write_key(directory / "host.key")

    def endpoint(self, more: str = "", policy: str = "") -> Path:
        rules = policy or 'allowed_hosts = ["192.0.2.0/24"]\nallowed_ports = [80]'
        return self._write(
            f"""\
role = "endpoint"
[identity]
private_key_file = "host.key"
[signaling]
listen = "127.0.0.1:0"
[[peers]]
name = "laptop"
public_key = "{PEER}"
[policy]
{rules}
[ice]
addresses = ["127.0.0.1"]
[metrics]
listen = ""
{more}
"""
        )

    def gateway(self, peer: str) -> Path:
        return self._write(
            f"""\
role = "gateway"
[identity]
private_key_file = "host.key"
[socks]
listen = ["127.0.0.1:0"]
[[peers]]
name = "office"
public_key = "{PEER}"
{peer}
[ice]
addresses = ["127.0.0.1"]
[metrics]
listen = ""
"""
        )

    def _write(self, text: str) -> Path:
        path = self.directory / "diagnosed-here.toml"
        path.write_text(text)
        return path


def diagnose(config: Path, *options: str) -> tuple[int, list[Finding]]:
    """Runs the command; a gateway is not tried."""
    arguments = ["diagnose", "--config", str(config), "--timeout", "0", "--json", *options]
    result = CliRunner().invoke(cli.cli, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, [Finding(**row) for row in json.loads(result.stdout)]


def about(findings: list[Finding], words: str) -> Finding:
    """The only finding that is about that."""
    [found] = [finding for finding in findings if words in finding.about]
    return found


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


Serve = Callable[[type[http.server.BaseHTTPRequestHandler]], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves HTTP as another program would; gives address and port."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(handler: type[http.server.BaseHTTPRequestHandler]) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers with a status, at a time of its own."""

    status = 405
    ahead = 0.0

    def do_GET(self) -> None:
        self.send_response_only(self.status)
        self.send_header("Date", formatdate(time.time() + self.ahead, usegmt=True))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_CONNECT = do_GET

    def log_message(self, *_: object) -> None:
        """Says nothing."""


# --- the host -----------------------------------------------------------------------------------


def test_nothing_is_wrong(host: Host) -> None:
    _, findings = diagnose(host.endpoint())
    good = {finding.about for finding in findings if finding.level == "ok"}
    assert {"version", "configuration", "disk", "policy", "candidates", "ports"} <= good
    assert "laptop (asks us)" in about(findings, "configuration").sentence


def test_a_policy_that_denies_everything(host: Host) -> None:
    status, findings = diagnose(host.endpoint(policy="allowed_ports = [80]"))
    found = about(findings, "policy")
    assert (status, found.level) == (1, "problem")
    assert found.sentence.startswith("it denies every peer everything")
    assert "allowed_hosts" in found.sentence


def test_a_port_that_is_taken(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = host.endpoint()
        config.write_text(config.read_text().replace("127.0.0.1:0", address))
        status, findings = diagnose(config)
    found = about(findings, "port taken")
    assert status == 1
    assert found.about == "signaling.listen: port taken"
    assert f"cannot listen on {address}" in found.sentence
    assert "`ss -ltnp`" in found.advice


def test_a_low_limit_of_descriptors(host: Host) -> None:
    config = host.endpoint("[limits]\nflows_per_worker = 5000\n")
    done = subprocess.run(
        ["sh", "-c", f"ulimit -n 200; exec {SOCKS_TUNNEL} diagnose --config {config}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "WARNING  descriptors: a process may have 200 file descriptors" in done.stdout
    assert "-> Raise LimitNOFILE= or the hard limit" in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_disk(host: Host) -> None:
    folder = host.directory / "full"
    folder.mkdir()
    config = host.endpoint(f'[audit]\nfile = "{folder}/audit.jsonl"\n')
    script = (
        f"mount -t tmpfs -o size=64k none {folder} && "
        f"{{ head -c 1000000 /dev/zero >{folder}/filler; exec {SOCKS_TUNNEL} diagnose --config {config}; }}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert (
        f"PROBLEM  disk: nothing can be written to {folder} (audit.file): No space left on device."
    ) in done.stdout


def test_a_configuration_with_mistakes(host: Host) -> None:
    config = host.endpoint("[lgo]\n")
    result = CliRunner().invoke(cli.cli, ["diagnose", "--config", str(config)])
    assert result.exit_code == 78
    assert 'unknown key; the nearest known key is "log"' in result.stdout


SILENT = """
import os, socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 53))
os.set_inheritable(sock.fileno(), True)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Takes the port of a name server, and becomes another program, which holds it and reads nothing."""

GONE = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
"""Becomes another program; nobody has the port."""


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a network and mounts a file")
@pytest.mark.parametrize("first", [SILENT, GONE], ids=["silent", "gone"])
def test_name_servers_that_do_not_answer(host: Host, first: str) -> None:
    """In a network of its own, where nobody else answers either."""
    file = host.directory / "resolv.conf"
    file.write_text("# a comment\nnameserver 127.0.0.1\noptions edns0\n")
    config = host.endpoint()
    command = [str(SOCKS_TUNNEL), "diagnose", "--config", str(config), "--timeout", "0"]
    script = (
        f"ip link set lo up && mount --bind {file} /etc/resolv.conf && "
        f"exec {sys.executable} -c {shlex.quote(first)} {shlex.join(command)}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "--net", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "PROBLEM  DNS: 127.0.0.1 did not answer within 3 s." in done.stdout
    assert "-> No name is resolved through it: correct /etc/resolv.conf" in done.stdout


async def test_a_name_server_that_nobody_needs(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        file = tmp_path / "resolv.conf"
        file.write_text("nameserver 127.0.0.1\n")
        port = silent.getsockname()[1]
        [found] = [f async for f in name_servers(file, needed=False, port=port)]
    assert found.level == "note", "nothing of this configuration is looked up"


# --- signalling -----------------------------------------------------------------------------------


def test_signalling_that_is_refused(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    status, findings = diagnose(host.gateway(f'url = "http://127.0.0.1:{port}/"'))
    found = about(findings, "signalling of office")
    assert (status, found.level) == (1, "problem")
    assert found.about == "signalling of office: signalling refused"
    assert "Is the other side running" in found.advice


@pytest.mark.parametrize(("ahead", "level"), [(120.0, "problem"), (-20.0, "warning")])
def test_a_clock_that_is_wrong(host: Host, serve: Serve, ahead: float, level: str) -> None:
    class Skewed(Answering):
        pass

    Skewed.ahead = ahead
    _, findings = diagnose(host.gateway(f'url = "http://{serve(Skewed)}/"'))
    found = about(findings, "clock skew")
    assert found.level == level
    seconds, way = found.sentence.split(" clock is ")[1].split(" s ")
    assert abs(int(seconds) - abs(ahead)) <= 5
    assert way.startswith("behind" if ahead > 0 else "ahead of")
    assert "time service" in found.advice


def test_a_rendezvous_service(host: Host, serve: Serve) -> None:
    config = host.endpoint()
    text = config.read_text()

    def found(address: str) -> Finding:
        config.write_text(text.replace('listen = "127.0.0.1:0"', f'rendezvous = "ws://{address}/"'))
        return about(diagnose(config)[1], "rendezvous")

    there = found(serve(Answering))
    assert (there.level, there.about) == ("ok", "rendezvous")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    gone = found(address)
    assert (gone.level, gone.about) == ("problem", "rendezvous: signalling refused")
    assert address in gone.sentence


def test_a_proxy_that_wants_a_password(host: Host, serve: Serve) -> None:
    class Proxy(Answering):
        status = 407

    proxy = f'proxy = "http://{serve(Proxy)}"'
    for url in ("http://192.0.2.1/", "https://192.0.2.1/"):
        status, findings = diagnose(host.gateway(f'url = "{url}"\n{proxy}'))
        found = about(findings, "signalling of office")
        assert (status, found.about) == (1, "signalling of office: proxy authentication"), found
        assert "http://USER:PASSWORD@HOST:PORT" in found.advice


def test_a_name_that_does_not_exist(host: Host) -> None:
    _, findings = diagnose(host.gateway('url = "http://office.invalid/"'))
    found = about(findings, "signalling of office")
    assert found.level == "problem"
    assert found.about == "signalling of office: DNS"


# --- the same at each start -----------------------------------------------------------------------


def test_the_log_of_a_start_has_the_same_findings(host: Host) -> None:
    config = host.endpoint(
        "[limits]\nflows_per_worker = 5000\n", policy='allowed_hosts = ["0.0.0.0"]'
    )
    with subprocess.Popen(
        ["sh", "-c", f"ulimit -n 300; exec {SOCKS_TUNNEL} run --config {config}"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RUNTIME_DIRECTORY": str(host.directory)},
    ) as instance:
        assert instance.stderr is not None
        said = []
        for line in instance.stderr:
            said.append(line)
            if "ready: " in line:
                break
        instance.terminate()
        instance.stderr.read()
    log = "".join(said)
    assert "WARNING supervisor socks_tunnel.supervisor.main: descriptors: a process may have" in log
    assert "ERROR   supervisor socks_tunnel.supervisor.main: policy: it denies every peer" in log


def test_no_half_bundle_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk. The next attempt would find it, and refuse to overwrite it."""

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bundle, "secrets_of", lambda _: [])
    monkeypatch.setattr(os, "fsync", full)
    config: Any = SimpleNamespace(instance="gateway")
    with pytest.raises(OSError, match="No space left"):
        bundle.write(tmp_path / "bundle.tar.gz", config, [("report", "all is well")])
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr(bundle, "secrets_of", lambda _: [])
    bundle.write(tmp_path / "bundle.tar.gz", config, [("report", "all is well")])
    assert stat.S_IMODE((tmp_path / "bundle.tar.gz").stat().st_mode) == 0o600
    with tarfile.open(tmp_path / "bundle.tar.gz") as archive:
        assert archive.getnames() == ["socks-tunnel-gateway/report"]
