"""What may wait in front of a TCP connection."""

import asyncio
import socket
from pathlib import Path

from socks_tunnel.ops.write_queue import (
    TCP_NOTSENT_LOWAT,
    UNSENT_MAX,
    WRITE_BUFFER,
    keep_queue_short,
)


async def pair(family: socket.AddressFamily, address: object) -> tuple[asyncio.Transport, object]:
    loop = asyncio.get_running_loop()
    with socket.socket(family) as listening:
        listening.bind(address)  # type: ignore[arg-type] # of the family
        listening.listen()
        sock = socket.socket(family)
        sock.connect(listening.getsockname())
        other, _ = listening.accept()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=sock)
    return transport, other


async def test_loop_and_kernel_hold_little() -> None:
    transport, other = await pair(socket.AF_INET, ("127.0.0.1", 0))
    try:
        keep_queue_short(transport)
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT) == UNSENT_MAX
        # Nobody reads: the kernel takes what TCP sends at once and UNSENT_MAX bytes.
        low, high = transport.get_write_buffer_limits()
        assert (low, high) == (WRITE_BUFFER // 4, WRITE_BUFFER)
    finally:
        transport.abort()
        assert isinstance(other, socket.socket)
        other.close()


async def test_a_unix_socket_has_no_such_option(tmp_path: Path) -> None:
    transport, other = await pair(socket.AF_UNIX, str(tmp_path / "s"))
    try:
        keep_queue_short(transport)
        assert transport.get_write_buffer_limits()[1] == WRITE_BUFFER
    finally:
        transport.abort()
        assert isinstance(other, socket.socket)
        other.close()


async def test_a_connection_that_is_gone_is_left_alone() -> None:
    keep_queue_short(None)
    transport, other = await pair(socket.AF_INET, ("127.0.0.1", 0))
    before = transport.get_write_buffer_limits()
    transport.abort()
    keep_queue_short(transport)
    assert transport.get_write_buffer_limits() == before
    assert isinstance(other, socket.socket)
    other.close()
