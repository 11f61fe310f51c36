"""The command `socks-tunnel`.

Exit codes: 0 done, 1 a negative answer, 2 usage, 69 a peer or service cannot be reached, 70 a bug,
73 cannot create, 78 configuration (the numbers of sysexits.h).
"""

import json
import os
import platform
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import IO, Any, Final, NoReturn, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

import socks_tunnel
from socks_tunnel.config import loader, pairing, paths, users
from socks_tunnel.config.errors import ConfigError
from socks_tunnel.protocol.addresses import (
    HostPort,
    IPAddress,
    canonical_host,
    parse_host_port,
    parse_ip,
)
from socks_tunnel.protocol.policies import build_policies
from socks_tunnel.protocol.policy import Decision, Policy, Verdict

EXIT_BUG: Final = 70

_F = TypeVar("_F", bound=Callable[..., Any])

_path = click.Path(path_type=Path)


class _Failure(click.ClickException):
    """Ends the command with a sentence, or several lines, on standard error: a negative answer."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.format_message(), file=file, err=True)


class _Unavailable(_Failure):
    """A peer or service cannot be reached."""

    exit_code = 69


class _CannotCreate(_Failure):
    """A file cannot be made."""

    exit_code = 73


class _Misconfigured(_Failure):
    """The configuration has mistakes."""

    exit_code = 78


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise _Misconfigured(str(error)) from None


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    try:
        cli.main(prog_name="socks-tunnel")
    except Exception:  # noqa: BLE001 - the last resort, which reports it and ends the process
        traceback.print_exc()
        click.echo("socks-tunnel: this is a bug; please report it with the lines above", err=True)
        sys.exit(EXIT_BUG)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Reach a corporate network through SOCKS5 on loopback, over a WebRTC data channel."""


# --- running ----------------------------------------------------------------------------------


@cli.command()
@click.option("--config", "config_file", type=_path, required=True, metavar="FILE")
def run(config_file: Path) -> None:
    """Run one instance in the foreground."""
    from socks_tunnel.ops.process import leave
    from socks_tunnel.supervisor import main as supervisor

    leave(supervisor.run(config_file))


@cli.command()
@click.option("--config", "config_file", type=_path, required=True, metavar="FILE")
def rendezvous(config_file: Path) -> None:
    """Run the service through which hosts without an open port meet."""
    from socks_tunnel.ops.process import leave
    from socks_tunnel.rendezvous import main as service

    leave(service.run(config_file))


@cli.command()
@click.option("--listen", default="127.0.0.1:1080", show_default=True, metavar="ADDR:PORT")
@click.option("--policy", "policy_file", type=_path, metavar="FILE", help="JSON")
@click.option("--rendezvous", is_flag=True, help="both sides connect outwards only")
@click.pass_context
def demo(ctx: click.Context, listen: str, policy_file: Path | None, *, rendezvous: bool) -> None:
    """Run a gateway and an endpoint on loopback, with keys made on the fly."""
    from socks_tunnel.demo import demonstration

    try:
        address = parse_host_port(listen)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--listen") from None
    ctx.exit(demonstration.run(address, policy_file, rendezvous=rendezvous))


# --- preparing --------------------------------------------------------------------------------


@cli.command("check-config")
@click.argument("config_file", type=_path, metavar="FILE")
@click.pass_context
def check_config(ctx: click.Context, config_file: Path) -> None:
    """Check a configuration file and all that it names."""
    try:
        config = loader.load(config_file)
    except ConfigError as error:
        click.echo(str(error))
        ctx.exit(_Misconfigured.exit_code)
    signaling = config.signaling
    if signaling is not None and signaling.tls_certificate is not None:
        from socks_tunnel.signaling.tls import read_server_certificate

        certificate = read_server_certificate(signaling.tls_certificate, signaling.tls_key)
        if complaint := certificate.complaint(datetime.now(UTC)):
            click.echo(f"warning: {certificate.path} {complaint}", err=True)
    names = ", ".join(peer.name for peer in config.peers)
    click.echo(f"{config_file}: this is a usable {config.role}, with the peers: {names}")


