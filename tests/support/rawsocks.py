"""A SOCKS5 client of plain bytes (RFC 1928), for what no ready-made client does.

Written from the RFC and shares nothing with the project's own codec.
"""

import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import Self

CONNECT, BIND, UDP_ASSOCIATE = 1, 2, 3


def address(host: str, port: int) -> bytes:
    """ATYP, ADDR and PORT of a literal address or a name."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode()
        return b"\x03" + bytes([len(name)]) + name + struct.pack(">H", port)
    return (b"\x01" if ip.version == 4 else b"\x04") + ip.packed + struct.pack(">H", port)


def exactly(sock: socket.socket, length: int) -> bytes:
    """Read that many bytes, or fewer if the connection ends before."""
    data = b""
    while len(data) < length and (piece := sock.recv(length - len(data))):
        data += piece
    return data


@dataclass
class Answer:
    """A reply: `code` and the bound address; `raw` is all of it."""

    code: int
    host: str
    port: int
    raw: bytes


def read_answer(sock: socket.socket) -> Answer:
    """Read one reply."""
    head = exactly(sock, 4)
    assert len(head) == 4, f"the connection ended after {head!r}"
    version, code, reserved, kind = head
    assert (version, reserved) == (5, 0), head
    length = {1: 4, 4: 16}[kind]
    rest = exactly(sock, length + 2)
    assert len(rest) == length + 2, f"a reply of only {head + rest!r}"
    return Answer(
        code,
        str(ipaddress.ip_address(rest[:length])),
        int.from_bytes(rest[length:]),
        head + rest,
    )


def greet(proxy: tuple[str, int], timeout: float = 30) -> socket.socket:
    """A connection to the proxy that has said its greeting and been answered.

    ConnectionResetError if it ended before.
    """
    sock = socket.create_connection(proxy, timeout=timeout)
    try:
        sock.sendall(b"\x05\x01\x00")
        answer = exactly(sock, 2)
        if not answer:
            raise ConnectionResetError(f"{proxy} ended the connection before its answer")
        assert answer == b"\x05\x00", answer
    except BaseException:
        sock.close()
        raise
    return sock


def request(
    proxy: tuple[str, int],
    host: str,
    port: int,
    command: int = CONNECT,
    timeout: float = 30,
) -> tuple[socket.socket, Answer]:
    """Make a request; the connection and the reply to it."""
    sock = greet(proxy, timeout)
    sock.sendall(bytes([5, command, 0]) + address(host, port))
    return sock, read_answer(sock)


def packet(host: str, port: int, data: bytes, frag: int = 0) -> bytes:
    """A UDP packet for the relay (RFC 1928 section 7)."""
    return b"\0\0" + bytes([frag]) + address(host, port) + data


def unpack(data: bytes) -> tuple[str, int, bytes]:
    """Sender and payload of a packet from the relay."""
    assert data[:3] == b"\0\0\0", data[:3]
    length = {1: 4, 4: 16}[data[3]]
    host = str(ipaddress.ip_address(data[4 : 4 + length]))
    return host, int.from_bytes(data[4 + length : 6 + length]), data[6 + length :]


class Association:
    """A UDP association and one socket to use it with."""

    def __init__(self, proxy: tuple[str, int], timeout: float = 30) -> None:
        self.control, self.answer = request(proxy, "0.0.0.0", 0, UDP_ASSOCIATE)
        assert self.answer.code == 0, self.answer
        self.relay = (self.answer.host, self.answer.port)
        self.sock = self.socket()
        self.timeout = timeout
        self.sock.settimeout(timeout)

    def socket(self) -> socket.socket:
        """A UDP socket connected to the relay."""
        family = socket.AF_INET6 if ":" in self.relay[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.connect(self.relay)
        return sock

    def send(self, host: str, port: int, data: bytes, frag: int = 0) -> None:
        """Send a datagram through the relay."""
        self.sock.send(packet(host, port, data, frag))

    def receive(self) -> tuple[str, int, bytes]:
        """The next datagram: its sender and payload."""
        return unpack(self.sock.recv(65_536))

    def ask(self, host: str, port: int, data: bytes, attempts: int = 5) -> tuple[str, int, bytes]:
        """Send until something comes back: a datagram may be lost."""
        self.sock.settimeout(self.timeout / attempts)
        for left in reversed(range(attempts)):
            self.send(host, port, data)
            try:
                return self.receive()
            except TimeoutError:
                if not left:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def close(self) -> None:
        """End the association."""
        self.sock.close()
        self.control.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
