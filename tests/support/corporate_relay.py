"""Carries datagrams over one TCP connection: what UDP through a reliable channel is compared with.

    corporate_relay.py udp LISTEN TARGET    from a UDP client at LISTEN to the TCP server at TARGET
    corporate_relay.py tcp LISTEN TARGET    from a TCP client at LISTEN to the UDP server at TARGET

LISTEN and TARGET are ADDRESS:PORT. On the connection each datagram has its length before it, in two
bytes. Serves one client.
"""

import asyncio
import contextlib
import socket
import sys

Address = tuple[str, int]


async def carry(
    sock: socket.socket, peer: Address | None, stream: Address | None, listen: Address
) -> None:
    """Join a UDP socket (whose client speaks first if `peer` is None) and a TCP connection."""
    loop = asyncio.get_running_loop()
    if stream is not None:
        reader, writer = await asyncio.open_connection(*stream)
    else:
        accepted: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        accepted = loop.create_future()
        server = await asyncio.start_server(lambda r, w: accepted.set_result((r, w)), *listen)
        reader, writer = await accepted
        server.close()
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def upwards() -> None:
        nonlocal peer
        while True:
            data, peer = await loop.sock_recvfrom(sock, 65_536)
            writer.write(len(data).to_bytes(2) + data)

    async def downwards() -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                data = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                if peer is not None:
                    await loop.sock_sendto(sock, data, peer)

    up = asyncio.create_task(upwards())
    await downwards()
    up.cancel()
    writer.close()


def address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main(kind: str, listen: str, target: str) -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    if kind == "udp":
        sock.bind(address(listen))
        asyncio.run(carry(sock, None, address(target), address(listen)))
    else:
        sock.bind(("0.0.0.0", 0))
        asyncio.run(carry(sock, address(target), None, address(listen)))


if __name__ == "__main__":
    main(*sys.argv[1:])
