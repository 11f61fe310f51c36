"""Audit records in a file: rotated by a real logrotate, on a disk that is full, by several processes."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from socks_tunnel.ops import audit, audit_file
from socks_tunnel.ops.audit_reading import oldest_first, records
from socks_tunnel.ops.logging import dropped_lines
from support.audit_records import validator
from support.corporate import need
from support.processes import wait_until

WRITER = """
import logging, sys, time
from socks_tunnel.ops import audit, audit_file
logging.getLogger(audit.LOGGER_NAME).setLevel(logging.INFO)
logging.getLogger(audit.LOGGER_NAME).propagate = False
audit_file.use(sys.argv[1], f"worker-{sys.argv[2]}")
print("ready", flush=True)
for number, line in enumerate(sys.stdin):
    audit.flow_end(peer="p", conn_id=number, command="connect", destination="a:1", up=0, down=0,
                   seconds=0, reason="orderly")
while audit_file._handler._waiting:  # closing waits for a moment only
    time.sleep(0.01)
audit_file.close()
"""


@pytest.fixture(autouse=True)
def _audit_is_on() -> Iterator[None]:
    logger = logging.getLogger(audit.LOGGER_NAME)
    before = logger.level
    logger.setLevel(logging.INFO)
    yield
    audit_file.close()
    logger.setLevel(before)


def write(number: int) -> None:
    audit.decision(
        peer="laptop-17",
        conn_id=number,
        command="connect",
        destination="www.example.com:443",
        verdict="allowed",
        rule="allowed_hosts: *.example.com",
    )


def written(path: Path) -> list[int]:
    return [record["flow"] for record in records(path)] if path.exists() else []


def test_records_are_json_that_fits_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit_file.use(str(path), "worker-1")
    write(7)
    wait_until(lambda: written(path) == [7], "the record")
    audit_file.close()
    [line] = path.read_text().splitlines()
    record = json.loads(line)
    validator()(record)
    assert (record["flow"], record["component"], record["pid"]) == (7, "worker-1", os.getpid())
    assert path.stat().st_mode & 0o777 == 0o640
    write(8)  # to nobody: the file is closed
    assert written(path) == [7]


def test_another_file_takes_its_place(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    audit_file.use(str(first), "worker-1")
    write(1)
    with pytest.raises(FileNotFoundError):
        audit_file.use(str(tmp_path / "none" / "file"), "worker-1")
    write(2)  # a file that cannot be had changes nothing
    audit_file.use(str(second), "worker-1")
    write(3)
    audit_file.close()  # which waits for a moment only
    wait_until(lambda: (written(first), written(second)) == ([1, 2], [3]), "the records")


@pytest.mark.parametrize("how", ["renamed", "removed", "truncated"])
def test_the_file_of_that_name_is_the_one(tmp_path: Path, how: str) -> None:
    path = tmp_path / "audit.jsonl"
    audit_file.use(str(path), "worker-1")
    write(1)
    wait_until(lambda: written(path) == [1], "the first record")
    if how == "renamed":
        path.rename(tmp_path / "old")
    elif how == "removed":
        path.unlink()
    else:
        os.truncate(path, 0)
    write(2)
    # Whoever writes looks behind itself: a file that is removed at that moment has lost the record,
    # which comes again then.
    right = ([2], [1, 2]) if how == "removed" else ([2],)
    wait_until(lambda: written(path) in right, "the second record")


def test_the_rest_of_a_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"cut off')
    audit_file.use(str(path), "worker-1")
    write(1)
    write(2)
    wait_until(lambda: written(path) == [1, 2], "the records")


def test_a_full_disk_is_said_once_and_costs_only_the_copy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.jsonl"
    path.symlink_to("/dev/full")
    audit_file.use(str(path), "worker-1")

    def said(words: str) -> int:
        return sum(words in record.getMessage() for record in caplog.records)

    before = dropped_lines["audit-file"]
    write(1)
    wait_until(lambda: said("No space left on device"), "the complaint")
    wait_until(lambda: dropped_lines["audit-file"] == before + 1, "the count")
    path.unlink()
    write(3)
    wait_until(lambda: said("are missing in"), "the end of it")
    assert said("No space left on device") == 1
    assert said(f"1 audit records are missing in {path}; it works again") == 1
    assert written(path) == [3]


def test_logrotate_while_two_processes_write(tmp_path: Path) -> None:
    """No record is lost, torn or doubled, however often the file is rotated meanwhile."""
    each, rotations = 4_000, 4
    path = tmp_path / "logs" / "audit.jsonl"
    path.parent.mkdir(mode=0o755)
    installed = Path(__file__).parents[3] / "packaging" / "debian" / "socks-tunnel.logrotate"
    rules = installed.read_text().replace("/var/log/socks-tunnel/*/", f"{path.parent}/")
    config = tmp_path / "logrotate.conf"
    config.write_text(rules.replace("su socks-tunnel socks-tunnel", "su root root"))
    command = [need("logrotate"), "--force", "--state", str(tmp_path / "state"), str(config)]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(index)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for rotation in range(1, rotations + 1):
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("\n" * (each // rotations))
            writer.stdin.flush()
        wait_until(lambda: path.exists() and path.stat().st_size, "records before the rotation")
        subprocess.run(command, check=True, timeout=60)
        assert len(oldest_first(path)) > rotation
    for writer in writers:
        writer.communicate(timeout=60)
        assert writer.returncode == 0
    found: Counter[tuple[str, int]] = Counter()
    for file in oldest_first(path):
        if file.exists():
            for record in records(file):
                validator()(record)
                found[record["component"], record["flow"]] += 1
    assert len(found) == 2 * each
    assert set(found.values()) == {1}
    assert shutil.which("gzip") is None or any(f.suffix == ".gz" for f in path.parent.iterdir())
