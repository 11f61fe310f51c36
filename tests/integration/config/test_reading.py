"""A configuration that is read by another process: what comes back, and how it fails."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from socks_tunnel.config.errors import ConfigError
from socks_tunnel.config.loader import load
from socks_tunnel.config.reading import Reading, read
from socks_tunnel.protocol.addresses import HostPort

ENDPOINT = f"""
role = "endpoint"
signaling.listen = "127.0.0.1:8443"

[[peers]]
name = "office"
public_key = "{"A" * 43}="

[policy]
allowed_hosts = ["10.0.0.0/8"]
allowed_ports = ["1-65535"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "office.key").touch(mode=0o600)
    path = tmp_path / "office.toml"
    path.write_text(ENDPOINT)
    return path


def test_it_is_what_this_process_would_read(file: Path) -> None:
    config = read(file)
    assert config == load(file)
    assert config.signaling is not None
    assert config.signaling.listen == HostPort("127.0.0.1", 8443)


def test_a_relative_path_is_found(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert read(Path(file.name)).source == file


def test_every_mistake_comes_back_with_its_line(file: Path) -> None:
    file.write_text(ENDPOINT.replace('"10.0.0.0/8"', '"10.0.0.0/99"') + "\n[log]\nlevel = 1\n")
    with pytest.raises(ConfigError) as here:
        load(file)
    with pytest.raises(ConfigError) as there:
        read(file)
    assert len(there.value.problems) == 2
    assert there.value.problems == here.value.problems
    assert str(there.value) == str(here.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file"):
        read(tmp_path / "none.toml")


def test_a_reader_that_is_killed_is_a_mistake_in_words(file: Path) -> None:
    reading = Reading(file)
    os.kill(reading.pid, signal.SIGKILL)
    with pytest.raises(ConfigError, match="the process that reads it was killed by signal 9"):
        reading.result()


def test_a_reader_that_does_not_end_is_killed(file: Path) -> None:
    reading = Reading(file)
    os.kill(reading.pid, signal.SIGSTOP)  # as one that waits for a file system
    with pytest.raises(ConfigError) as caught:
        reading.result(0.2)
    assert str(caught.value) == (
        f"{file}: the process that reads it (PID {reading.pid}) has not ended within 0.2 s, and was "
        "killed; this file or one that it names is on a file system that does not answer"
    )
    with pytest.raises(ProcessLookupError):
        os.kill(reading.pid, 0)


def test_a_reader_with_a_bug_is_a_mistake_in_words(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "no-such-encoding")  # no Python can start with that
    with pytest.raises(ConfigError, match="the process that reads it exited with status 1"):
        read(file)
    assert "no-such-encoding" in capfd.readouterr().err


def test_who_runs_an_instance_never_imports_what_checks_a_configuration() -> None:
    program = (
        "import sys; import socks_tunnel.supervisor.main, socks_tunnel.config.reading;"
        "print(sorted({'pydantic', 'rich', 'aiohttp', 'av.codec', 'dns', 'importlib.metadata'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_an_instance_that_starts_warns_of_an_old_key(file: Path) -> None:
    file.write_text(ENDPOINT + "\n[socks]\nconnect_timeout = 5\n")
    done = subprocess.run(
        [sys.executable, "-m", "socks_tunnel", "run", "--config", file],
        env=os.environ | {"RUNTIME_DIRECTORY": str(file.parent / "run")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 78, "the key is empty, so that it ends at once"
    assert (
        f"{file}:14: socks.connect_timeout: is the old name of targets.connect_timeout; "
        "write it there" in done.stderr
    )
