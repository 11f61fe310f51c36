"""Commands that ask a running instance, or tell it something."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from socks_tunnel.cli.asking import ask, no_answer, of_instance, path_of
from socks_tunnel.cli.showing import show

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
def connections(instance: str | None, socket_path: Path | None, *, as_json: bool) -> None:
    """Show each live flow."""
    flows = ask(instance, socket_path, {"op": "connections"})
    show(flows if as_json else {"flows": flows}, as_json=as_json)


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
    if result["needs_restart"]:
        click.echo(f"changes that take effect with a restart: {', '.join(result['needs_restart'])}")


@click.command()
@of_instance
@click.option("--timeout", type=click.FloatRange(0), metavar="S", help="Seconds that flows have.")
def drain(instance: str | None, socket_path: Path | None, timeout: float | None) -> None:
    """Take nothing new, let flows end, and stop."""
    request: dict[str, Any] = {"op": "drain"}
    if timeout is not None:
        request["timeout"] = timeout
    result = ask(instance, socket_path, request)
    click.echo(f"draining: {result['flows']} flows may go on for {result['timeout']:g} s")