@cli.command()
@click.argument("key_file", type=_path, metavar="FILE")
def keygen(key_file: Path) -> None:
    """Write a new private key to FILE and print its public key."""
    from socks_tunnel.signaling.identity import PrivateIdentity

    identity = PrivateIdentity.generate()
    _create({key_file: identity.to_pem()})
    click.echo(identity.public_text)


@cli.command()
@click.argument("key_file", type=_path, metavar="FILE")
def pubkey(key_file: Path) -> None:
    """Print the public key of the private key in FILE."""
    from socks_tunnel.signaling.identity import PrivateIdentity

    try:
        identity = PrivateIdentity.load(key_file)
    except OSError as error:
        raise _Misconfigured(f"{key_file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise _Misconfigured(f"{key_file}: {error}") from None
    click.echo(identity.public_text)


@cli.command()
@click.argument("name")
@click.password_option(help="Asked for if it is not given.")
def passwd(name: str, password: str) -> None:
    """Print a line for users_file: NAME and the hash of a password."""
    if ":" in name or not name.isprintable() or not 1 <= len(name.encode()) <= users.NAME_MAX:
        raise click.BadParameter("a user name has no colon and 1 to 255 bytes", param_hint="NAME")
    try:
        password_hash = users.hash_password(password)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    click.echo(f"{name}:{password_hash}")


@cli.command()
@click.option("--gateway", type=_path, required=True, metavar="DIR")
@click.option("--endpoint", type=_path, required=True, metavar="DIR")
@click.option(
    "--url",
    required=True,
    help="Where the gateway finds the endpoint: http://HOST:PORT/, or unix:PATH on one host.",
)
def pair(gateway: Path, endpoint: Path, url: str) -> None:
    """Write a configuration and a key for each side, which name each other."""
    from socks_tunnel.signaling.identity import PrivateIdentity

    try:
        signaling = pairing.signaling_address(url, Path.cwd())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--url") from None
    gateway_key, endpoint_key = PrivateIdentity.generate(), PrivateIdentity.generate()
    texts = pairing.pair(
        signaling,
        gateway_key=gateway_key.public_text,
        endpoint_key=endpoint_key.public_text,
    )
    files = {
        gateway / "gateway.toml": texts.gateway.encode(),
        gateway / pairing.GATEWAY_KEY: gateway_key.to_pem(),
        endpoint / "endpoint.toml": texts.endpoint.encode(),
        endpoint / pairing.ENDPOINT_KEY: endpoint_key.to_pem(),
    }
    _create(files)
    for file in files:
        click.echo(f"wrote {file}")
    click.echo(f"on the endpoint: socks-tunnel run --config {endpoint / 'endpoint.toml'}")
    click.echo(f"on the gateway:  socks-tunnel run --config {gateway / 'gateway.toml'}")


def _create(files: Mapping[Path, bytes]) -> None:
    """Write new files, all or none; keys for the owner only. Fails with exit code 73."""
    created: list[Path] = []
    for file, content in files.items():
        mode = 0o644 if file.suffix == ".toml" else 0o600
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # O_EXCL: what is there already is never overwritten, nor a symbolic link followed.
            fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            created.append(file)
            with os.fdopen(fd, "wb") as stream:
                stream.write(content)
        except OSError as error:
            for made in created:
                made.unlink(missing_ok=True)
            raise _CannotCreate(f"{file}: {error.strerror or error}") from None


# --- the policy -------------------------------------------------------------------------------


@cli.group()
def policy() -> None:
    """Ask the access policy."""


@policy.command("test")
@click.option("--config", "config_file", type=_path, required=True, metavar="FILE")
@click.option("--peer", metavar="NAME", help="Ask the policy for this peer.")
@click.option("--udp", is_flag=True, help="Ask for a datagram to HOST PORT.")
@click.argument("host")
@click.argument("port", type=click.IntRange(1, 65535))
@click.pass_context
def policy_test(
    ctx: click.Context, config_file: Path, peer: str | None, host: str, port: int, *, udp: bool
) -> None:
    """Say whether HOST PORT may be reached, and which rule decides that.

    Rules are the same for TCP and UDP. HOST is looked up, with this host's resolver, only if its
    name alone does not decide.
    """
    config = loader.load(config_file)
    policies = build_policies(config)
    if peer is not None and peer not in (p.name for p in config.peers):
        raise click.BadParameter(f"there is no peer {peer!r}", param_hint="--peer")
    try:
        destination = HostPort(canonical_host(host), port)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="HOST") from None
    rules = policies.default if peer is None else policies.for_peer(peer)
    if rules is None:
        click.echo("allowed: this gateway has no policy; the endpoint decides")
        return
    if not _explain(rules, destination, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM):
        ctx.exit(_Failure.exit_code)


