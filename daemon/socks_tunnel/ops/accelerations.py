"""What makes the program fast, and whether it is there: compiled parts that may be missing."""

import asyncio
from collections.abc import Iterator

import google_crc32c
import msgpack
import uvloop


def accelerations() -> Iterator[tuple[str, bool]]:
    """Yields what makes the program fast, and whether it is really in use here."""
    loop = uvloop.new_event_loop()
    yield "event loop: uvloop (libuv)", isinstance(loop, asyncio.AbstractEventLoop)
    loop.close()
    yield "msgpack: compiled", msgpack.Packer.__module__.endswith("_cmsgpack")
    yield "SCTP checksum: compiled CRC-32C", google_crc32c.implementation == "c"
