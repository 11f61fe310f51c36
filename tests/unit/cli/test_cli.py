"""The command line: what it prints, and its exit codes.

`run` and `demo` are started by the system tests; here it is only seen that they are called.

This file is long because each command of the program has its tests.
"""

import importlib
import os
import socket
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import socks_tunnel
import socks_tunnel.peer.select  # ifaddr starts ldconfig when it is imported: not in a test
from socks_tunnel import cli
from socks_tunnel.config.loader import load
from socks_tunnel.config.users import parse_users, verify_password
from socks_tunnel.ops.files import write_new
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.signaling.identity import PrivateIdentity, parse_public_key
from support.certificates import DAY, Authority

KEY = "A" * 42 + "E="


def call(*arguments: str | Path, input: str | None = None) -> Result:  # noqa: A002 - click's name
    result = CliRunner().invoke(cli.cli, [str(a) for a in arguments], input=input)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def commands() -> dict[str, click.Command | None]:
    context = click.Context(cli.cli)
    return {name: cli.cli.get_command(context, name) for name in cli.cli.list_commands(context)}


def refusal(result: Result, exit_code: int) -> str:
    """Returns what a failed command said; it says that on standard error."""
    assert result.exit_code == exit_code, result.output
    assert result.stdout == ""
    return result.stderr


@pytest.fixture
def endpoint(tmp_path: Path) -> Path:
    write_new(tmp_path / "host.key", PrivateIdentity.generate().to_pem(), 0o600)
    file = tmp_path / "endpoint.toml"
    file.write_text(
        f"""\
role = "endpoint"
[identity]
private_key_file = "host.key"
[signaling]
listen = "127.0.0.1:8765"
[[peers]]
name = "laptop"
public_key = "{KEY}"
[[peers]]
name = "workstation"
public_key = "{KEY.replace("E", "I")}"
policy = "engineering"
[policy]
allowed_hosts = ["192.0.2.0/24", "*.internal.corp"]
allowed_ports = [80]
denied_hosts = ["192.0.2.66"]
[policies.engineering]
allowed_hosts = ["0.0.0.0"]
allowed_ports = [22]
"""
    )
    return file


@pytest.fixture
def gateway(tmp_path: Path) -> Path:
    write_new(tmp_path / "host.key", PrivateIdentity.generate().to_pem(), 0o600)
    file = tmp_path / "gateway.toml"
    file.write_text(
        f"""\
role = "gateway"
[identity]
private_key_file = "host.key"
[[peers]]
name = "office"
public_key = "{KEY}"
url = "http://192.0.2.1/"
"""
    )
    return file


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- the frame --------------------------------------------------------------------------------


