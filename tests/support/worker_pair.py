"""A gateway worker and an endpoint worker on one event loop, with the wire between them in hand.

The supervisors and the peer connection are left out: what one worker sends arrives at the other, as
`Wire` says. Everything else is real: the IPC streams, the workers, sockets on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from socks_tunnel.config.for_workers import dump
from socks_tunnel.config.loader import load
from socks_tunnel.ipc.stream import Channel, connect
from socks_tunnel.protocol.ipc import (
    Attach,
    ChildHello,
    ChildReady,
    Configure,
    Control,
    Credit,
    NewFlows,
    SessionEnded,
    SessionOpened,
    Shutdown,
)
from socks_tunnel.protocol.messages import decode
from socks_tunnel_workers.worker import Worker

C = TypeVar("C")

KEY = "3Bw2Hcbo4LnVRzJ2cMpHhS0cQKVg7SqTbcQyCPSQH0k="
LINK = 7
WINDOW = 262_144
MAX_DATA = 65_529


class Side(Channel):
    """The supervisor's end of one worker's IPC stream."""

    def __init__(self) -> None:
        super().__init__()
        self.peer: Side | None = None
        self.sent: list[bytes] = []
        self.controls: list[Control] = []
        self.changed = asyncio.Event()
        self.keep_credit = False
        self.filter: Callable[[bytes], bool] | None = None
        self.recording = False
        self.cut = False
        """Whether what the worker sends is lost: the link is dead."""

    def on_messages(self, session: int, messages: list[memoryview]) -> None:
        for body in messages:
            message = bytes(body)
            if self.recording:
                self.sent.append(message)
                self.changed.set()
            if not self.keep_credit:
                self.send_control(session, Credit(len(message), 16_384, 0))
            if self.cut or self.peer is None:
                continue
            if self.filter is None or self.filter(message):
                self.peer.send_message(session, message)

    def on_control(self, session: int, message: Control) -> None:
        self.controls.append(message)
        self.changed.set()

    async def control(self, kind: type[C]) -> C:
        """Wait for a control message, and give it."""
        async with asyncio.timeout(60):
            while True:
                for message in self.controls:
                    if isinstance(message, kind):
                        self.controls.remove(message)
                        return message
                self.changed.clear()
                await self.changed.wait()

    async def message(self, kind: type) -> Any:
        """Wait for a message of a kind that the worker sent (with `recording` on)."""
        async with asyncio.timeout(60):
            while True:
                for raw in self.sent:
                    message = decode(raw)
                    if isinstance(message, kind):
                        self.sent.remove(raw)
                        return message
                self.changed.clear()
                await self.changed.wait()


class Pair:
    """Both workers, up and linked."""

    def __init__(
        self, gateway: Side, endpoint: Side, workers: tuple[Worker, Worker], port: int
    ) -> None:
        self.gateway = gateway
        self.endpoint = endpoint
        self.gateway_worker, self.endpoint_worker = workers
        self.port = port


def counted(worker: Worker, metric: str, *labels: str) -> int:
    """Returns what a worker has counted, exported already or not."""
    exported = getattr(worker.metrics, metric).labels(*labels).value
    return int(exported) + worker.counters.pending(metric, *labels)


Listening = tuple[socket.socket, str, tuple[str, int] | None]
"""A socket, its kind (`socks`, `forward-tcp`, `forward-udp`), and a forward's target."""


async def _start(role: str, config: Path, listening: list[Listening]) -> tuple[Side, Worker]:
    ours, theirs = socket.socketpair()
    side = await connect(ours, Side)
    sockets = {sock.fileno(): sock for sock, _, _ in listening}
    worker = await connect(theirs, lambda: Worker(0, sockets, lambda _status: None))
    await side.control(ChildHello)
    rows = [[s.fileno(), kind, *(target or ("", 0))] for s, kind, target in listening]
    side.send_control(0, Configure(1, dump(load(config)), rows))
    await side.control(ChildReady)
    return side, worker


def write_configs(
    directory: Path, *, endpoint: str = "", gateway: str = "", policy: str | None = None
) -> tuple[Path, Path]:
    """Write two configurations; the extra texts are put where top-level keys can stand."""
    if policy is None:
        policy = (
            '[policy]\nallowed_hosts = ["127.0.0.0/8", "::1", "localhost"]\nallowed_ports = ["*"]\n'
        )
    key = directory / "key.pem"
    key.write_text("unused by workers\n")
    key.chmod(0o600)
    files = directory / "gateway.toml", directory / "endpoint.toml"
    files[0].write_text(
        f'role = "gateway"\n{gateway}\n[identity]\nprivate_key_file = "key.pem"\n'
        f'[[peers]]\nname = "office"\npublic_key = "{KEY}"\nurl = "http://127.0.0.1:1/"\n'
    )
    files[1].write_text(
        f'role = "endpoint"\n{endpoint}\n[identity]\nprivate_key_file = "key.pem"\n'
        f'[signaling]\nlisten = "127.0.0.1:1"\n'
        f'[[peers]]\nname = "laptop"\npublic_key = "{KEY}"\n{policy}'
    )
    return files


def attach(
    side: Side,
    *,
    credit: int = 1 << 20,
    session: int = LINK,
    window: int = WINDOW,
    resume: bool = False,
    features: Sequence[str] = ("udp", "bind"),
) -> None:
    """Tell a worker that a link carries a session."""
    side.send_control(session, Attach(window, MAX_DATA, 300, list(features), credit, resume))


def link_up(
    side: Side, peer: str, *, credit: int = 1 << 20, link: int = LINK, window: int = WINDOW
) -> None:
    """Tell a worker of a session with a link, which takes new flows."""
    side.send_control(link, SessionOpened(peer))
    attach(side, credit=credit, session=link, window=window)
    side.send_control(0, NewFlows([[[link], []]], [[]]))


def link_down(side: Side, link: int = LINK) -> None:
    """Tell a worker that the link is gone, and the session with it."""
    side.send_control(0, NewFlows([[[], []]], [[]]))
    side.send_control(link, SessionEnded("the test says so"))


@contextlib.asynccontextmanager
async def worker_pair(
    directory: Path, *, linked: bool = True, listeners: Sequence[Listening] = (), **configs: Any
) -> AsyncIterator[Pair]:
    """Run both workers; at the end they are told to shut down.

    `listeners` are the gateway's, besides the SOCKS listener on the port.
    """
    gateway_config, endpoint_config = write_configs(directory, **configs)
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listening.getsockname()[1]
    gateway, gateway_worker = await _start(
        "gateway", gateway_config, [(listening, "socks", None), *listeners]
    )
    endpoint, endpoint_worker = await _start("endpoint", endpoint_config, [])
    gateway.peer, endpoint.peer = endpoint, gateway
    if linked:
        link_up(gateway, "office")
        link_up(endpoint, "laptop")
        async with asyncio.timeout(60):
            while gateway_worker.clients.routing.choose(0) is None or not endpoint_worker.sessions:
                await asyncio.sleep(0)
    try:
        yield Pair(gateway, endpoint, (gateway_worker, endpoint_worker), port)
    finally:
        for side in (gateway, endpoint):
            side.send_control(0, Shutdown())
        async with asyncio.timeout(60):
            while not (gateway.closing and endpoint.closing):
                await asyncio.sleep(0.01)
        listening.close()
