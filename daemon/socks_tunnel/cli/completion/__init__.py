"""Completion scripts for bash, zsh and fish, which need no Python at each press of TAB.

click has scripts of its own. Each press of TAB starts the program there, which takes tenths of a
second. These scripts are written from the same commands, with their options and choices in them,
and list the names of instances themselves. Only the names of peers and of live flows, which a
configuration or a running instance knows, are asked of the program.

`_SOCKS_TUNNEL_COMPLETE=bash_source socks-tunnel` prints the script for bash. The package's build
calls that, so that the scripts are always those of the commands in the package.
"""

import os
from typing import Final

import click
from click.shell_completion import (
    CompletionItem,
    ShellComplete,
    add_completion_class,
    split_arg_string,
)

from socks_tunnel.cli.completion import bash, fish, zsh
from socks_tunnel.cli.completion.tree import Places, read

_WRITERS: Final = {"bash": bash.write, "zsh": zsh.write, "fish": fish.write}


class Static(ShellComplete):
    """What all shells have in common.

    A script asks for names with two variables: `COMP_WORDS` has the words up to the one that is
    being typed, as they are quoted there; `COMP_TYPED` has that one, which may be empty. It gets
    a line for each name: the name, a tab, and what to say about it.
    """

    def source(self) -> str:
        """Returns the script."""
        return script(self.name, self.cli)

    def get_completion_args(self) -> tuple[list[str], str]:
        """Returns the words before the one that is being typed, and that one."""
        words = os.environ.get("COMP_WORDS", "")
        typed = os.environ.get("COMP_TYPED", "")
        return split_arg_string(words)[1:], typed

    def format_completion(self, item: CompletionItem) -> str:
        """Returns the line for a name."""
        return f"{_plain(item.value)}\t{_plain(item.help or '')}"


def script(shell: str, cli: click.Command) -> str:
    """Returns the completion script of a command for `shell`: bash, zsh or fish."""
    return _WRITERS[shell](read(cli), Places.of_this_host())


def install() -> None:
    """Has click use these scripts in place of its own."""
    for shell in _WRITERS:
        add_completion_class(type(f"{shell.title()}Static", (Static,), {"name": shell}))


def _plain(text: object) -> str:
    """Returns a text without the characters that separate names."""
    return "".join(c if c.isprintable() else " " for c in str(text))
