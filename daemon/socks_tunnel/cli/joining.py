"""Commands by which hosts join an endpoint."""

import asyncio
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import click

from socks_tunnel.cli.asking import ask, of_instance
from socks_tunnel.cli.frame import (
    FILE_PATH,
    CannotCreate,
    Failure,
    Misconfigured,
    Seconds,
    Unavailable,
)
from socks_tunnel.cli.instance import json_option
from socks_tunnel.cli.preparing import create
from socks_tunnel.cli.showing import show
from socks_tunnel.ops.files import rename, replace_whole

DAY = 86_400


@click.command()
@of_instance
@click.option("--tag", default="", help="Hosts that join get [policies.TAG]; without it: [policy].")
@click.option("--uses", default=1, show_default=True, help="Number of hosts that may join with it.")
@click.option("--expires", default=DAY, show_default=True, help="Seconds until it expires.")
@click.option("--lifetime", default=0, help="Seconds that a host may stay; 0: no limit.")
@click.option("--jwt", is_flag=True, help="Print the address for hosts that join with a JWT.")
def invite(instance: str | None, socket_path: Path | None, **fields: Any) -> None:
    """Print a token with which hosts may join this endpoint.

    Whoever has the token can join: hand it on as you would a password. An address is no secret:
    whoever has it needs a JWT of the identity provider as well.
    """
    result = ask(instance, socket_path, {"op": "invite", **fields})
    if fields["jwt"]:
        click.echo(result["address"])
        click.echo(f"for hosts with a JWT of {result['issuer']}", err=True)
        return
    click.echo(result["token"])
    click.echo(f"invitation {result['invitation']}", err=True)


@click.group(invoke_without_command=True)
@of_instance
@json_option
@click.pass_context
def peers(
    ctx: click.Context, instance: str | None, socket_path: Path | None, *, as_json: bool
) -> None:
    """Show who has joined this endpoint, who still may, and whose keys are revoked."""
    ctx.obj = instance, socket_path
    if ctx.invoked_subcommand is None:
        show(ask(instance, socket_path, {"op": "peers"}), as_json=as_json)


@peers.command()
@click.argument("name")
@click.pass_obj
def revoke(of: tuple[str | None, Path | None], name: str) -> None:
    """End the enrolment of the host NAME, its links and its flows. Its keys cannot join again."""
    result = ask(*of, {"op": "revoke", "name": name})
    click.echo(f"revoked: {name}")
    if "only_here" in result:
        click.echo(
            f"at this endpoint only: {result['only_here']} owns the list; revoke it there for all",
            err=True,
        )
    if "not_told" in result:
        click.echo(
            f"not told yet: {', '.join(result['not_told'])}; they are told when they are reached",
            err=True,
        )
    if "invitation" in result:
        click.echo(
            f"it had joined by the invitation {result['invitation']}, which is good for"
            f" {result['uses_left']} more; whoever has its token can join with another key."
            f" To end it: socks-tunnel peers withdraw {result['invitation']}",
            err=True,
        )


@peers.command()
@click.argument("name")
@click.pass_obj
def forget(of: tuple[str | None, Path | None], name: str) -> None:
    """Let a revoked key join again. NAME is the key, or its host's name for all keys of that."""
    for key in ask(*of, {"op": "forget", "name": name})["forgotten"]:
        click.echo(f"forgotten: {key}")


@peers.command()
@click.argument("invitation")
@click.pass_obj
def withdraw(of: tuple[str | None, Path | None], invitation: str) -> None:
    """End an invitation, so that nobody joins with it any more."""
    ask(*of, {"op": "withdraw", "invitation": invitation})
    click.echo(f"withdrawn: {invitation}")


