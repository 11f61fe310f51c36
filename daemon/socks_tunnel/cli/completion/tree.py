"""What can be completed, read from the commands themselves: the input of the scripts' writers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import click

from socks_tunnel.cli import asking
from socks_tunnel.config import paths

Kind = Literal["nothing", "choice", "file", "instance", "asked", "command"]
"""What stands in a value's place. `asked`: names that only the program knows. `command`: a command
line of its own."""


@dataclass(frozen=True, slots=True)
class Value:
    """What an option takes, or what an argument is."""

    name: str
    kind: Kind
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Option:
    """An option: `names` mean the same, or the opposite of each other."""

    names: tuple[str, ...]
    help: str
    value: Value | None
    repeats: bool


@dataclass(frozen=True, slots=True)
class Node:
    """A command. `path` has the words that lead to it, without the program's name."""

    path: tuple[str, ...]
    help: str
    options: tuple[Option, ...]
    arguments: tuple[Value, ...]
    commands: "tuple[Node, ...]"

    def walk(self) -> "Iterator[Node]":
        """Yields this command and all below it."""
        yield self
        for command in self.commands:
            yield from command.walk()

    def values(self) -> Iterator[tuple[str, Value]]:
        """Yields each option that takes a value, by its name, and each argument, by its number."""
        for option in self.options:
            if option.value is not None:
                for name in option.names:
                    yield name, option.value
        for number, argument in enumerate(self.arguments):
            yield str(number), argument


@dataclass(frozen=True, slots=True)
class Places:
    """Where a script looks for instances."""

    configurations: str
    """The directory of the host's configurations."""

    runtime: str
    """The directory with a directory for each running instance of the host."""

    control_socket: str
    """The name of the control socket in the directory of a running instance."""

    @staticmethod
    def of_this_host() -> "Places":
        """Returns the places that the commands themselves use."""
        return Places(str(asking.CONFIGURATIONS), str(paths.SYSTEM_DIRECTORY), paths.CONTROL_SOCKET)


def read(command: click.Command) -> Node:
    """Returns a command with all below it."""
    return _read(command, click.Context(command, **command.context_settings), ())


def _read(command: click.Command, context: click.Context, path: tuple[str, ...]) -> Node:
    below = []
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None, "it is in the list"
            if not found.hidden:
                inner = click.Context(found, context, name, **found.context_settings)
                below.append(_read(found, inner, (*path, name)))
    parameters = command.get_params(context)
    options = [p for p in parameters if isinstance(p, click.Option) and not p.hidden]
    return Node(
        path,
        _sentence(command.get_short_help_str(limit=1000)),
        tuple(map(_option, options)),
        tuple(_value(p) for p in parameters if isinstance(p, click.Argument)),
        tuple(below),
    )


def _option(option: click.Option) -> Option:
    return Option(
        (*option.opts, *option.secondary_opts),
        _sentence(option.help or ""),
        None if option.is_flag or option.count else _value(option),
        option.multiple,
    )


def _value(parameter: click.Parameter) -> Value:
    name = parameter.metavar or (parameter.name or "").upper()
    # click has no public name for it.
    custom = parameter._custom_shell_complete  # noqa: SLF001
    if custom is not None:
        return Value(name, "instance" if custom is asking.complete_instance else "asked")
    if isinstance(parameter.type, click.Choice):
        return Value(name, "choice", tuple(map(str, parameter.type.choices)))
    if isinstance(parameter.type, click.Path | click.File):
        return Value(name, "file")
    if parameter.type is click.UNPROCESSED:
        return Value(name, "command")
    return Value(name, "nothing")


def _sentence(text: str) -> str:
    """Returns a help text on one line, without the full stop of a single sentence."""
    line = " ".join(text.split())
    return line.removesuffix(".")
