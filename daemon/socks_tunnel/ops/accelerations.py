"""The compiled parts that make the program fast, and whether each is in use."""

from collections.abc import Iterator

import google_crc32c
import msgpack
import uvloop


def accelerations() -> Iterator[tuple[str, bool]]:
    """Yields the name of each compiled part, and whether it is in use in this process.

    All processes make their event loops with `uvloop.new_event_loop`, so one is made and examined.
    """
    loop = uvloop.new_event_loop()
    yield "event loop: uvloop (libuv)", isinstance(loop, uvloop.Loop)
    loop.close()
    yield "msgpack: compiled", msgpack.Packer.__module__.endswith("_cmsgpack")
    yield "SCTP checksum: compiled CRC-32C", google_crc32c.implementation == "c"