@click.command()
@click.argument("url")
@click.option("--token", help="What `socks-tunnel invite` printed at the endpoint.")
@click.option("--jwt", type=click.File("rb"), help="JWT of the company's provider; - is stdin.")
@click.option("--address", help="With --jwt: what `socks-tunnel invite --jwt` printed there.")
@click.option("--renew", is_flag=True, help="Make another key for a host that has joined.")
@click.option(
    "--config",
    type=FILE_PATH,
    default=Path("/etc/socks-tunnel/gateway.toml"),
    show_default=True,
    metavar="FILE",
    help="The configuration to write; the key is written beside it.",
)
@click.option("--name", default=None, help="Name of this host there; default: its host name.")
@click.option("--tls-ca", type=FILE_PATH, help="CA certificates for the URL (PEM).")
@click.option("--proxy", help="HTTP proxy to use: http://USER:PASSWORD@HOST:PORT, or none.")
@click.option("--start", is_flag=True, help="Start the gateway too, and wait until its link is up.")
@click.option(
    "--timeout",
    type=Seconds(),
    default=60.0,
    show_default=True,
    metavar="S",
    help="Seconds for which to try.",
)
def join(
    url: str,
    *,
    token: str | None,
    jwt: IO[bytes] | None,
    address: str | None,
    renew: bool,
    config: Path,
    name: str | None,
    tls_ca: Path | None,
    proxy: str | None,
    start: bool,
    timeout: float,
) -> None:
    """Join the endpoint that invited this host, and write the gateway's configuration.

    URL is where the endpoint listens (http://HOST:PORT/), or a rendezvous service
    (wss://HOST:PORT/).
    """
    if [token is not None, jwt is not None, renew].count(True) != 1:
        raise click.UsageError("give one of --token, --jwt and --renew")
    if (jwt is None) != (address is None):
        raise click.UsageError("--jwt and --address go together")
    if start:
        from socks_tunnel.cli import starting

        if renew:
            raise click.UsageError("--renew and --start exclude each other")
        if why := starting.why_not_started(config):
            raise click.UsageError(f"--start: {why}")
    joiner = _Joiner(url, config, tls_ca and tls_ca.absolute(), proxy, timeout, start=start)
    if renew:
        joiner.renew()
    elif token is not None:
        joiner.join(token, name or socket.gethostname())
    else:
        assert jwt is not None
        assert address is not None
        joiner.join_by_jwt(jwt, address, name or socket.gethostname())