def test_the_commands_are_these() -> None:
    running = {
        "run",
        "rendezvous",
        "demo",
        "status",
        "connections",
        "top",
        "reload",
        "drain",
        "upgrade",
    }
    scripts = {"wait", "exec", "nc", "kill", "diagnose"}
    preparing = {
        "check-config",
        "invite",
        "join",
        "keygen",
        "pubkey",
        "passwd",
        "pair",
        "peers",
        "policy",
        "route",
        "setup",
        "version",
    }
    assert set(commands()) == running | scripts | preparing


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["run"], ["policy"], ["pair"], ["status", "--nonsense"], []]
)
def test_usage(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_an_unknown_command_names_the_nearest() -> None:
    assert "No such command 'stats'. The nearest command is 'status'." in call("stats").stderr
    assert "The nearest" not in call("xyzzy").stderr


def test_the_list_of_commands_has_whole_sentences() -> None:
    listed = call("--help").stdout.partition("Commands:")[2]
    assert "..." not in listed


def test_help_is_there_for_each_command() -> None:
    for name, command in commands().items():
        assert command is not None
        assert command.help, name
        assert call(name, "-h").exit_code == 0


def test_main_exits_with_the_commands_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["socks-tunnel", "check-config", "/nonexistent.toml"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 78


def test_a_bug_is_told_from_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli.cli, "main", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 70
    said = capsys.readouterr().err
    assert "RuntimeError: a bug" in said
    assert "please report" in said


def test_as_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    monkeypatch.setattr(sys, "argv", ["socks_tunnel", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("socks_tunnel", run_name="__main__")
    assert caught.value.code == 0


# --- running ----------------------------------------------------------------------------------


def replace(monkeypatch: pytest.MonkeyPatch, module: str, **functions: object) -> None:
    """Put a module with only these functions in the place of one that a command imports."""
    package, _, name = f"socks_tunnel.{module}".rpartition(".")
    stand_in = ModuleType(f"{package}.{name}")
    vars(stand_in).update(functions)
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setattr(importlib.import_module(package), name, stand_in, raising=False)


@pytest.mark.parametrize("code", [0, 70, 73, 78])
def test_run(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    asked: list[tuple[Path, bool]] = []

    def run(reading: Path, *, private: bool) -> int:
        asked.append((reading, private))
        return code

    replace(monkeypatch, "config.reading", Reading=Path)
    replace(monkeypatch, "supervisor.main", run=run)
    monkeypatch.setattr("socks_tunnel.ops.process.leave", sys.exit)  # pytest is to stay
    assert call("run", "--config", "/etc/x.toml").exit_code == code
    assert call("run", "--private", "--config", "/etc/x.toml").exit_code == code
    assert asked == [(Path("/etc/x.toml"), False), (Path("/etc/x.toml"), True)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], (HostPort("127.0.0.1", 1080), None, False)),
        (["--listen", "[::1]:9"], (HostPort("::1", 9), None, False)),
        (["--policy", "p.json"], (HostPort("127.0.0.1", 1080), Path("p.json"), False)),
        (["--rendezvous"], (HostPort("127.0.0.1", 1080), None, True)),
    ],
)
def test_demo(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: tuple[object, ...]
) -> None:
    asked: list[tuple[object, ...]] = []

    def run(listen: HostPort, policy_file: Path | None, *, rendezvous: bool) -> int:
        asked.append((listen, policy_file, rendezvous))
        return 73

    replace(monkeypatch, "demo.demonstration", run=run)
    assert call("demo", *arguments).exit_code == 73
    assert asked == [expected]


def test_demo_with_a_bad_address(monkeypatch: pytest.MonkeyPatch) -> None:
    replace(monkeypatch, "demo.demonstration", run=None)
    assert "'1080' is not HOST:PORT" in refusal(call("demo", "--listen", "1080"), 2)


# --- preparing --------------------------------------------------------------------------------


def test_check_config(endpoint: Path) -> None:
    result = call("check-config", endpoint)
    assert result.exit_code == 0
    assert result.stdout == (
        f"{endpoint}: this is a usable endpoint, with the peers: laptop, workstation\n"
    )


def test_check_config_warns_of_an_old_key(endpoint: Path) -> None:
    with endpoint.open("a") as file:
        file.write("[socks]\nconnect_timeout = 5\n")
    result = call("check-config", endpoint)
    assert result.exit_code == 0
    assert result.stderr.startswith(f"warning: {endpoint}:")
    assert "socks.connect_timeout: is the old name of targets.connect_timeout" in result.stderr


def test_check_config_warns_of_an_expired_certificate(endpoint: Path) -> None:
    both = Authority("office").issue("office.example.com", valid=(-2 * DAY, -DAY)).both
    certificate = endpoint.with_name("tls.pem")
    certificate.touch(mode=0o600)
    certificate.write_text(both)
    setting = 'tls_certificate = "tls.pem"'
    endpoint.write_text(endpoint.read_text().replace("[signaling]", f"[signaling]\n{setting}"))
    result = call("check-config", endpoint)
    assert result.exit_code == 0
    assert result.stderr.startswith(f"warning: {certificate} expired at ")


def test_check_config_prints_every_mistake(gateway: Path) -> None:
    gateway.write_text(gateway.read_text() + "[log]\nlevl = 'x'\n[socks]\nidle_udp = 0\n")
    result = call("check-config", gateway)
    assert result.exit_code == 78
    assert result.stdout == (
        f'{gateway}:9: log.levl: unknown key; the nearest known key is "level"\n'
        f"{gateway}:11: socks.idle_udp: must be at least 1, not 0\n"
    )


def test_check_config_reads_the_private_key(gateway: Path) -> None:
    key = gateway.with_name("host.key")
    key.write_text("precious")
    result = call("check-config", gateway)
    assert result.exit_code == 78
    assert result.stdout == (
        f"{gateway}: identity.private_key_file: {key}: this is no private key in PEM form "
        "(PKCS #8)\n"
    )


def test_check_config_of_nothing(tmp_path: Path) -> None:
    result = call("check-config", tmp_path / "none.toml")
    assert result.exit_code == 78
    assert "cannot be read: No such file or directory" in result.stdout


def test_keygen(tmp_path: Path) -> None:
    file = tmp_path / "new" / "host.key"
    result = call("keygen", file)
    assert result.exit_code == 0
    assert mode(file) == 0o600
    assert PrivateIdentity.load(file).public == parse_public_key(result.stdout)


def test_pubkey(tmp_path: Path) -> None:
    printed = call("keygen", tmp_path / "host.key").stdout
    result = call("pubkey", tmp_path / "host.key")
    assert (result.exit_code, result.stdout) == (0, printed)


def test_pubkey_of_what_is_no_key(tmp_path: Path) -> None:
    file = tmp_path / "host.key"
    assert (
        refusal(call("pubkey", file), 78) == f"{file} cannot be read: No such file or directory\n"
    )
    file.write_text("precious")
    said = refusal(call("pubkey", file), 78)
    assert said == f"{file}: this is no private key in PEM form (PKCS #8)\n"


def test_keygen_never_overwrites(tmp_path: Path) -> None:
    file = tmp_path / "host.key"
    file.write_text("precious")
    assert refusal(call("keygen", file), 73) == f"{file} is there already, and is not overwritten\n"
    assert file.read_text() == "precious"


def test_keygen_follows_no_symbolic_link(tmp_path: Path) -> None:
    file = tmp_path / "host.key"
    file.symlink_to(tmp_path / "elsewhere")
    refusal(call("keygen", file), 73)
    assert not (tmp_path / "elsewhere").exists()


def test_keygen_where_nothing_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refusal(call("keygen", tmp_path / "file" / "host.key"), 73)


def test_keygen_does_not_trust_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        call("keygen", tmp_path / "host.key")
    finally:
        os.umask(old)
    assert mode(tmp_path / "host.key") == 0o600


def test_a_key_is_on_the_disk_before_its_public_key_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, int]] = []
    sync = os.fsync

    def fsync(fd: int) -> None:
        synced.append((os.fstat(fd).st_ino, os.fstat(fd).st_size))
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    assert call("keygen", tmp_path / "host.key").exit_code == 0
    file = (tmp_path / "host.key").stat()
    assert synced[0] == (file.st_ino, file.st_size)
    assert [inode for inode, _ in synced[1:]] == [tmp_path.stat().st_ino]


