"""What an idle flow holds in memory once its link is gone: both workers' shares of it."""

import asyncio
import contextlib
import gc
import socket
import tracemalloc
from pathlib import Path

from socks_tunnel.protocol.ipc import Detach
from support.worker_pair import LINK, Pair, attach, worker_pair

FLOWS = 400

BUDGET = 6 * 1024
"""Bytes of one flow in one worker, beside what the kernel takes for its socket."""


async def exactly(sock: socket.socket, count: int) -> None:
    loop = asyncio.get_running_loop()
    while count:
        data = await loop.sock_recv(sock, count)
        assert data
        count -= len(data)


async def idle_flow(pair: Pair, listening: socket.socket) -> tuple[socket.socket, socket.socket]:
    """A flow that has carried a few bytes each way: the client's socket and the target's."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setblocking(False)
    await loop.sock_connect(client, ("127.0.0.1", pair.port))
    await loop.sock_sendall(client, b"\x05\x01\x00")
    await exactly(client, 2)
    port = listening.getsockname()[1].to_bytes(2)
    await loop.sock_sendall(client, b"\x05\x01\x00\x01\x7f\x00\x00\x01" + port)
    target, _ = await loop.sock_accept(listening)
    await exactly(client, 10)
    await loop.sock_sendall(client, b"a few bytes")
    await exactly(target, 11)
    await loop.sock_sendall(target, b"a few more")
    await exactly(client, 10)
    return client, target


def held() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def test_an_idle_flow_without_a_link_costs_little(tmp_path: Path) -> None:
    with contextlib.ExitStack() as opened:
        async with worker_pair(tmp_path) as pair:
            for side in (pair.gateway, pair.endpoint):
                attach(side, resume=True, features=("udp", "bind", "resume"))
            listening = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
            listening.setblocking(False)
            for _ in range(20):  # caches and pools are not a flow's
                for sock in await idle_flow(pair, listening):
                    opened.enter_context(sock)
            tracemalloc.start()
            try:
                before = held()
                for _ in range(FLOWS):
                    for sock in await idle_flow(pair, listening):
                        opened.enter_context(sock)
                linked = held() - before
                for side in (pair.gateway, pair.endpoint):
                    side.send_control(LINK, Detach(""))
                workers = (pair.gateway_worker, pair.endpoint_worker)
                async with asyncio.timeout(60):
                    while any(s.core.attached for w in workers for s in w.sessions.values()):
                        await asyncio.sleep(0.01)
                detached = held() - before
            finally:
                tracemalloc.stop()
            assert all(len(s.flows) == FLOWS + 20 for w in workers for s in w.sessions.values())
    # Both workers are in this process, and so are the applications' sockets: all of it is counted.
    print(
        f"an idle flow: {linked / FLOWS / 2:.0f} bytes in a worker with a link, "
        f"{detached / FLOWS / 2:.0f} without"
    )
    assert detached / FLOWS / 2 < BUDGET
