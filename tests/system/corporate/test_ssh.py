"""SSH: OpenSSH's server and client, through a ProxyCommand."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.corporate import Corporate, need, sha256, ssh_server, write_random
from support.hosts import TARGET_ADDRESS

SIZE = 200_000_000


@pytest.fixture(scope="module")
def options(shared_corporate: Corporate, folder: Path) -> Iterator[list[str | Path]]:
    """Options of the client."""
    with ssh_server(shared_corporate, folder) as options:
        yield options


def read_until(file: int, text: bytes) -> bytes:
    """What a terminal shows up to a text; fails where it ends without."""
    shown = b""
    while text not in shown:
        piece = os.read(file, 4096)
        assert piece, shown
        shown += piece
    return shown


def test_interactive_session(corporate: Corporate, options: list[str | Path]) -> None:
    """A shell on a terminal: each command is typed once the answer to the last one is there."""
    with subprocess.Popen(
        corporate.client.command(
            *(need("ssh"), *options, "-tt", f"root@{TARGET_ADDRESS}", "exec /bin/sh -i")
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        # The terminal echoes what is typed, so what is waited for must not stand in it.
        for typed, answer in [
            (b"echo $((6 * 7))abc", b"42abc"),
            (b"test -t 0 && echo a''tty", b"atty"),
        ]:
            process.stdin.write(typed + b"\n")
            read_until(process.stdout.fileno(), answer)
        process.stdin.write(b"exit 7\n")
        process.stdout.read()
        assert process.wait(30) == 7


@pytest.mark.timeout(400)
def test_scp(corporate: Corporate, options: list[str | Path], tmp_path: Path) -> None:
    digest = write_random(tmp_path / "local", SIZE)
    corporate.run(
        *(need("scp"), "-q", *options, tmp_path / "local"),
        f"root@{TARGET_ADDRESS}:{tmp_path}/remote",
        timeout=360,
    )
    assert sha256(tmp_path / "remote") == digest


def test_port_forward_inside(corporate: Corporate, options: list[str | Path]) -> None:
    """To a server on the office host's own loopback, which the tunnel's policy does not let anyone to."""
    port = corporate.site.ports["http"]
    with corporate.serve(
        *(need("ssh"), *options, "-N", "-L", f"127.0.0.1:8000:127.0.0.1:{port}"),
        f"root@{TARGET_ADDRESS}",
        directory=corporate.directory,
        host=corporate.client,
        tcp=[8000],
    ):
        output = corporate.run(need("curl"), "-sS", "http://127.0.0.1:8000/whoami").stdout
    assert '"address": "127.0.0.1"' in output
