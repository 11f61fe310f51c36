"""`socks-tunnel rendezvous` as a process: its start, its signals, its exit status."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.links_world import until
from integration.rendezvous_world import Delays
from socks_tunnel.protocol.rendezvous import CLOSE_FORBIDDEN, CLOSE_MEANINGS
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.rendezvous import Rendezvous


class Process:
    """One service, with its log in a file."""

    def __init__(self, directory: Path, text: str) -> None:
        self.config = directory / "rendezvous.toml"
        self.config.write_text(text)
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "socks_tunnel", "rendezvous", "--config", str(self.config)],
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def said(self) -> str:
        return self.log.read_text()

    async def ends(self) -> int:
        await until(lambda: self.popen.poll() is not None)
        return self.popen.returncode

    async def port(self) -> int:
        await until(lambda: "listening on" in self.said() or self.popen.poll() is not None)
        found = re.search(r"listening on 127\.0\.0\.1:(\d+)", self.said())
        assert found, self.said()
        return int(found[1])


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for process in processes:
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.wait(30)


def key_table(identity: PrivateIdentity, name: str = "office") -> str:
    return f'[[keys]]\nname = "{name}"\npublic_key = "{identity.public_text}"\n'


async def test_it_serves_reloads_and_drains(tmp_path: Path, started: list[Process]) -> None:
    listed, late = PrivateIdentity.generate(), PrivateIdentity.generate()
    head = 'listen = "127.0.0.1:0"\ndrain_timeout = 5\n'
    process = Process(tmp_path, head + key_table(listed))
    started.append(process)
    url = f"ws://localhost:{await process.port()}/"
    clients = [Rendezvous(url, identity, Delays()) for identity in (listed, late)]
    for client in clients:
        client.start()
    try:
        await until(lambda: clients[0].problem is None)
        await until(lambda: clients[1].problem == CLOSE_MEANINGS[CLOSE_FORBIDDEN])
        process.config.write_text(head + key_table(listed) + key_table(late, "late"))
        process.popen.send_signal(signal.SIGHUP)
        await until(lambda: "reloaded: 2 keys" in process.said())
        await until(lambda: clients[1].problem is None)
        process.config.write_text(head)
        process.popen.send_signal(signal.SIGHUP)
        await until(lambda: "reload refused" in process.said())
        assert clients[0].problem is None
        process.popen.send_signal(signal.SIGUSR1)
        report = "2 clients, 0 relayed connections; since the start: joined"
        await until(lambda: report in process.said())
        process.popen.send_signal(signal.SIGTERM)
        assert await process.ends() == 0
        assert "SIGTERM: asking 2 clients to leave" in process.said()
        assert "Traceback" not in process.said()
        await until(lambda: all(client.problem for client in clients))
    finally:
        await asyncio.gather(*(client.stop() for client in clients))


async def test_a_second_signal_ends_it_at_once(tmp_path: Path, started: list[Process]) -> None:
    process = Process(tmp_path, 'listen = "127.0.0.1:0"\nclients = "any"\ndrain_timeout = 3600\n')
    started.append(process)
    url = f"ws://localhost:{await process.port()}/"
    client = Rendezvous(url, PrivateIdentity.generate(), Delays())
    client.start()
    try:
        await until(lambda: client.problem is None)
        process.popen.send_signal(signal.SIGTERM)
        await until(lambda: "asking 1 clients to leave" in process.said())
        process.popen.send_signal(signal.SIGTERM)
        assert await process.ends() == 0
        assert "ending at once" in process.said()
    finally:
        await client.stop()


async def test_what_it_cannot_start_with(tmp_path: Path, started: list[Process]) -> None:
    bad = Process(tmp_path, 'listen = "127.0.0.1:0"\nclients = "enrolled"\n')
    started.append(bad)
    assert await bad.ends() == 78
    assert "keys: is missing" in bad.said()
    taken = Process(tmp_path, 'listen = "127.0.0.1:0"\nclients = "any"\n')
    started.append(taken)
    port = await taken.port()
    (tmp_path / "second").mkdir()
    second = Process(tmp_path / "second", f'listen = "127.0.0.1:{port}"\nclients = "any"\n')
    started.append(second)
    assert await second.ends() == 73
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in second.said()
