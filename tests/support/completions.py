"""What bash, zsh and fish offer at the end of a command line, with a completion script of ours."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

TOOLS = Path(__file__).with_name("shells")

SHELLS = ("bash", "zsh", "fish")

TIMEOUT = 120.0
"""Seconds in which a shell answers on a loaded machine."""


class Shell:
    """A shell with a completion script. `home` is its home directory, and where it starts."""

    def __init__(self, name: str, script: Path, home: Path, **environment: str) -> None:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is missing")
        self.name = name
        self._script = script
        self._home = home
        self._environment = {
            **os.environ,
            "HOME": str(home),
            "TERM": "dumb",
            "LC_ALL": "C.UTF-8",
            **environment,
        }

    def offers(self, *lines: str) -> list[set[str]]:
        """Returns the words offered at the end of each line, where `socks-tunnel` comes before it."""
        whole = [f"socks-tunnel {line}" for line in lines]
        if self.name == "zsh":
            return [set(self._run("-f", "zsh", line).split("\n")) - {""} for line in whole]
        if self.name == "bash":
            # As readline cuts a line: at spaces, and on both sides of each "=".
            whole = ["\t".join(re.findall(r"=|[^ =]+|(?<= )$", line)) for line in whole]
            answer = self._run("--norc", "bash", typed=whole)
        else:
            answer = self._run("--private", "fish", typed=whole)
        return [set(line.split("\t")) - {""} for line in answer.splitlines()]

    def _run(self, option: str, extension: str, *arguments: str, typed: Sequence[str] = ()) -> str:
        done = subprocess.run(
            [self.name, option, TOOLS / f"capture.{extension}", self._script, *arguments],
            input="".join(f"{line}\n" for line in typed),
            capture_output=True,
            text=True,
            env=self._environment,
            cwd=self._home,
            timeout=TIMEOUT,
            check=True,
        )
        assert not done.stderr
        return done.stdout
