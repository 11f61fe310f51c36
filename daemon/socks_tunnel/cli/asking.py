"""How a command finds a running instance and asks it."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from socks_tunnel.cli.frame import FILE_PATH, Failure, Unavailable
from socks_tunnel.client import instances
from socks_tunnel.config import paths
from socks_tunnel.ops.files import read_whole
from socks_tunnel.supervisor import control_client

NO_INSTANCE: Final = "no instance runs on this host"

_F = TypeVar("_F", bound=Callable[..., Any])


CONFIGURATIONS: Final = Path("/etc/socks-tunnel")
"""Where the configurations of the host's instances are."""


def complete_instance(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Returns the names of instances that run or are configured, for the shell's completion."""
    del ctx, param
    running = paths.running_instances()
    configured = {path.stem for path in CONFIGURATIONS.glob("*.toml")}
    return [
        CompletionItem(name, help="running" if name in running else "configured")
        for name in sorted({*running, *configured})
        if name.startswith(incomplete)
    ]


def complete_peer(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Returns the names of peers, of a configuration or of a running instance."""
    del param
    rows = _answer_for_completion(ctx, "status").get("links", [])
    names = {row["peer"] for row in rows}
    if config := ctx.params.get("config_file"):
        names |= _peers_in(Path(config))
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]


def _peers_in(config: Path) -> set[str]:
    """Returns the names of the peers in a file; no names if it is half written or cannot be read.

    No error may be printed into a command line that is being typed. `check-config` shows it.
    """
    try:
        rows = tomllib.loads(read_whole(config).decode("utf-8")).get("peers")
    except (OSError, ValueError):
        return set()
    if not isinstance(rows, list):
        return set()
    names = [row.get("name") for row in rows if isinstance(row, dict)]
    return {name for name in names if isinstance(name, str)}


def complete_flow(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Returns the names of live flows, each with its client and its destination."""
    del param
    rows = _answer_for_completion(ctx, "connections").get("flows", [])
    return [
        CompletionItem(name, help=f"{row['client']} to {row['destination'] or row['command']}")
        for row in rows
        if (name := f"{row['peer']}/{row['conn_id']}").startswith(incomplete)
    ]


def _answer_for_completion(ctx: click.Context, op: str) -> dict[str, Any]:
    """Returns the answer of the instance that is meant, or nothing.

    Completion cannot show an error.
    """
    try:
        path = path_of(ctx.params.get("instance"), ctx.params.get("socket_path"))
        result = control_client.request(path, {"op": op}).get("result")
    except (OSError, click.ClickException):
        return {}
    return {"flows": result} if isinstance(result, list) else result or {}


def of_instance(command: _F) -> _F:
    """Adds the options that name a running instance."""
    command = click.option(
        "--socket", "socket_path", type=FILE_PATH, help="Control socket of the instance."
    )(command)
    return click.option(
        "--instance",
        metavar="NAME",
        help="Name of the instance: that of its configuration file, without .toml.",
        shell_complete=complete_instance,
    )(command)


def ask(instance: str | None, socket_path: Path | None, fields: dict[str, Any]) -> Any:
    """Asks a running instance and returns its result.

    Raises :class:`Unavailable` if none answers, :class:`Failure` if it refuses.
    """
    path = path_of(instance, socket_path)
    try:
        answer = control_client.request(path, fields)
    except OSError as error:
        raise no_answer(path, error) from None
    if not answer.get("ok"):
        raise Failure(f"refused: {answer.get('error', 'no reason given')}")
    return answer.get("result")


def path_of(instance: str | None, socket_path: Path | None) -> Path:
    """Returns the control socket that the two options name."""
    if instance is not None and socket_path is not None:
        raise click.UsageError("--instance and --socket exclude each other")
    return socket_path or _control_socket(instance)


def control_socket_if_any(instance: str | None, socket_path: Path | None) -> Path | None:
    """Returns what :func:`path_of` returns, or None if no instance is named and none runs."""
    if instance is None and socket_path is None and not paths.running_instances():
        return None
    return path_of(instance, socket_path)


def no_answer(path: Path, error: OSError) -> Unavailable:
    """Returns the exception for a command whose instance does not answer."""
    if isinstance(error, PermissionError):
        return Unavailable(instances.may_not_ask(path))
    return Unavailable(f"no instance answers on {path}: {error.strerror or error}")


def _control_socket(instance: str | None) -> Path:
    """Returns the control socket of the named instance, or of the only one that runs."""
    if instance is not None:
        try:
            directory = paths.runtime_directory(instance, create=False)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--instance") from None
        return paths.control_socket(directory)
    running = paths.running_instances()
    if not running:
        if hidden := paths.hidden_instances():
            names = ", ".join(sorted(hidden))
            raise Unavailable(f"{NO_INSTANCE} that you may ask; use sudo for: {names}")
        raise Unavailable(
            f"{NO_INSTANCE}; if one runs elsewhere, name its control socket with --socket"
        )
    if len(running) > 1:
        names = ", ".join(sorted(running))
        raise click.UsageError(f"several instances run; name one with --instance: {names}")
    return next(iter(running.values()))
