"""A target that answers with its name: TCP on connect, UDP with the name before what came.

named_server.py NAME ADDRESS PORT
"""

import asyncio
import sys
from typing import cast


class Datagrams(asyncio.DatagramProtocol):
    """Answers each datagram."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: object) -> None:
        assert self.transport is not None
        self.transport.sendto(self.name + b" " + data, addr)  # type: ignore[arg-type]  # as it came


async def serve(name: bytes, address: str, port: int) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(name + b"\n")
        while line := await reader.readline():
            writer.write(name + b" " + line)
        writer.close()

    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: Datagrams(name), local_addr=(address, port))
    server = await asyncio.start_server(answer, address, port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1].encode(), sys.argv[2], int(sys.argv[3])))
