"""The Ansible role against a booted host."""

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.installed import limits_drop_in
from support.machines import TOOLS, Machine, why_no_boot

pytestmark = [pytest.mark.netns, pytest.mark.timeout(1500)]

ROLES = TOOLS.parent / "ansible" / "roles"
UNIT = "socks-tunnel@gateway.service"

# What ssh does for Ansible, done by entering the container: options, host name, one shell command.
SSH = """#!/bin/bash
exec {enter} sh -c "${{@: -1}}"
"""

PLAYBOOK = """
- hosts: all
  gather_facts: false
  roles: [socks_tunnel]
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A host without the package. Debian 12: the controller's Ansible is as old."""
    if reason := why_no_boot():
        pytest.skip(reason)
    if shutil.which("ansible-playbook") is None:
        pytest.skip("the command ansible-playbook (Debian package ansible-core) is missing")
    machine = Machine("an", "bookworm")
    machine.write("/etc/systemd/system/socks-tunnel@.service.d/test.conf", limits_drop_in())
    yield machine
    machine.delete()


def play(machine: Machine, directory: Path, **variables: object) -> tuple[int, dict[str, int], str]:
    """Run the role; the exit status, Ansible's counters, and what it printed."""
    ssh = directory / "ssh"
    ssh.write_text(SSH.format(enter=" ".join(machine.enter())))
    ssh.chmod(0o755)
    (directory / "play.yml").write_text(PLAYBOOK)
    done = subprocess.run(
        [
            *("ansible-playbook", "--inventory", "host,", "--extra-vars", json.dumps(variables)),
            str(directory / "play.yml"),
        ],
        env=os.environ
        | {
            "ANSIBLE_SSH_EXECUTABLE": str(ssh),
            "ANSIBLE_SSH_TRANSFER_METHOD": "piped",
            "ANSIBLE_SSH_ARGS": "",
            "ANSIBLE_PIPELINING": "true",
            "ANSIBLE_ROLES_PATH": str(ROLES),
            "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
            "ANSIBLE_LOCAL_TEMP": str(directory / "local"),
            "ANSIBLE_NOCOLOR": "true",
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "LC_ALL": "C.UTF-8",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    recap = re.search(r"^host +: (.*)$", done.stdout, re.MULTILINE)
    assert recap, done.stdout + done.stderr
    counters = {k: int(v) for k, v in (pair.split("=") for pair in recap[1].split())}
    return done.returncode, counters, done.stdout + done.stderr


def test_the_role_is_idempotent_and_reloads(
    machine: Machine, packages: dict[str, Path], tmp_path: Path
) -> None:
    variables = {
        "socks_tunnel_deb": str(packages["bookworm"]),
        "socks_tunnel_instance": "gateway",
        "socks_tunnel_settings": 'role = "gateway"\nworkers = { count = 1 }\n',
        "socks_tunnel_peers": [
            {
                "name": "office",
                "public_key": base64.b64encode(bytes(31) + b"\1").decode(),
                "url": "http://10.77.0.2:8765/",
            }
        ],
    }
    status, counters, printed = play(machine, tmp_path, **variables)
    assert status == 0, printed
    assert counters["changed"] > 3
    assert machine.property(UNIT, "ActiveState") == "active"
    assert (
        machine.sh("stat -c '%U:%G %a' /etc/socks-tunnel/gateway.toml") == "root:socks-tunnel 640"
    )
    pid = machine.main_pid(UNIT)

    status, counters, printed = play(machine, tmp_path, **variables)
    assert (status, counters["changed"]) == (0, 0), printed

    changed = variables | {
        "socks_tunnel_settings": 'role = "gateway"\ndrain_timeout = 5\nworkers = { count = 1 }\n'
    }
    status, counters, printed = play(machine, tmp_path, **changed)
    assert status == 0, printed
    assert counters["changed"] == 2, "the file and the reload"
    assert "reloaded /etc/socks-tunnel/gateway.toml" in machine.journal(UNIT)

    wrong = variables | {"socks_tunnel_settings": 'role = "gateway"\ndrain_timout = 5\n'}
    status, counters, printed = play(machine, tmp_path, **wrong)
    assert status != 0
    assert counters["failed"] == 1
    assert machine.property(UNIT, "ActiveState") == "active"
    assert machine.main_pid(UNIT) == pid, "nothing was restarted"
