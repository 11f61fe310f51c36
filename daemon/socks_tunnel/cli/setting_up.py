"""`setup`: makes a fresh host an endpoint that others can join."""

from pathlib import Path

import click

from socks_tunnel.cli.asking import CONFIGURATIONS
from socks_tunnel.cli.frame import FILE_PATH, CannotCreate, Misconfigured
from socks_tunnel.cli.preparing import create

PORTS = ("22", "53", "80", "443")


@click.command()
@click.argument("url")
@click.option(
    "--allow",
    "hosts",
    multiple=True,
    required=True,
    metavar="RULE",
    help="What may be reached, as 10.77.0.0/16 or *.internal.corp; may be given several times.",
)
@click.option(
    "--port",
    "ports",
    multiple=True,
    default=PORTS,
    show_default=True,
    metavar="PORT",
    help="Ports that may be reached; may be given several times.",
)
@click.option(
    "--config",
    type=FILE_PATH,
    default=CONFIGURATIONS / "endpoint.toml",
    show_default=True,
    metavar="FILE",
    help="The configuration to write; the key is written beside it.",
)
@click.option("--tls-ca", type=FILE_PATH, help="CA certificates for the service (PEM).")
@click.option("--no-start", is_flag=True, help="Only write the files.")
def setup(
    url: str,
    *,
    hosts: tuple[str, ...],
    ports: tuple[str, ...],
    config: Path,
    tls_ca: Path | None,
    no_start: bool,
) -> None:
    """Make this host an endpoint, start it, and print how another host joins it.

    URL is a rendezvous service (wss://HOST:PORT/).
    """
    from socks_tunnel.cli import starting
    from socks_tunnel.config import pairing
    from socks_tunnel.signaling.identity import PrivateIdentity

    if not no_start and (why := starting.why_not_started(config)):
        raise click.UsageError(f"it cannot be started: {why}; use --no-start")
    key_file = config.with_suffix(".key")
    try:
        written = pairing.meeting(
            url,
            key_file=key_file.name,
            tls_ca=tls_ca and tls_ca.absolute(),
            hosts=hosts,
            ports=ports,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if config.exists():
        raise CannotCreate(f"{config} is there already; another --config?")
    identity = PrivateIdentity.generate()
    files = {config: written.encode()}
    if key_file.exists():
        try:
            identity = PrivateIdentity.load(key_file)
        except (OSError, ValueError) as error:
            raise Misconfigured(f"{key_file}: {error}") from None
    else:
        files[key_file] = identity.to_pem()
    create(files)
    for file in files:
        click.echo(f"wrote {file}")
    click.echo(f"this host's key, where the service lists keys: {identity.public_text}")
    if no_start:
        click.echo(f"start it: socks-tunnel run --config {config}")
        return
    starting.start(config)
    token = starting.ask_when_it_runs(config, {"op": "invite"})["token"]
    click.echo("it runs. On the host that joins, within a day:")
    click.echo(f"socks-tunnel join {url} --start --token {token}")
