"""Commands that ask the routes of a gateway."""

from pathlib import Path

import click

from socks_tunnel.cli.frame import FILE_PATH, Failure
from socks_tunnel.config import loader
from socks_tunnel.config.for_workers import route_settings
from socks_tunnel.protocol.addresses import canonical_host, parse_ip
from socks_tunnel.protocol.routes import RouteTable


@click.group()
def route() -> None:
    """Ask the routes."""


@route.command("test")
@click.option("--config", "config_file", type=FILE_PATH, required=True, metavar="FILE")
@click.option("--udp", is_flag=True, help="Ask for a datagram to HOST PORT.")
@click.argument("host")
@click.argument("port", type=click.IntRange(1, 65535))
@click.pass_context
def route_test(ctx: click.Context, config_file: Path, host: str, port: int, *, udp: bool) -> None:
    """Say through which peer HOST PORT is reached, and by which route.

    Routes are the same for TCP and UDP. HOST is not looked up: a gateway resolves no names. Which
    of several peers works at the moment, `socks-tunnel status` shows.
    """
    config = loader.load(config_file)
    if config.role != "gateway":
        raise click.BadParameter("an endpoint has no routes", param_hint="--config")
    try:
        host = canonical_host(host)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="HOST") from None
    settings = route_settings(config)
    table = RouteTable.parse(settings)
    what = f"{'a datagram to ' if udp else ''}{host} port {port}"
    match = table.match(host, port)
    if match is None:
        click.echo(f"no route: {what} is refused")
    else:
        chosen = settings[match.number]
        peers = chosen.peers or tuple(peer.name for peer in config.peers)
        click.echo(", ".join(peers))
        rule = f"{chosen.name} ({match.host_rule}; {match.port_rule})"
        click.echo(f"  {what}: by {rule}, the first route that has it")
        if len(peers) > 1:
            click.echo(f"  of several peers that work: {_POLICIES[chosen.policy]}")
    for number, earlier in enumerate(table.routes[: None if match is None else match.number]):
        if earlier.host_rule(host) is None:
            why = "none of its hosts is this one"
            if parse_ip(host) is None and earlier.hosts.networks:
                why += "; a name is not looked up, so ranges of addresses do not have it"
        else:
            why = f"its ports do not have {port}"
        click.echo(f"  not by {settings[number].name}: {why}")
    if match is None:
        ctx.exit(Failure.exit_code)


_POLICIES = {
    "first": "the first one in this order",
    "least-loaded": "the one with the fewest flows",
    "nearest": "the one with the shortest round trip",
}
