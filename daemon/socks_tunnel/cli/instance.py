"""Commands that ask a running instance, or tell it something."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from socks_tunnel.cli.asking import ask, complete_flow, no_answer, of_instance, path_of
from socks_tunnel.cli.frame import Seconds
from socks_tunnel.cli.showing import show
from socks_tunnel.client import selecting
from socks_tunnel.client.progress import Progress, follow

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@of_instance
@json_option
def status(instance: str | None, socket_path: Path | None, *, as_json: bool) -> None:
    """Show links, workers, flows and counters."""
    show(ask(instance, socket_path, {"op": "status"}), as_json=as_json)


@click.command()
@of_instance
@json_option
@click.option(
    "--sort",
    type=click.Choice(selecting.orders()),
    metavar="KEY",
    help=f"By {', '.join((*selecting.NUMBERS, *selecting.TEXTS))}; a - before it reverses it.",
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="FIELD=PATTERN",
    help=f"Only flows that match: {', '.join(selecting.FIELDS)}; or a text that they contain.",
)
def connections(
    instance: str | None,
    socket_path: Path | None,
    sort: str | None,
    filters: Sequence[str],
    *,
    as_json: bool,
) -> None:
    """Show each live flow."""
    rows = ask(instance, socket_path, {"op": "connections"})
    try:
        flows = selecting.ordered(selecting.matching(rows, filters), sort)
    except selecting.FilterError as error:
        raise click.BadParameter(str(error), param_hint="--filter") from None
    show(flows if as_json else {"flows": _without_waits(flows)}, as_json=as_json)


def _without_waits(flows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Returns the rows.

    Without a flow that waits for a link, the columns about waiting are left out.
    """
    if not all(row.get("linked", True) for row in flows):
        return flows
    return [{k: v for k, v in row.items() if not k.startswith("waiting_")} for row in flows]


@click.command()
@of_instance
@click.argument("flow", shell_complete=complete_flow)
def kill(instance: str | None, socket_path: Path | None, flow: str) -> None:
    """End FLOW at once, by a reset on both sides.

    FLOW is PEER/CONN_ID, as in office/17; both are columns of `connections`.
    """
    row = ask(instance, socket_path, {"op": "kill", "flow": flow})
    where = row["destination"] or row["command"]
    click.echo(
        f"ended {flow}: {row['client']} to {where}, {row['up']} bytes up, {row['down']} down"
    )


@click.command()
@of_instance
def top(instance: str | None, socket_path: Path | None) -> None:
    """Show links, workers and the busiest flows, live.

    Keys: q quits, s sorts flows by something else.
    """
    path = path_of(instance, socket_path)
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM") == "dumb":
        raise click.UsageError("top needs a terminal; `socks-tunnel status --json` does not")
    from socks_tunnel.top import watch

    try:
        watch.run(path)
    except OSError as error:
        raise no_answer(path, error) from None


@click.command()
@of_instance
def reload(instance: str | None, socket_path: Path | None) -> None:
    """Read the configuration again: policy, peers, log level."""
    result = ask(instance, socket_path, {"op": "reload"})
    click.echo("reloaded")
    if result.get("replacing"):
        keys = ", ".join(result["replacing"])
        click.echo(f"the program replaces itself, and keeps its flows, for changes to {keys}")
    if result["needs_restart"]:
        click.echo(f"changes that take effect with a restart: {', '.join(result['needs_restart'])}")


@click.command()
@of_instance
@click.option("--timeout", type=Seconds(), metavar="S", help="Seconds that flows have to end.")
@click.option("--wait/--no-wait", default=None, help="Wait until the instance has ended.")
def drain(
    instance: str | None, socket_path: Path | None, timeout: float | None, *, wait: bool | None
) -> None:
    """Take nothing new, let flows end, and stop.

    In a terminal, or with --wait, a line says how many flows are left until the instance has ended.
    """
    request: dict[str, Any] = {"op": "drain"}
    if timeout is not None:
        request["timeout"] = timeout
    result = ask(instance, socket_path, request)
    click.echo(f"draining: {result['flows']} flows may go on for {result['timeout']:g} s")
    if sys.stderr.isatty() if wait is None else wait:
        _follow_drain(path_of(instance, socket_path), result["timeout"])


def _follow_drain(path: Path, timeout: float) -> None:
    progress = Progress(sys.stderr)
    until = time.monotonic() + timeout
    followed = 0

    def describe(found: Mapping[str, Any]) -> str | None:
        nonlocal followed
        followed = followed or found["pid"]
        if found["pid"] != followed:
            return None  # the service manager has already started the next process
        left = max(until - time.monotonic(), 0)
        return f"draining: {found['flows']} flows left, for another {left:.0f} s at most"

    try:
        follow(path, progress, describe)
    except OSError as error:
        raise no_answer(path, error) from None
    progress.end("ended")
