"""Commands that run something in the foreground: an instance, the rendezvous service, the demo."""

from pathlib import Path

import click

from socks_tunnel.cli.frame import FILE_PATH, Unavailable
from socks_tunnel.protocol.addresses import parse_host_port


@click.command()
@click.option("--config", "config_file", type=FILE_PATH, required=True, metavar="FILE")
@click.option("--private", is_flag=True, hidden=True, help="For `exec`: take no port of FILE.")
def run(config_file: Path, *, private: bool) -> None:
    """Run one instance in the foreground."""
    from socks_tunnel.config.reading import Reading

    # The file is read in another process, while this one imports the other modules.
    try:
        reading = Reading(config_file)
    except OSError as error:
        why = error.strerror or error
        raise Unavailable(f"no process can be started that reads {config_file}: {why}") from None
    from socks_tunnel.ops.process import leave
    from socks_tunnel.supervisor import main as supervisor

    leave(supervisor.run(reading, private=private))


@click.command()
@click.option("--config", "config_file", type=FILE_PATH, required=True, metavar="FILE")
def rendezvous(config_file: Path) -> None:
    """Run the service through which hosts without an open port meet."""
    from socks_tunnel.ops.process import leave
    from socks_tunnel.rendezvous import main as service

    leave(service.run(config_file))


@click.command()
@click.option("--listen", default="127.0.0.1:1080", show_default=True, metavar="ADDR:PORT")
@click.option("--policy", "policy_file", type=FILE_PATH, metavar="FILE", help="JSON")
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
