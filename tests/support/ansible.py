"""A controller that runs Ansible's playbooks against booted hosts."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.machines import TOOLS, Machine

ROLES = TOOLS.parent / "ansible" / "roles"

PLAY_TIMEOUT = 900.0
"""Seconds that a run may take, on a machine that does much else."""

# What ssh does for Ansible, done by entering the container: options, the host's name, a shell command.
_SSH = """#!/bin/bash
case ${{@: -2:1}} in
{cases}
esac
exit 255
"""


@dataclass(frozen=True, slots=True)
class Play:
    """What came of a run: the exit status, the counters of each host, and all that was printed."""

    status: int
    counters: dict[str, dict[str, int]]
    output: str

    @property
    def changed(self) -> dict[str, int]:
        """How much was changed on each host; the run must have gone well, with nothing to warn of."""
        assert self.status == 0, self.output
        assert "WARNING]" not in self.output, self.output
        return {host: counters["changed"] for host, counters in self.counters.items()}


class Controller:
    """Runs playbooks; `groups` is the inventory: groups of hosts by their names."""

    def __init__(
        self,
        directory: Path,
        groups: Mapping[str, Mapping[str, Machine]],
        configuration: str = "",
    ) -> None:
        """`configuration` is what ansible.cfg says, in place of one that the user may have."""
        self._directory = directory
        self._ssh = directory / "ssh"
        cases = [
            f'{name}) exec {shlex.join(machine.enter())} sh -c "${{@: -1}}" ;;'
            for members in groups.values()
            for name, machine in members.items()
        ]
        self._ssh.write_text(_SSH.format(cases="\n".join(cases)))
        self._ssh.chmod(0o755)
        self._configuration = directory / "ansible.cfg"
        self._configuration.write_text(configuration)
        self._inventory = directory / "inventory.json"
        inventory = {name: {"hosts": dict.fromkeys(members)} for name, members in groups.items()}
        self._inventory.write_text(json.dumps(inventory))

    def play(self, playbook: Path, *options: str, **variables: object) -> Play:
        """Run a playbook with further options of ansible-playbook; `variables` overrule all others."""
        command: Sequence[str | Path] = [
            Path(sys.executable).with_name("ansible-playbook"),
            *("--inventory", self._inventory, "--extra-vars", json.dumps(variables)),
            *options,
            playbook,
        ]
        done = subprocess.run(
            command,
            cwd=self._directory,
            env={name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
            | {
                "ANSIBLE_CONFIG": str(self._configuration),
                "ANSIBLE_HOME": str(self._directory / "home"),
                "ANSIBLE_LOCALHOST_WARNING": "false",
                "ANSIBLE_NOCOLOR": "true",
                "ANSIBLE_PIPELINING": "true",
                "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
                "ANSIBLE_ROLES_PATH": str(ROLES),
                "ANSIBLE_SSH_ARGS": "",
                "ANSIBLE_SSH_EXECUTABLE": str(self._ssh),
                "ANSIBLE_SSH_TRANSFER_METHOD": "piped",
                "LC_ALL": "C.UTF-8",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PLAY_TIMEOUT,
        )
        recap = re.findall(r"^(\S+) +: (ok=.*)$", done.stdout, re.MULTILINE)
        assert recap, done.stdout
        counters = {
            host: {key: int(number) for key, number in re.findall(r"(\w+)=(\d+)", row)}
            for host, row in recap
        }
        return Play(done.returncode, counters, done.stdout)
