"""Audit records in a file, what a reload changes, and what `policy diff` says of that before."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from socks_tunnel.ops.audit_reading import parse, records
from support.audit_records import validator
from support.hosts import TARGET_ADDRESS
from support.processes import SOCKS_TUNNEL, wait_until
from support.tunnels import MakeTunnel, Tunnel


def diff(
    tunnel: Tunnel, old: Path, new: Path, *options: str | Path
) -> subprocess.CompletedProcess[str]:
    control = tunnel.endpoint.runtime_directory / "control.sock"
    command = [SOCKS_TUNNEL, "policy", "diff", old, new, "--socket", control, *options]
    return tunnel.site.hosts.endpoint.run(*command, check=False)


def test_a_narrower_policy(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(endpoint={"audit": {"file": "audit.jsonl"}}, foreground=True)
    file = tunnel.homes["endpoint"].folder / "audit.jsonl"
    port, other = tunnel.site.ports["echo"], tunnel.site.ports["hash"]
    ends = tunnel.connect("echo")
    stays = tunnel.connect("hash")
    asked = tunnel.connect("echo")
    asked.close()

    def found(message: str, **fields: Any) -> list[dict[str, Any]]:
        return [
            record
            for record in records(file)
            if record["message"] == message
            and all(record.get(key) == value for key, value in fields.items())
        ]

    # Each worker writes its records from a thread of its own.
    wait_until(
        lambda: found("flow ended") and len(found("policy decision", verdict="allowed")) == 3,
        "the end of the flow that was closed, and the decisions of all three",
    )
    wait_until(lambda: len(tunnel.endpoint.control("connections")) == 2, "the two that are open")

    # Before: what would change.
    old = tunnel.endpoint.config
    new = old.with_name("narrower.toml")
    policy = "denied_ports = [25]"
    assert policy in old.read_text()
    new.write_text(old.read_text().replace(policy, f"denied_ports = [25, {port}]"))

    def with_flows() -> subprocess.CompletedProcess[str] | None:
        """What is said once a worker, which may be too busy at first, has told of its flow."""
        said = diff(tunnel, old, new)
        return said if "open: " in said.stdout else None

    done = wait_until(with_flows, "what would change, and for which flow")
    assert (done.returncode, done.stderr) == (1, "")
    said = done.stdout.splitlines()
    before = "allowed (allowed_hosts: 10.77.1.0/24)"
    assert said[:3] == [
        "1 of 2 destinations change",
        f"{TARGET_ADDRESS}:{port} for laptop-17: {before} -> denied (denied_ports: {port})",
        "  asked for 2 times in the last day",
    ]
    assert said[3].startswith("  open: laptop-17/")
    assert len(said) == 4

    def in_json() -> list[tuple[int, int]]:
        changes = json.loads(diff(tunnel, old, new, "--json").stdout)
        return [(change["times"], len(change["flows"])) for change in changes]

    wait_until(lambda: in_json() == [(2, 1)], "the same in JSON")
    same = diff(tunnel, old, old)
    assert (same.returncode, same.stdout) == (0, "0 of 2 destinations change\n")
    # The log has the same records, in another form, written by another thread.
    wait_until(
        lambda: len([line for line in tunnel.endpoint.log_text().splitlines() if parse(line)]) == 4,
        "three decisions and an end in the log",
    )
    from_log = diff(tunnel, old, new, "--audit", tunnel.endpoint.log)
    assert from_log.stdout.splitlines()[:3] == said[:3]

    # And it does. The file is renamed meanwhile, as logrotate does.
    renamed = file.with_name("audit.jsonl.1")
    file.rename(renamed)
    tunnel.write("endpoint", {"policy": {"denied_ports": [25, port]}})
    tunnel.endpoint.reload()
    ends.settimeout(60)
    with pytest.raises(ConnectionResetError):
        ends.recv(1)
    wait_until(
        lambda: (
            file.exists()
            and len(found("policy decision", verdict="denied", rule=f"denied_ports: {port}")) == 1
            and len(found("flow ended", reason="not-allowed")) == 1
        ),
        "the end of the forbidden flow, and why",
    )
    stays.sendall(b"goes on")
    stays.shutdown(1)
    assert stays.recv(100).startswith(b"7 ")
    stays.close()
    ends.close()
    assert other != port
    for part in (renamed, file):
        for record in records(part):
            validator()(record)


def test_a_file_that_cannot_be_written(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(foreground=True)
    tunnel.write("endpoint", {"audit": {"file": "none/audit.jsonl"}})
    control = tunnel.endpoint.runtime_directory / "control.sock"
    done = tunnel.site.hosts.endpoint.run(SOCKS_TUNNEL, "reload", "--socket", control, check=False)
    assert done.returncode == 1
    assert "the old configuration stays: " in done.stderr
    assert "none/audit.jsonl cannot be written: No such file or directory" in done.stderr
    tunnel.wait_linked()