def _explain(rules: Policy, destination: HostPort, kind: socket.SocketKind) -> bool:
    """Print the decision on `destination`; tell whether it is allowed."""
    decision = rules.check(destination)
    if decision.verdict is not Verdict.RESOLVE:
        _print_decision(decision)
        return decision.verdict is Verdict.ALLOWED
    addresses = _resolve(destination, kind)
    overall, _ = rules.choose(destination, addresses)
    _print_decision(overall)
    for address in addresses:
        of_address = rules.check_address(decision, address, destination.port)
        click.echo(f"  {address}: {of_address.verdict.value}: {of_address.rule}")
    return overall.verdict is Verdict.ALLOWED


def _print_decision(decision: Decision) -> None:
    click.echo(f"{decision.verdict.value}: {decision.rule}")


def _resolve(destination: HostPort, kind: socket.SocketKind) -> list[IPAddress]:
    try:
        found = socket.getaddrinfo(*destination, type=kind)
    except OSError as error:
        message = f"{destination.host} cannot be looked up, and only its addresses decide: {error}"
        raise _Unavailable(message) from None
    # A link-local address comes with its zone, which no rule has.
    literals = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
    return [address for address in map(parse_ip, literals) if address is not None]


# --- a running instance -----------------------------------------------------------------------


def _of_instance(command: _F) -> _F:
    """Add the options that name a running instance."""
    command = click.option("--socket", "socket_path", type=_path, help="Its control socket.")(
        command
    )
    return click.option("--instance", metavar="NAME", help="Its name: that of its file.")(command)


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@cli.command()
@_of_instance
@_json_option
def status(instance: str | None, socket_path: Path | None, *, as_json: bool) -> None:
    """Show links, workers, flows and counters."""
    _show(_request(instance, socket_path, {"op": "status"}), as_json=as_json)


@cli.command()
@_of_instance
@_json_option
def connections(instance: str | None, socket_path: Path | None, *, as_json: bool) -> None:
    """Show each live flow."""
    flows = _request(instance, socket_path, {"op": "connections"})
    _show(flows if as_json else {"flows": flows}, as_json=as_json)


@cli.command()
@_of_instance
def top(instance: str | None, socket_path: Path | None) -> None:
    """Show links, workers and the busiest flows, live.

    Keys: q quits, s sorts flows by something else.
    """
    path = _path_of(instance, socket_path)
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") == "dumb":
        raise click.UsageError("top needs a terminal; `socks-tunnel status --json` does not")
    from socks_tunnel.top import watch

    try:
        watch.run(path)
    except OSError as error:
        raise _no_answer(path, error) from None


@cli.command()
@_of_instance
def reload(instance: str | None, socket_path: Path | None) -> None:
    """Read the configuration again: policy, peers, log level."""
    result = _request(instance, socket_path, {"op": "reload"})
    click.echo("reloaded")
    if result["needs_restart"]:
        click.echo(f"changes that take effect with a restart: {', '.join(result['needs_restart'])}")