class _Joiner:
    """The part that both ways to join have in common."""

    def __init__(
        self,
        url: str,
        config: Path,
        tls_ca: Path | None,
        proxy: str | None,
        seconds: float,
        *,
        start: bool,
    ) -> None:
        self._start = start
        self._url = url
        self._config = config
        self._key_file = config.with_suffix(".key")
        self._enrolment_file = config.with_suffix(".enrolment")
        self._tls_ca = tls_ca
        self._proxy = proxy
        self._seconds = seconds

    def join(self, text: str, name: str) -> None:
        """Joins with a token."""
        from socks_tunnel.signaling.identity import public_key_text
        from socks_tunnel.signaling.joining import Token, new_request

        try:
            token = Token.parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--token") from None
        if self._config.exists():
            raise CannotCreate(f"{self._config} is there already; another --config?")
        written = self._configuration(public_key_text(token.endpoint))
        identity = self._own_key()
        sent, request = new_request(identity, token, name, time.time())
        self._finish(written, self._ask(sent, request, identity))

    def join_by_jwt(self, file: IO[bytes], address_text: str, name: str) -> None:
        """Joins with a token of an identity provider, for the first time or again."""
        from socks_tunnel.signaling.identity import public_key_text
        from socks_tunnel.signaling.joining import JWT_MAX
        from socks_tunnel.signaling.joining_jwt import JoinAddress, new_jwt_request

        try:
            address = JoinAddress.parse(address_text)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--address") from None
        endpoint = public_key_text(address.endpoint)
        again = self._config.exists()
        if again:
            self._check_same_endpoint(endpoint)
        written = self._configuration(endpoint)
        text = file.read(2 * JWT_MAX).decode("latin-1").strip()
        identity = self._own_key()
        try:
            sent, request = new_jwt_request(identity, address, name, text, time.time())
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--jwt") from None
        decided = self._ask(sent, request, identity)
        if again:
            self._replace_enrolment(decided.enrolment)
            self._tell(decided)
        else:
            self._finish(written, decided)

    def _configuration(self, endpoint_key: str) -> str:
        from socks_tunnel.config import pairing

        try:
            return pairing.joined(
                self._url,
                endpoint_key=endpoint_key,
                key_file=self._key_file.name,
                enrolment_file=self._enrolment_file.name,
                tls_ca=self._tls_ca,
                proxy=self._proxy,
            )
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="URL") from None

    def _check_same_endpoint(self, endpoint_key: str) -> None:
        """Checks that a configuration that is already there is that of a host that has joined."""
        from socks_tunnel.config.loader import load

        if not any(peer.public_key == endpoint_key for peer in load(self._config).peers):
            raise CannotCreate(f"{self._config} is there already; another --config?")

    def _finish(self, written: str, decided: Any) -> None:
        create({self._config: written.encode(), self._enrolment_file: decided.enrolment})
        self._tell(decided)
        click.echo(f"wrote {self._config}")
        if self._start:
            self._start_now()
        else:
            click.echo(f"start it: {self._how_to_start()}")

    def _start_now(self) -> None:
        from socks_tunnel.cli import starting
        from socks_tunnel.client import instances
        from socks_tunnel.config import paths

        starting.start(self._config)
        runtime = paths.runtime_directory(self._config.stem, create=False)
        try:
            instances.wait_for_link(lambda: paths.control_socket(runtime), self._seconds)
        except instances.InstanceError as error:
            raise Unavailable(
                f"it runs, but no link is up: {error}\nsocks-tunnel diagnose"
            ) from None
        click.echo("it runs, and the link is up: SOCKS5 and HTTP on 127.0.0.1:1080")

    def _replace_enrolment(self, enrolment: bytes) -> None:
        try:
            replace_whole(self._enrolment_file, enrolment, 0o644)
        except OSError as error:
            why = error.strerror or error
            raise CannotCreate(f"{self._enrolment_file}: {why}") from None

    def renew(self) -> None:
        """Replaces the key with which this host has joined by a new one."""
        from socks_tunnel.config.loader import load
        from socks_tunnel.signaling.identity import PrivateIdentity, parse_public_key
        from socks_tunnel.signaling.joining import new_renewal

        config = load(self._config)
        peer = next((p for p in config.peers if self._url in {p.url, p.rendezvous}), None)
        if peer is None:
            raise Misconfigured(f"{self._config} has no peer with the URL {self._url}")
        old = self._read_key()
        fresh_file = self._key_file.with_suffix(".key.new")
        fresh = PrivateIdentity.generate()
        if fresh_file.exists():  # an earlier attempt, whose answer may have been lost
            fresh = PrivateIdentity.load(fresh_file)
        else:
            create({fresh_file: fresh.to_pem()})
        sent, request = new_renewal(old, fresh, parse_public_key(peer.public_key), time.time())
        decided = self._ask(sent, request, old)
        self._replace_enrolment(decided.enrolment)
        try:
            rename(fresh_file, self._key_file)
        except OSError as error:
            raise CannotCreate(f"{self._key_file}: {error.strerror or error}") from None
        self._tell(decided)
        click.echo(f"{self._key_file} is another key; the old one is good for a day")
        click.echo("use it: socks-tunnel reload")

    def _own_key(self) -> Any:
        """Returns the key of this host. If there is none yet, a new one is made and written first.

        If the answer is lost, the next attempt uses the same key, so that it does not use up the
        token again.
        """
        from socks_tunnel.signaling.identity import PrivateIdentity

        if self._key_file.exists():
            return self._read_key()
        identity = PrivateIdentity.generate()
        create({self._key_file: identity.to_pem()})
        click.echo(f"wrote {self._key_file}")
        return identity

    def _read_key(self) -> Any:
        from socks_tunnel.signaling.identity import PrivateIdentity

        try:
            return PrivateIdentity.load(self._key_file)
        except (OSError, ValueError) as error:
            raise Misconfigured(f"{self._key_file}: {error}") from None

    def _ask(self, sent: bytes, request: Any, identity: Any) -> Any:
        from socks_tunnel.signaling.carrier import SignalingError, SignalingRefused
        from socks_tunnel.signaling.join_client import bring
        from socks_tunnel.signaling.joining import JoinRejected, NotJoined, open_answer

        try:
            answer = asyncio.run(
                bring(
                    sent,
                    request.to,
                    self._url,
                    identity,
                    ca=self._tls_ca,
                    proxy=self._proxy,
                    seconds=self._seconds,
                )
            )
            decided = open_answer(answer, request)
        except SignalingRefused as error:
            raise Failure(f"not joined: {error}") from None
        except SignalingError as error:
            raise Unavailable(f"not joined: {error}") from None
        except JoinRejected as error:
            raise Failure(f"not joined: what came as the answer of {self._url}: {error}") from None
        if isinstance(decided, NotJoined):
            raise Failure(f"not joined: {decided.reason}")
        return decided

    def _tell(self, decided: Any) -> None:
        until = ""
        if decided.until:
            until = (
                f", until {datetime.fromtimestamp(decided.until).astimezone():%Y-%m-%d %H:%M %Z}"
            )
        tag = f" with the tag {decided.tag}" if decided.tag else ""
        click.echo(f"joined as {decided.name}{tag}{until}")

    def _how_to_start(self) -> str:
        if self._config.parent == Path("/etc/socks-tunnel"):
            return f"systemctl enable --now socks-tunnel@{self._config.stem}"
        return f"socks-tunnel run --config {self._config}"
