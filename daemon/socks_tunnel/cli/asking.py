"""How a command finds a running instance and asks it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from socks_tunnel.cli.frame import FILE_PATH, Failure, Unavailable
from socks_tunnel.config import paths
from socks_tunnel.supervisor import control_client

_F = TypeVar("_F", bound=Callable[..., Any])


def of_instance(command: _F) -> _F:
    """Adds the options that name a running instance."""
    command = click.option("--socket", "socket_path", type=FILE_PATH, help="Its control socket.")(
        command
    )
    return click.option("--instance", metavar="NAME", help="Its name: that of its file.")(command)


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


def no_answer(path: Path, error: OSError) -> Unavailable:
    """Returns the failure of a command whose instance does not answer."""
    return Unavailable(f"no instance answers on {path}: {error.strerror or error}")


def _control_socket(instance: str | None) -> Path:
    """Returns the control socket of the instance; if none is named, of the only one that runs."""
    if instance is not None:
        try:
            directory = paths.runtime_directory(instance, create=False)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--instance") from None
        return paths.control_socket(directory)
    running = paths.running_instances()
    if not running:
        raise Unavailable("no instance runs on this host")
    if len(running) > 1:
        raise click.UsageError(f"name one with --instance: {', '.join(sorted(running))}")
    return next(iter(running.values()))
