"""Commands that ask the access policy."""

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from socks_tunnel.cli.asking import ask, complete_peer, control_socket_if_any, of_instance
from socks_tunnel.cli.frame import FILE_PATH, Failure, Unavailable
from socks_tunnel.client.policy_diff import Change, Comparison, Side
from socks_tunnel.client.selecting import flow_name
from socks_tunnel.config import loader
from socks_tunnel.config.settings import Config, Peer
from socks_tunnel.ops.audit_reading import oldest_first, records
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


# --- diff ---------------------------------------------------------------------------------------


@policy.command("diff")
@click.argument("old", type=FILE_PATH)
@click.argument("new", type=FILE_PATH)
@of_instance
@click.option(
    "--audit",
    "audit_files",
    type=FILE_PATH,
    multiple=True,
    metavar="FILE",
    help="Audit records, or a log that has them. Default: audit.file of OLD and its old copies.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def policy_diff(
    ctx: click.Context,
    old: Path,
    new: Path,
    instance: str | None,
    socket_path: Path | None,
    audit_files: Sequence[Path],
    *,
    as_json: bool,
) -> None:
    """Say what the policies of NEW would change, where those of OLD are in force.

    It looks at the open flows of the running instance and at the destinations that were asked for
    in the last day, also of hosts that have joined. Names are looked up, with this host's resolver,
    only if they alone do not decide. Exits with 1 if something would change.
    """
    before, after = loader.load(old), loader.load(new)
    control = control_socket_if_any(instance, socket_path)
    members = {} if control is None or before.role != "endpoint" else _members(control)
    comparison = Comparison(_side(before, members), _side(after, members), _addresses_of)
    _compare_flows(comparison, control)
    _compare_records(comparison, audit_files, before)
    changes = comparison.changes()
    if as_json:
        click.echo(json.dumps([_as_json(change) for change in changes], indent=2))
    else:
        _print_changes(comparison, changes)
    ctx.exit(Failure.exit_code if changes else 0)


def _members(control: Path) -> dict[str, str]:
    """Returns the hosts that have joined, with the names of their policies (empty: the default)."""
    return {row["name"]: row["tag"] for row in ask(None, control, {"op": "peers"})["peers"]}


def _side(config: Config, members: Mapping[str, str]) -> Side:
    """Returns the peers of a configuration, and those of the `members` whose policy it has."""
    listed = {peer.name for peer in config.peers}
    joined = [
        _peer(name, tag)
        for name, tag in members.items()
        if name not in listed and (not tag or tag in config.policies)
    ]
    whole = replace(config, peers=(*config.peers, *joined))
    return Side(build_policies(whole), frozenset(peer.name for peer in whole.peers))


def _peer(name: str, tag: str) -> Peer:
    """Returns a host that has joined, as a peer with the settings that policies need."""
    return Peer(
        name=name,
        public_key="",
        old_public_key=None,
        url=None,
        tls_ca=None,
        proxy=None,
        rendezvous=None,
        enrolment_file=None,
        policy=tag or None,
        weight=1,
    )


def _compare_flows(comparison: Comparison, path: Path | None) -> None:
    if path is None:
        click.echo("no instance runs on this host: no open flow is looked at", err=True)
        return
    for row in ask(None, path, {"op": "connections"}):
        comparison.flow(row)


def _compare_records(comparison: Comparison, files: Sequence[Path], config: Config) -> None:
    if not files:
        if config.audit.file is None:
            click.echo(
                "there is no audit.file: name a log with --audit, such as the output of "
                "journalctl --since=-1day --output=cat --unit=socks-tunnel@NAME",
                err=True,
            )
        else:
            files = oldest_first(config.audit.file)
    since = datetime.now(UTC) - timedelta(days=1)
    for file in files:
        try:
            for record in records(file):
                comparison.record(record, since)
        except OSError as error:
            raise Failure(f"{file} cannot be read: {error.strerror}") from None


def _as_json(change: Change) -> dict[str, Any]:
    return {
        "peer": change.peer,
        "destination": str(change.destination),
        "before": {"verdict": change.before.verdict, "rule": change.before.rule},
        "after": {"verdict": change.after.verdict, "rule": change.after.rule},
        "flows": [flow_name(row) for row in change.flows],
        "times": change.times,
    }


def _print_changes(comparison: Comparison, changes: Sequence[Change]) -> None:
    click.echo(f"{len(changes)} of {comparison.compared} destinations change")
    for change in changes:
        peer = change.peer or "any peer"
        click.echo(f"{change.destination} for {peer}: {change.before} -> {change.after}")
        if change.times:
            click.echo(f"  asked for {change.times} times in the last day")
        for row in change.flows:
            click.echo(f"  open: {flow_name(row)} of {row['client']}, for {row['seconds']:.0f} s")
    if comparison.associations:
        click.echo(
            f"{comparison.associations} UDP associations are open; their datagrams are judged one "
            "by one"
        )
    if comparison.left_out:
        click.echo(f"{comparison.left_out} further requests were not looked at")


def _addresses_of(destination: HostPort) -> list[IPAddress]:
    try:
        return _resolve(destination, socket.SOCK_STREAM)
    except Unavailable:
        return []


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
        why = f"and only its addresses decide: {error.strerror or error}"
        raise Unavailable(f"{destination.host} cannot be looked up, {why}") from None
    # The resolver gives a link-local address with its zone. Rules have no zones.
    literals = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
    return [address for address in map(parse_ip, literals) if address is not None]
