"""What all commands share: exceptions with their exit codes, and the group that finds a command.

The table of commands is in :mod:`socks_tunnel.cli`. A command's module is imported when the command
is used, so that `socks-tunnel nc` does not wait for the libraries of `run`.
"""

import contextlib
import math
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Final

import click

from socks_tunnel.config.errors import ConfigError

EXIT_USAGE: Final = 2
EXIT_UNAVAILABLE: Final = 69
EXIT_BUG: Final = 70
EXIT_CANNOT_CREATE: Final = 73
EXIT_CONFIG: Final = 78

FILE_PATH: Final = click.Path(path_type=Path, readable=False)
"""What reads the file says why it cannot, in the words and with the exit code of its command."""


class Seconds(click.FloatRange):
    """An option in seconds.

    It must be finite and not negative: a wait of `nan` seconds would never end.
    """

    def __init__(self, *, min_open: bool = False) -> None:
        """With `min_open`, it must not be zero either."""
        super().__init__(min=0, min_open=min_open)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Returns the number of seconds. Fails if the value is not such a number."""
        seconds = float(super().convert(value, param, ctx))
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return seconds


class Failure(click.ClickException):
    """Ends the command with a sentence, or several lines, on standard error: a negative answer."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        """Prints the sentence on standard error. Where that is full, the exit code has to do."""
        with contextlib.suppress(OSError):
            click.echo(self.format_message(), file=file, err=True)


class Unavailable(Failure):
    """A peer or service cannot be reached."""

    exit_code = EXIT_UNAVAILABLE


class CannotCreate(Failure):
    """A file cannot be made."""

    exit_code = EXIT_CANNOT_CREATE


class Misconfigured(Failure):
    """The configuration has mistakes."""

    exit_code = EXIT_CONFIG


class LazyGroup(click.Group):
    """A group of commands that are imported when they are used.

    `table` maps the name of a command to `module:attribute`.
    """

    def __init__(self, *args: Any, table: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names of all commands, sorted."""
        del ctx
        return sorted(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Returns a command, or None if no command has that name."""
        del ctx
        where = self._table.get(cmd_name)
        if where is None:
            return None
        module, _, attribute = where.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Returns the command that the arguments name. The error for none names the nearest."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            nearest = get_close_matches(args[0], self._table, n=1)
            if not nearest:
                raise
            message = f"{error.message} The nearest command is {nearest[0]!r}."
            raise click.UsageError(message, error.ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the commands with their first sentences, which are wrapped and not cut off."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            assert command is not None, "it is in the table"
            rows.append((name, command.get_short_help_str(limit=1000)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; mistakes in a configuration end it with exit code 78."""
        try:
            return super().invoke(ctx)
        except click.Abort as error:
            if isinstance(error.__context__, EOFError):  # not Ctrl-C, which needs no explanation
                raise click.UsageError("the input ended before the question was answered") from None
            raise
        except ConfigError as error:
            raise Misconfigured(str(error)) from None
