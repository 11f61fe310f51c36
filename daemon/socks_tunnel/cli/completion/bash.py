"""The completion script for bash: tables of the commands, and one function that walks the line."""

import shlex
from collections.abc import Iterator

from socks_tunnel.cli.completion.template import fill
from socks_tunnel.cli.completion.tree import Node, Places


def write(root: Node, places: Places) -> str:
    """Returns the script."""
    return fill(
        "bash",
        commands="\n".join(f"    {line}" for line in _commands(root)),
        values="\n".join(f"    {line}" for line in _values(root)),
        configurations=shlex.quote(places.configurations),
        runtime=shlex.quote(places.runtime),
        socket=places.control_socket,
    )


def _commands(root: Node) -> Iterator[str]:
    for node in root.walk():
        options = "\n".join(
            ("* " if option.repeats else "") + " ".join(option.names) for option in node.options
        )
        below = "".join(f" {command.path[-1]}" for command in node.commands)
        yield (
            f"{_path(node)}) options={shlex.quote(options)} "
            f"commands={shlex.quote(below and below + ' ')} ;;"
        )


def _values(root: Node) -> Iterator[str]:
    for node in root.walk():
        for where, value in node.values():
            choices = " ".join(map(shlex.quote, value.choices))
            yield f"{_path(node, where)}) kind={value.kind} words=({choices}) ;;"


def _path(node: Node, *further: str) -> str:
    return shlex.quote("".join(f" {word}" for word in (*node.path, *further)))
