"""Commands that ask the access policy."""

import socket
from pathlib import Path

import click

from socks_tunnel.cli.asking import complete_peer
from socks_tunnel.cli.frame import FILE_PATH, Failure, Unavailable
from socks_tunnel.config import loader
from socks_tunnel.protocol.addresses import HostPort, IPAddress, canonical_host, parse_ip
from socks_tunnel.protocol.policies import build_policies
from socks_tunnel.protocol.policy import Decision, Policy, Verdict


@click.group()
def policy() -> None:
    """Ask the access policy."""


@policy.command("test")
@click.option("--config", "config_file", type=FILE_PATH, required=True, metavar="FILE")
@click.option(
    "--peer",
    metavar="NAME",
    help="Ask the policy for this peer.",
    shell_complete=complete_peer,
)
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
        ctx.exit(Failure.exit_code)


def _explain(rules: Policy, destination: HostPort, kind: socket.SocketKind) -> bool:
    """Prints the decision on `destination`; returns whether it is allowed."""
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
        raise Unavailable(message) from None
    # A link-local address comes with its zone, which no rule has.
    literals = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
    return [address for address in map(parse_ip, literals) if address is not None]
