"""What makes the program fast, and whether it is there: compiled parts that may be missing."""

from collections.abc import Iterator

import google_crc32c
import msgpack
import uvloop


def accelerations() -> Iterator[tuple[str, bool]]:
    """Yields what makes the program fast, and whether it is really in use here.

    All processes make their event loops with `uvloop.new_event_loop`, so one is made to look at it.
    """
    loop = uvloop.new_event_loop()
    yield "event loop: uvloop (libuv)", isinstance(loop, uvloop.Loop)
    loop.close()
    yield "msgpack: compiled", msgpack.Packer.__module__.endswith("_cmsgpack")
    yield "SCTP checksum: compiled CRC-32C", google_crc32c.implementation == "c"
