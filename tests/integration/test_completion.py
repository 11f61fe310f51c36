"""Completion in a real bash, with the script that the program prints and the packages install."""

import os
import subprocess
from pathlib import Path

import click
import pytest

from socks_tunnel.cli import cli
from support.processes import SOCKS_TUNNEL

# Words come in, with a tab after each, and the last one is being typed. What is offered goes out, a word a line.
ASK = """
. "$1" || exit
mapfile -d $'\t' -t COMP_WORDS
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_socks_tunnel_completion socks-tunnel "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The completion script for bash, as the program prints it."""
    path = tmp_path_factory.mktemp("completion") / "socks-tunnel.bash"
    path.write_text(_run([SOCKS_TUNNEL], _SOCKS_TUNNEL_COMPLETE="bash_source"))
    return path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("check", {"check-config"}),
        ("connections --sort dest", {"destination"}),
        ("status --js", {"--json"}),
        ("nonsens", set()),
    ],
)
def test_bash_offers_what_the_program_takes(script: Path, line: str, expected: set[str]) -> None:
    assert _offers(script, line) == expected


def test_bash_offers_each_command(script: Path) -> None:
    context = click.Context(cli)
    commands = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    shown = {name for name, command in commands.items() if command and not command.hidden}
    assert len(shown) > 10
    assert _offers(script, "") == shown


def _offers(script: Path, line: str) -> set[str]:
    """Returns the words that bash offers at the end of a line, after `socks-tunnel`."""
    words = "".join(f"{word}\t" for word in ("socks-tunnel", *line.split(" ")))
    path = f"{Path(SOCKS_TUNNEL).parent}:{os.environ['PATH']}"
    answer = _run(["bash", "--norc", "-c", ASK, "bash", str(script)], typed=words, PATH=path)
    return set(answer.split()) - {""}


def _run(command: list[str], typed: str = "", **environment: str) -> str:
    done = subprocess.run(
        command,
        input=typed,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=True,
    )
    assert not done.stderr
    return done.stdout