def test_passwd() -> None:
    result = call("passwd", "alice", "--password", "secret")
    users, problems = parse_users(result.stdout)
    assert not problems
    assert verify_password("secret", users["alice"])
    assert "secret" not in result.output


def test_passwd_asks() -> None:
    result = call("passwd", "alice", input="secret\nsecret\n")
    assert result.exit_code == 0
    assert "secret" not in result.output
    users, _ = parse_users(result.stdout.splitlines()[-1])
    assert verify_password("secret", users["alice"])


@pytest.mark.parametrize("typed", ["", "secret\n"])
def test_passwd_at_the_end_of_input(typed: str) -> None:
    result = call("passwd", "alice", input=typed)
    assert result.exit_code == 2
    assert "the input ended before the question was answered" in result.stderr


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "x" * 256])
def test_passwd_for_an_impossible_name(name: str) -> None:
    assert "a user name has" in refusal(call("passwd", name, "--password", "x"), 2)


@pytest.mark.parametrize("password", ["", "x" * 256])
def test_passwd_with_an_impossible_password(password: str) -> None:
    assert "1 to 255 bytes" in refusal(call("passwd", "alice", "--password", password), 2)


def test_pair(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "a" / "two"
    result = call("pair", "--gateway", one, "--endpoint", two, "--url", "http://192.0.2.1:8765/")
    assert result.exit_code == 0
    assert f"socks-tunnel run --config {one}/gateway.toml" in result.stdout

    gateway, endpoint = load(one / "gateway.toml"), load(two / "endpoint.toml")
    assert gateway.peers[0].public_key == PrivateIdentity.load(two / "endpoint.key").public_text
    assert endpoint.peers[0].public_key == PrivateIdentity.load(one / "gateway.key").public_text
    assert {mode(one / "gateway.key"), mode(two / "endpoint.key")} == {0o600}
    for file in (one / "gateway.toml", two / "endpoint.toml"):
        assert call("check-config", file).exit_code == 0


def test_pair_in_one_directory(tmp_path: Path) -> None:
    url = f"unix:{tmp_path}/signal.sock"
    assert call("pair", "--gateway", tmp_path, "--endpoint", tmp_path, "--url", url).exit_code == 0
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("name", ["gateway.toml", "gateway.key", "endpoint.toml", "endpoint.key"])
def test_pair_writes_all_or_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    result = call("pair", "--gateway", tmp_path, "--endpoint", tmp_path, "--url", "http://h/")
    assert refusal(result, 73) == f"{tmp_path / name} is there already, and is not overwritten\n"
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


def test_pair_with_a_bad_url(tmp_path: Path) -> None:
    result = call("pair", "--gateway", tmp_path, "--endpoint", tmp_path, "--url", "192.0.2.1:8765")
    assert "is none of http://HOST:PORT/" in refusal(result, 2)
    assert not list(tmp_path.iterdir())


# --- the policy -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "port", "exit_code", "said"),
    [
        ("192.0.2.1", 80, 0, "allowed: allowed_hosts: 192.0.2.0/24"),
        ("WWW.Internal.Corp.", 80, 0, "allowed: allowed_hosts: *.internal.corp"),
        ("192.0.2.1", 81, 1, "denied: allowed_ports: no match"),
        ("192.0.2.66", 80, 1, "denied: denied_hosts: 192.0.2.66"),
        ("198.51.100.1", 80, 1, "denied: no allowed_hosts rule"),
        ("[::1]", 80, 1, "denied: loopback address"),
    ],
)
def test_policy_without_a_look_up(
    endpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    port: int,
    exit_code: int,
    said: str,
) -> None:
    monkeypatch.delattr(socket, "getaddrinfo")
    result = call("policy", "test", "--config", endpoint, host, str(port))
    assert (result.exit_code, result.stdout) == (exit_code, said + "\n")


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[Any]:
    asked = []

    def getaddrinfo(host: str, port: int, *, type: int) -> list[Any]:  # noqa: A002 - its name
        asked.append((host, port, type))
        return [(0, type, 0, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_policy_of_a_name_whose_addresses_decide(
    endpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = resolve_to(
        monkeypatch, "198.51.100.1", "192.0.2.1", "192.0.2.1", "127.0.0.1", "fe80::1%eth0"
    )
    result = call("policy", "test", "--config", endpoint, "www.example.com", "80")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "allowed: allowed_hosts: 192.0.2.0/24",
        "  198.51.100.1: denied: no allowed_hosts rule",
        "  192.0.2.1: allowed: allowed_hosts: 192.0.2.0/24",
        "  127.0.0.1: denied: loopback address",
        "  fe80::1: denied: link-local address",
    ]
    assert asked == [("www.example.com", 80, socket.SOCK_STREAM)]


def test_policy_for_udp_looks_up_for_udp(endpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolve_to(monkeypatch, "198.51.100.1")
    result = call("policy", "test", "--config", endpoint, "--udp", "www.example.com", "80")
    assert result.exit_code == 1
    assert result.stdout.startswith("denied: ")
    assert asked == [("www.example.com", 80, socket.SOCK_DGRAM)]


def test_policy_of_a_name_that_cannot_be_looked_up(
    endpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    result = call("policy", "test", "--config", endpoint, "www.example.com", "80")
    assert "www.example.com cannot be looked up" in refusal(result, 69)


def test_policy_of_a_peer(endpoint: Path) -> None:
    def ask(peer: str, port: str) -> int:
        arguments = ["--peer", peer, "192.0.2.1", port]
        return call("policy", "test", "--config", endpoint, *arguments).exit_code

    assert (ask("laptop", "80"), ask("laptop", "22")) == (0, 1)
    assert (ask("workstation", "80"), ask("workstation", "22")) == (1, 0)
    assert ask("stranger", "80") == 2


def test_policy_of_a_gateway_without_one(gateway: Path) -> None:
    result = call("policy", "test", "--config", gateway, "192.0.2.1", "80")
    assert (result.exit_code, result.stdout) == (
        0,
        "allowed: this gateway has no policy; the endpoint decides\n",
    )


@pytest.mark.parametrize("arguments", [["a..b", "80"], ["host", "0"], ["host", "65536"], ["host"]])
def test_policy_usage(endpoint: Path, arguments: list[str]) -> None:
    refusal(call("policy", "test", "--config", endpoint, *arguments), 2)


def test_policy_with_a_bad_configuration(gateway: Path) -> None:
    gateway.write_text(gateway.read_text() + "x = 1\n")
    said = refusal(call("policy", "test", "--config", gateway, "host", "80"), 78)
    assert said.startswith(f"{gateway}:8: peers[0].x: unknown key")


# --- a running instance -----------------------------------------------------------------------

STATUS = {
    "instance": "office",
    "uptime": 12.25,
    "listen": ["127.0.0.1:1080", "[::1]:1080"],
    "links": [
        {"peer": "[red]a[/red]", "state": "up", "rtt_ms": 1.5, "flows": 12},
        {"peer": "b", "state": "connecting", "rtt_ms": None, "flows": 3},
    ],
    "workers": [],
    "counters": {"flows_tcp": 15, "ok": True},
}


class Instance:
    """What the commands find when they ask."""

    def __init__(self) -> None:
        self.asked: list[tuple[Path, Mapping[str, Any]]] = []
        self.answer: dict[str, Any] | OSError = {"ok": True, "result": STATUS}

    def request(self, path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append((path, fields))
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> Instance:
    instance = Instance()
    monkeypatch.setattr("socks_tunnel.supervisor.control_client.request", instance.request)
    return instance


def test_status(instance: Instance) -> None:
    result = call("status", "--socket", "/run/x.sock")
    assert result.exit_code == 0
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        "instance: office",
        "uptime: 12.25",
        "listen: 127.0.0.1:1080, [::1]:1080",
        "links: 2",
        "peer          state       rtt ms  flows",
        "[red]a[/red]  up             1.5     12",
        "b             connecting       -      3",
        "workers: 0",
        "counters: flows tcp 15, ok yes",
    ]
    assert instance.asked == [(Path("/run/x.sock"), {"op": "status"})]


def test_status_as_json(instance: Instance) -> None:
    import json

    assert json.loads(call("status", "--socket", "/run/x.sock", "--json").stdout) == STATUS


def test_connections(instance: Instance) -> None:
    flows = [{"peer": "office", "conn_id": 7, "destination": "[2001:db8::1]:443", "up": 1}]
    instance.answer = {"ok": True, "result": flows}
    lines = call("connections", "--socket", "/run/x.sock").stdout.splitlines()
    assert lines[0] == "flows: 1"
    assert lines[1].split() == ["peer", "conn", "id", "destination", "up"]
    assert lines[2].split() == ["office", "7", "[2001:db8::1]:443", "1"]
    assert call("connections", "--socket", "/x", "--json").stdout.startswith("[\n")
    instance.answer = {"ok": True, "result": []}
    assert call("connections", "--socket", "/x").stdout == "flows: 0\n"


def test_connections_have_columns_of_what_waits_only_while_a_flow_does(instance: Instance) -> None:
    linked = {"conn_id": 7, "linked": True, "waiting_since": None, "waiting_left": None}
    waits = {"conn_id": 8, "linked": False, "waiting_since": "2026-11-22T21:28:02+00:00"}
    waits["waiting_left"] = 3400
    instance.answer = {"ok": True, "result": [linked]}
    lines = call("connections", "--socket", "/x").stdout.splitlines()
    assert lines[1].split() == ["conn", "id", "linked"]
    assert '"waiting_left": null' in call("connections", "--socket", "/x", "--json").stdout
    instance.answer = {"ok": True, "result": [linked, waits]}
    lines = call("connections", "--socket", "/x").stdout.splitlines()
    assert lines[1].split()[3:] == ["waiting", "since", "waiting", "left"]
    assert lines[2].split() == ["7", "yes", "-", "-"]
    assert lines[3].split() == ["8", "no", "2026-11-22T21:28:02+00:00", "3400"]


def test_long_lines_are_not_cut_in_a_pipe(instance: Instance) -> None:
    name = "a" * 300 + ".example.com:443"
    instance.answer = {"ok": True, "result": [{"destination": name, "up": 1}]}
    assert name in call("connections", "--socket", "/x").stdout


def test_top_without_a_terminal(instance: Instance) -> None:
    assert "`socks-tunnel status --json`" in refusal(call("top", "--socket", "/x"), 2)
    assert instance.asked == []


def test_reload(instance: Instance) -> None:
    instance.answer = {"ok": True, "result": {"reloaded": True, "needs_restart": []}}
    assert call("reload", "--socket", "/x").stdout == "reloaded\n"
    instance.answer["result"]["needs_restart"] = ["socks.listen", "workers"]
    assert call("reload", "--socket", "/x").stdout.splitlines()[1] == (
        "changes that take effect with a restart: socks.listen, workers"
    )


def test_drain(instance: Instance) -> None:
    instance.answer = {"ok": True, "result": {"draining": True, "timeout": 1.5, "flows": 3}}
    assert call("drain", "--socket", "/x").stdout == "draining: 3 flows may go on for 1.5 s\n"
    call("drain", "--socket", "/x", "--timeout", "1.5")
    assert [fields for _, fields in instance.asked] == [
        {"op": "drain"},
        {"op": "drain", "timeout": 1.5},
    ]
    refusal(call("drain", "--socket", "/x", "--timeout", "-1"), 2)


def test_what_the_instance_refuses(instance: Instance) -> None:
    instance.answer = {"ok": False, "error": "the instance is draining"}
    assert refusal(call("reload", "--socket", "/x"), 1) == "refused: the instance is draining\n"


def test_an_instance_that_does_not_answer(instance: Instance) -> None:
    instance.answer = ConnectionRefusedError(111, "Connection refused")
    assert refusal(call("status", "--socket", "/run/x.sock"), 69) == (
        "no instance answers on /run/x.sock: Connection refused\n"
    )
    instance.answer = TimeoutError("timed out")
    assert refusal(call("status", "--socket", "/x"), 69).endswith(": timed out\n")


def test_how_an_instance_is_found(
    instance: Instance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("socks_tunnel.config.paths.SYSTEM_DIRECTORY", tmp_path / "system")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))

    assert refusal(call("status"), 69).startswith("no instance runs on this host; ")

    def start(name: str) -> Path:
        path = tmp_path / "socks-tunnel" / name / "control.sock"
        path.parent.mkdir(parents=True)
        path.touch()
        return path

    office = start("office")
    assert call("status").exit_code == 0
    branch = start("branch")
    assert "name one with --instance: branch, office" in refusal(call("status"), 2)
    assert call("status", "--instance", "branch").exit_code == 0
    call("status", "--instance", "unknown")
    assert [path for path, _ in instance.asked] == [
        office,
        branch,
        tmp_path / "system" / "unknown" / "control.sock",
    ]
    refusal(call("status", "--instance", "a/b"), 2)
    refusal(call("status", "--instance", "office", "--socket", "/x"), 2)


# --- version ----------------------------------------------------------------------------------


def test_version() -> None:
    lines = call("version").stdout.splitlines()
    assert [line.split(":")[0].strip() for line in lines if line.endswith(" active")] == [
        "event loop",
        "msgpack",
        "SCTP checksum",
    ]
    said = dict(line.split(maxsplit=1) for line in lines if line != "accelerations:")
    assert said["socks-tunnel"] == socks_tunnel.__version__
    assert said["Python"].startswith("3.")
    assert said["aiortc"].startswith("1.")
    assert said["OpenSSL"][0].isdigit()
    assert {"aioice", "uvloop"} <= set(said)
    assert not any("NOT active" in line for line in lines)
