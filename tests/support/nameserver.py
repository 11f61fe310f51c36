"""A name server for tests, on loopback: answers, delays, losses and errors as a test wants them."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import ipaddress
import struct
from collections import Counter
from collections.abc import AsyncIterator
from typing import cast

A, AAAA, PTR = 1, 28, 12
_TYPES = {"A": A, "AAAA": AAAA}


class NameServer(asyncio.DatagramProtocol):
    """Answers queries by tables that a test changes at any time; names may have wildcards.

    A name that is in no table does not exist. `asked` counts the queries by (name, type).
    """

    def __init__(self) -> None:
        self.records: dict[str, list[str]] = {}
        self.names: dict[str, str] = {}
        """PTR: address to name."""
        self.ttl = 5
        self.negative_ttl: int | None = None
        """With a number, NXDOMAIN carries a SOA with it."""
        self.silent: set[str] = set()
        self.silent_types: set[tuple[str, int]] = set()
        self.servfail: set[str] = set()
        self.truncated: set[str] = set()
        """Names whose answers do not fit a datagram: they have to be asked for by TCP."""
        self.lose: Counter[str] = Counter()
        """How many first queries for a name are lost."""
        self.asked: Counter[tuple[str, int]] = Counter()
        self.changed = asyncio.Event()
        self.transport: asyncio.DatagramTransport
        self.address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)
        host, port = transport.get_extra_info("sockname")
        self.address = f"{host}:{port}"

    def queries(self, name: str) -> int:
        """Returns how many queries for a name have come, of all types."""
        return sum(count for (asked, _), count in self.asked.items() if asked == name)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode("ascii"))
            at += 1 + data[at]
        name = ".".join(labels).lower()
        (kind,) = struct.unpack_from("!H", data, at + 1)
        self.asked[name, kind] += 1
        self.changed.set()
        reply = self._reply(data[:2], name, kind, data[12 : at + 5])
        if reply is not None and name in self.truncated:
            # RFC 1035 section 4.1.1: TC, and nothing but the question.
            reply = reply[:2] + b"\x87\x80" + struct.pack("!HHHH", 1, 0, 0, 0) + data[12 : at + 5]
        if reply is not None:
            self.transport.sendto(reply, addr)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers by TCP (RFC 1035 section 4.2.2), whatever is truncated by UDP."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
                labels, at = [], 12
                while data[at]:
                    labels.append(data[at + 1 : at + 1 + data[at]].decode("ascii"))
                    at += 1 + data[at]
                (kind,) = struct.unpack_from("!H", data, at + 1)
                reply = self._reply(data[:2], ".".join(labels).lower(), kind, data[12 : at + 5])
                if reply is not None:
                    writer.write(struct.pack("!H", len(reply)) + reply)
        writer.close()

    def _reply(self, ident: bytes, name: str, kind: int, question: bytes) -> bytes | None:
        def has(table: set[str]) -> bool:
            return any(fnmatch.fnmatch(name, pattern) for pattern in table)

        if has(self.silent) or (name, kind) in self.silent_types:
            return None
        if self.lose[name] > 0:
            self.lose[name] -= 1
            return None
        if has(self.servfail):
            return ident + struct.pack("!HHHHH", 0x8182, 1, 0, 0, 0) + question
        found = self._records(name, kind)
        if found is None:
            soa = b"" if self.negative_ttl is None else self._soa(self.negative_ttl)
            return ident + struct.pack("!HHHHH", 0x8583, 1, 0, bool(soa), 0) + question + soa
        answers = b"".join(
            b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, self.ttl, len(data)) + data
            for data in found
        )
        return ident + struct.pack("!HHHHH", 0x8580, 1, len(found), 0, 0) + question + answers

    def _records(self, name: str, kind: int) -> list[bytes] | None:
        if kind == PTR:
            for address, host in self.names.items():
                if ipaddress.ip_address(address).reverse_pointer == name:
                    return [
                        b"".join(bytes((len(x),)) + x.encode() for x in host.split(".")) + b"\0"
                    ]
            return None
        for pattern, addresses in self.records.items():
            if fnmatch.fnmatch(name, pattern):
                parsed = [ipaddress.ip_address(address) for address in addresses]
                version = {A: 4, AAAA: 6}.get(kind)
                return [address.packed for address in parsed if address.version == version]
        return None

    def _soa(self, ttl: int) -> bytes:
        data = b"\0\0" + struct.pack("!IIIII", 1, 3600, 600, 86400, ttl)
        return b"\xc0\x0c" + struct.pack("!HHIH", 6, 1, ttl, len(data)) + data


@contextlib.asynccontextmanager
async def name_server() -> AsyncIterator[NameServer]:
    """Runs a name server on a free port of 127.0.0.1."""
    loop = asyncio.get_running_loop()
    while True:
        transport, server = await loop.create_datagram_endpoint(
            NameServer, local_addr=("127.0.0.1", 0)
        )
        host, port = transport.get_extra_info("sockname")
        try:
            streams = await asyncio.start_server(server.serve, host, port)
        except OSError:  # the port is free for UDP, and not for TCP: another one
            transport.close()
        else:
            break
    try:
        yield server
    finally:
        transport.close()
        streams.close()
