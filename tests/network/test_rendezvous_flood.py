"""A flood of strangers at a rendezvous service, which is a real process, while known clients use it."""

import asyncio
import collections
import contextlib
import itertools
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.links_world import until
from socks_tunnel.signaling.carrier import Handlers, SignalingRefused
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.rendezvous import Rendezvous
from support.processes import Process

STRANGERS = int(os.environ.get("SOCKS_TUNNEL_STRANGERS", "2000"))
"""How many come. Ten thousand take a minute and a half on a busy machine."""
OPEN = 1000
"""Connections of strangers that are open at a time; the oldest ones are closed for newer ones."""

UPGRADE = (
    b"GET /v1 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
HUGE = b"\x82\xff" + (1 << 40).to_bytes(8, "big") + bytes(4) + bytes(2000)
"""The beginning of a binary frame of a tebibyte (RFC 6455 section 5.2)."""
WRONG_PROOF = b"\x82\x85" + bytes(4) + b"\x81\xa4ki"

WORDS = (b"", UPGRADE[:30], UPGRADE, UPGRADE + HUGE, UPGRADE + WRONG_PROOF, b"\x16\x03\x01 no HTTP")
"""What strangers say, each a part of them, before they say nothing more."""


class Flood:
    """Strangers from many addresses of loopback, in a thread of their own."""

    def __init__(self, port: int) -> None:
        self.came = 0
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def goes_on(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        held: collections.deque[socket.socket] = collections.deque()
        words = itertools.cycle(WORDS)
        try:
            for number in range(STRANGERS):
                if self._stop.is_set():
                    return
                if len(held) >= OPEN:
                    held.popleft().close()
                sock = socket.socket()
                held.append(sock)
                sock.settimeout(30)
                # 600 addresses: each has some, and none has more than one address may have.
                sock.bind((f"127.1.{number % 3}.{1 + number // 3 % 200}", 0))
                with contextlib.suppress(OSError):  # it was refused: that is the answer to a flood
                    sock.connect(("127.0.0.1", self._port))
                    sock.sendall(next(words))
                self.came += 1
        finally:
            for sock in held:
                sock.close()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)


class Delays:
    def next(self) -> float:
        return 0.2

    def reset(self) -> None:
        pass


OFFICE, LAPTOP, LATE = (PrivateIdentity.generate() for _ in range(3))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Process]:
    keys = [
        f'[[keys]]\nname = "host-{number}"\npublic_key = "{identity.public_text}"\n'
        for number, identity in enumerate((OFFICE, LAPTOP, LATE))
    ]
    config = tmp_path / "rendezvous.toml"
    config.write_text('listen = "127.0.0.1:0"\n' + "".join(keys))
    command = [sys.executable, "-m", "socks_tunnel", "rendezvous", "--config", str(config)]
    process = Process("rendezvous", command, tmp_path)
    try:
        process.wait_notified("READY=1")
        yield process
    finally:
        process.stop()
        process.kill()


async def refuse(*_: object) -> None:
    """Answers nothing, which the asker is told at once."""


@pytest.mark.timeout(600)
async def test_known_clients_are_served_while_strangers_flood_it(
    service: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    port = int(service.wait_log(r"listening on 127\.0\.0\.1:(\d+)")[1])
    url = f"ws://localhost:{port}/"
    handlers = Handlers(offer=refuse, bye=refuse, join=refuse)  # type: ignore[arg-type] # of all kinds
    answering = Rendezvous(url, OFFICE, Delays(), handlers=handlers)
    asking = Rendezvous(url, LAPTOP, Delays())
    latecomer = Rendezvous(url, LATE, Delays())
    answering.watch([LAPTOP.public])
    asking.watch([OFFICE.public])
    latecomer.watch([OFFICE.public])
    answering.start()
    asking.start()
    flood = None
    answers: list[float] = []
    loop = asyncio.get_running_loop()
    try:
        await asyncio.wait_for(asking.appeared(OFFICE.public), 60)
        flood = Flood(port)
        await until(lambda: flood.came > STRANGERS // 10)
        latecomer.start()
        while flood.goes_on or not answers:
            began = loop.time()
            with pytest.raises(SignalingRefused):
                await asking.offer(OFFICE.public, b"offer", 60)
            answers.append(loop.time() - began)
            await asyncio.sleep(0.05)
        await latecomer.ice_servers(60)  # it is connected
        assert flood.came == STRANGERS
        await until(lambda: asking.problem is None and answering.problem is None)
    finally:
        if flood is not None:
            await asyncio.to_thread(flood.stop)
        for client in (latecomer, asking, answering):
            await client.stop()
    with capsys.disabled():
        answers.sort()
        print(
            f"\n{len(answers)} offers beside {STRANGERS} strangers: median "
            f"{1000 * answers[len(answers) // 2]:.0f} ms, slowest {1000 * answers[-1]:.0f} ms"
        )
