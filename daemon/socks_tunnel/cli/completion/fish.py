"""The completion script for fish: a line for each option, command and argument."""

from collections.abc import Iterator

from socks_tunnel.cli.completion.template import fill
from socks_tunnel.cli.completion.tree import Node, Option, Places, Value


def write(root: Node, places: Places) -> str:
    """Returns the script."""
    commands, valued, running = [], [], []
    for node in root.walk():
        path = " ".join(node.path)
        commands.append(path)
        for where, value in node.values():
            if where.startswith("-"):
                valued.append(f"{path} {where}")
            elif value.kind == "command":
                running.append(path)
    return fill(
        "fish",
        commands=" ".join(map(_quoted, filter(None, commands))),
        valued=" ".join(map(_quoted, valued)),
        running=" ".join(map(_quoted, running)),
        lines="\n".join(line for node in root.walk() for line in _lines(node)),
        configurations=_quoted(places.configurations),
        runtime=_quoted(places.runtime),
        socket=places.control_socket,
    )


def _lines(node: Node) -> Iterator[str]:
    for option in node.options:
        for name in option.names:
            yield _line(node, "-o", _option(option, name))
    for command in node.commands:
        yield _line(node, "-p 0", f"-a {_quoted(command.path[-1])} -d {_quoted(command.help)}")
    for number, value in enumerate(node.arguments):
        if value.kind != "nothing":
            at = "" if value.kind == "command" else f"-p {number}"
            yield _line(node, at, _value(value))


def _line(node: Node, where: str, what: str) -> str:
    condition = " ".join(filter(None, ("__socks_tunnel_at", where, *node.path)))
    return f"complete -c socks-tunnel -n {_quoted(condition)} {what}"


def _option(option: Option, name: str) -> str:
    flag = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
    parts = [flag]
    if option.value is not None:
        parts.append(f"-r {_value(option.value)}")
    if option.help:
        parts.append(f"-d {_quoted(option.help)}")
    return " ".join(parts)


def _value(value: Value) -> str:
    match value.kind:
        case "choice":
            return f"-f -a {_quoted(' '.join(value.choices))}"
        case "file":
            return "-F"
        case "instance":
            return "-f -a '(__socks_tunnel_instances)'"
        case "asked":
            return "-f -a '(__socks_tunnel_asked)'"
        case "command":
            return "-a '(__socks_tunnel_command)'"
    return "-f"


def _quoted(text: str) -> str:
    """Returns a text in fish's single quotes, in which a backslash escapes itself and a quote."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
