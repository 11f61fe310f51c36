"""Sends datagrams back, in a process that does nothing else: a download's source is busy.

    echo.py     prints its UDP port, as JSON, and ends when its input does

How long it had to wait for a core is no delay of what is measured, so each datagram goes back with
those nanoseconds in its second 8 bytes, as the kernel's time of arrival shows them.
"""

import json
import select
import socket
import struct
import sys
import time

SO_TIMESTAMPNS = 35  # in asm-generic/socket.h; also the type of the control message


def main() -> None:
    """Serves until the other side closes the input."""
    buffer = bytearray(65_536)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        print(json.dumps({"port": sock.getsockname()[1]}), flush=True)
        while True:
            readable, _, _ = select.select((sock, sys.stdin), (), ())
            if sys.stdin in readable:
                return
            try:
                while True:
                    size, ((_, _, stamp),), _, sender = sock.recvmsg_into((buffer,), 64)
                    second, nanosecond = struct.unpack("=qq", stamp)
                    late = time.time_ns() - second * 1_000_000_000 - nanosecond
                    struct.pack_into("!q", buffer, 8, late)
                    sock.sendto(memoryview(buffer)[:size], sender)
            except BlockingIOError:
                pass


if __name__ == "__main__":
    main()
