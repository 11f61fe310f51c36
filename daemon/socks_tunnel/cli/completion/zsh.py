"""The completion script for zsh: a function for each command, by the functions that zsh brings."""

import shlex
from collections.abc import Iterator

from socks_tunnel.cli.completion.template import fill
from socks_tunnel.cli.completion.tree import Node, Option, Places, Value


def write(root: Node, places: Places) -> str:
    """Returns the script."""
    return fill(
        "zsh",
        functions="\n".join(line for node in root.walk() for line in _function(node)),
        configurations=shlex.quote(places.configurations),
        runtime=shlex.quote(places.runtime),
        socket=places.control_socket,
    )


def _function(node: Node) -> Iterator[str]:
    specs = [spec for option in node.options for spec in _option(option)]
    yield f"{_name(node)}() {{"
    if not node.path:
        yield '  local -a line_words=("${words[@]}")'
        yield "  local line_current=$CURRENT"
    if node.commands:
        yield from _group(node, specs)
    else:
        specs += (_argument(number + 1, value) for number, value in enumerate(node.arguments))
        yield from _arguments(specs)
    yield "}"
    yield ""


def _group(node: Node, specs: list[str]) -> Iterator[str]:
    yield "  local context state state_descr line ret=1"
    yield "  typeset -A opt_args"
    yield from _arguments(["-C", *specs, "1:command:->command", "*:::argument:->argument"], "ret=0")
    yield "  case $state in"
    yield "    command)"
    yield "      local -a commands=("
    for command in node.commands:
        yield f"        {shlex.quote(f'{command.path[-1]}:{command.help}')}"
    yield "      )"
    yield "      _describe -t commands command commands && ret=0"
    yield "      ;;"
    yield "    argument)"
    yield '      words=($line[1] "${words[@]}")'
    yield "      (( CURRENT += 1 ))"
    yield "      case $line[1] in"
    for command in node.commands:
        yield f"        {command.path[-1]}) {_name(command)} && ret=0 ;;"
    yield "      esac"
    yield "      ;;"
    yield "  esac"
    yield "  return ret"


def _arguments(specs: list[str], success: str = "") -> Iterator[str]:
    # -S: no options behind --. A group leaves that to the command, and must pass -- on to it.
    yield f"  _arguments -s {'' if success else '-S '}\\"
    for spec in specs:
        yield f"    {shlex.quote(spec)} \\"
    yield f"    && {success}" if success else "    && return 0"


def _option(option: Option) -> Iterator[str]:
    before = "*" if option.repeats else f"({' '.join(option.names)})"
    text = f"[{_escaped(option.help)}]" if option.help else ""
    for name in option.names:
        if option.value is None:
            yield f"{before}{name}{text}"
        else:
            sign = "=" if name.startswith("--") else "+"
            takes = f"{_escaped(option.value.name)}:{_action(option.value)}"
            yield f"{before}{name}{sign}{text}:{takes}"


def _argument(number: int, value: Value) -> str:
    if value.kind == "command":
        return f"*:::{_escaped(value.name)}:{_action(value)}"
    return f"{number}:{_escaped(value.name)}:{_action(value)}"


def _action(value: Value) -> str:
    match value.kind:
        case "choice":
            return f"({' '.join(map(shlex.quote, value.choices))})"
        case "file":
            return "_files"
        case "instance":
            return "_socks-tunnel-instances"
        case "asked":
            return "_socks-tunnel-asked"
        case "command":
            return "_normal"
    return " "


def _name(node: Node) -> str:
    return "_" + "-".join(("socks-tunnel", *node.path))


def _escaped(text: str) -> str:
    """Returns a text for a specification of `_arguments`, where it ends at a colon or a bracket."""
    return "".join(f"\\{c}" if c in "\\:[]" else c for c in text)
