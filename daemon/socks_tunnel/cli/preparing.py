"""Commands that prepare an instance: its configuration, its keys, its users."""

import errno
import getpass
import os
import sys
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from socks_tunnel.cli.frame import FILE_PATH, CannotCreate, Misconfigured
from socks_tunnel.config import loader, pairing, users
from socks_tunnel.config.errors import ConfigError, Problem
from socks_tunnel.config.for_workers import route_settings
from socks_tunnel.config.settings import Config
from socks_tunnel.ops.files import write_new
from socks_tunnel.protocol.routes import RouteTable, shadowed


@click.command("check-config")
@click.argument("config_file", type=FILE_PATH, metavar="FILE")
@click.pass_context
def check_config(ctx: click.Context, config_file: Path) -> None:
    """Check a configuration file and all that it names."""
    try:
        config = loader.load(config_file)
        _check_key(config)
    except ConfigError as error:
        click.echo(str(error))
        ctx.exit(Misconfigured.exit_code)
    for warning in config.warnings:
        click.echo(f"warning: {warning}", err=True)
    signaling = config.signaling
    if signaling is not None and signaling.tls_certificate is not None:
        from socks_tunnel.signaling.tls import read_server_certificate

        certificate = read_server_certificate(signaling.tls_certificate, signaling.tls_key)
        if complaint := certificate.complaint(datetime.now(UTC)):
            click.echo(f"warning: {certificate.path} {complaint}", err=True)
    routes = route_settings(config)
    for number, earlier in shadowed(RouteTable.parse(routes)).items():
        taken = " and ".join(routes[each].name for each in earlier)
        click.echo(
            f"warning: the route {routes[number].name} never decides: {taken}, before it, "
            "takes all that it has",
            err=True,
        )
    names = ", ".join(peer.name for peer in config.peers)
    click.echo(f"{config_file}: this is a usable {config.role}, with the peers: {names}")


def _check_key(config: Config) -> None:
    """Raises :class:`ConfigError` if the private key of a configuration cannot be used."""
    from socks_tunnel.signaling.identity import PrivateIdentity

    path = config.identity.private_key_file
    assert path is not None, "the loader has found it"
    try:
        PrivateIdentity.load(path)
    except (OSError, ValueError) as error:
        key = "identity.private_key_file"
        raise ConfigError([Problem(config.source, None, key, f"{path}: {error}")]) from None


@click.command()
@click.argument("key_file", type=FILE_PATH, metavar="FILE")
def keygen(key_file: Path) -> None:
    """Write a new private key to FILE and print its public key."""
    from socks_tunnel.signaling.identity import PrivateIdentity

    identity = PrivateIdentity.generate()
    create({key_file: identity.to_pem()})
    click.echo(identity.public_text)


@click.command()
@click.argument("key_file", type=FILE_PATH, metavar="FILE")
def pubkey(key_file: Path) -> None:
    """Print the public key of the private key in FILE."""
    from socks_tunnel.signaling.identity import PrivateIdentity

    try:
        identity = PrivateIdentity.load(key_file)
    except OSError as error:
        raise Misconfigured(f"{key_file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise Misconfigured(f"{key_file}: {error}") from None
    click.echo(identity.public_text)


class _Passwd(click.Command):
    """`passwd`, which may get its password from a pipe."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Returns the context, with what was asked for.

        Python warns, with a line of its own source, where the echo cannot be switched off. In a
        pipe there is no echo.
        """
        with warnings.catch_warnings():
            if sys.stdin is None or not sys.stdin.isatty():
                warnings.simplefilter("ignore", getpass.GetPassWarning)
            return super().make_context(*args, **kwargs)


@click.command(cls=_Passwd)
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


@click.command()
@click.option("--gateway", type=FILE_PATH, required=True, metavar="DIR")
@click.option("--endpoint", type=FILE_PATH, required=True, metavar="DIR")
@click.option(
    "--url",
    required=True,
    help="Where the gateway finds the endpoint: http://HOST:PORT/, or unix:PATH on one host.",
)
def pair(gateway: Path, endpoint: Path, url: str) -> None:
    """Write a configuration and a key for each side, which name each other."""
    from socks_tunnel.signaling.identity import PrivateIdentity

    gateway_key, endpoint_key = PrivateIdentity.generate(), PrivateIdentity.generate()
    try:
        texts = pairing.pair(
            pairing.signaling_address(url, Path.cwd()),
            gateway_key=gateway_key.public_text,
            endpoint_key=endpoint_key.public_text,
        )
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--url") from None
    files = {
        gateway / "gateway.toml": texts.gateway.encode(),
        gateway / pairing.GATEWAY_KEY: gateway_key.to_pem(),
        endpoint / "endpoint.toml": texts.endpoint.encode(),
        endpoint / pairing.ENDPOINT_KEY: endpoint_key.to_pem(),
    }
    create(files)
    for file in files:
        click.echo(f"wrote {file}")
    click.echo(f"on the endpoint: socks-tunnel run --config {endpoint / 'endpoint.toml'}")
    click.echo(f"on the gateway:  socks-tunnel run --config {gateway / 'gateway.toml'}")


def create(files: Mapping[Path, bytes]) -> None:
    """Writes new files, either all or none.

    Only the owner can read keys. Raises :class:`CannotCreate`.
    """
    created: list[Path] = []
    for file, content in files.items():
        is_public = file.suffix == ".toml" or ".enrolment" in file.suffixes
        mode = 0o644 if is_public else 0o600
        try:
            _make_directory(file.parent)
            # It is synced, because its public key may already be in use elsewhere when the power
            # fails.
            write_new(file, content, mode)
            created.append(file)
        except OSError as error:
            for made in created:
                made.unlink(missing_ok=True)
            if isinstance(error, FileExistsError):
                raise CannotCreate(f"{file} is there already, and is not overwritten") from None
            raise CannotCreate(f"{file}: {error.strerror or error}") from None


def _make_directory(directory: Path) -> None:
    """Makes a directory, and those above it, if necessary. Raises :class:`OSError`."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        number = errno.ENOTDIR
        raise NotADirectoryError(number, os.strerror(number), str(directory)) from None