@cli.command()
@_of_instance
@click.option("--timeout", type=click.FloatRange(0), metavar="S", help="Seconds that flows have.")
def drain(instance: str | None, socket_path: Path | None, timeout: float | None) -> None:
    """Take nothing new, let flows end, and stop."""
    request: dict[str, Any] = {"op": "drain"}
    if timeout is not None:
        request["timeout"] = timeout
    result = _request(instance, socket_path, request)
    click.echo(f"draining: {result['flows']} flows may go on for {result['timeout']:g} s")


def _request(instance: str | None, socket_path: Path | None, fields: dict[str, Any]) -> Any:
    """Ask a running instance; give its result. Fails with exit code 69."""
    from socks_tunnel.supervisor import control_client

    path = _path_of(instance, socket_path)
    try:
        answer = control_client.request(path, fields)
    except OSError as error:
        raise _no_answer(path, error) from None
    if not answer.get("ok"):
        raise _Failure(f"refused: {answer.get('error', 'no reason given')}")
    return answer.get("result")


def _path_of(instance: str | None, socket_path: Path | None) -> Path:
    if instance is not None and socket_path is not None:
        raise click.UsageError("--instance and --socket exclude each other")
    return socket_path or _control_socket(instance)


def _no_answer(path: Path, error: OSError) -> _Unavailable:
    return _Unavailable(f"no instance answers on {path}: {error.strerror or error}")


def _control_socket(instance: str | None) -> Path:
    """Give the control socket of the instance; if none is named, of the only one that runs."""
    if instance is not None:
        try:
            directory = paths.runtime_directory(instance, create=False)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--instance") from None
        return paths.control_socket(directory)
    running = paths.running_instances()
    if not running:
        raise _Unavailable("no instance runs on this host")
    if len(running) > 1:
        raise click.UsageError(f"name one with --instance: {', '.join(sorted(running))}")
    return next(iter(running.values()))


def _show(result: dict[str, Any] | list[Any], *, as_json: bool) -> None:
    """Print a result: as JSON, or lists of objects as tables and the rest as lines."""
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # for grep and awk: a line for each row, nothing cut off
    for key, value in dict(result).items():
        title = key.replace("_", " ")
        if isinstance(value, list) and all(isinstance(row, dict) for row in value):
            console.print(Text(f"{title}: {len(value)}"))
            if value:
                console.print(_table(value))
        elif isinstance(value, dict):
            inner = (f"{name.replace('_', ' ')} {_cell(part)}" for name, part in value.items())
            console.print(Text(f"{title}: {', '.join(inner)}"))
        else:
            console.print(Text(f"{title}: {_cell(value)}"))


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        numeric = all(isinstance(row.get(name) or 0, int | float) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if numeric else "left")
    for row in rows:
        # Text, because a plain string would be read as rich's markup: "[::1]:80" is none.
        table.add_row(*(Text(_cell(row.get(name))) for name in names))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "-"
    return json.dumps(value) if isinstance(value, dict) else str(value)


# --- version ----------------------------------------------------------------------------------


@cli.command()
def version() -> None:
    """Print versions, and which accelerations are active."""
    from cryptography.hazmat.backends.openssl.backend import backend

    from socks_tunnel.ops.accelerations import accelerations
    from socks_tunnel.peer.select import fast_path_state

    click.echo(f"socks-tunnel {socks_tunnel.__version__}")
    click.echo(f"Python       {platform.python_version()} ({platform.python_implementation()})")
    for package in ("aiortc", "aioice", "uvloop", "pycares", "cryptography"):
        click.echo(f"{package:<12} {installed_version(package)}")
    # The library that cryptography brings, which is the one that does DTLS.
    click.echo(f"OpenSSL      {backend.openssl_version_text().removeprefix('OpenSSL ')}")
    click.echo("accelerations:")
    for what, active in accelerations():
        click.echo(f"  {what:<38} {'active' if active else 'NOT active: slower'}")
    click.echo(f"fast path:     {fast_path_state()}; transport.fast_path can switch it off")
