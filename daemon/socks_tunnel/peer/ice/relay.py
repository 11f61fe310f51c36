"""TURN allocations (RFC 8656) over UDP, TCP and TLS, as transports that carry datagrams.

aioice's client does the transactions. Its transport is not used: it starts a task for each
datagram, rebinds an old channel with each datagram, waits up to a minute for a dead server when it
closes, and supports neither private CAs nor proxies.

ChannelData, as it goes over the wire (RFC 8656 section 12.4)::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |         Channel Number        |            Length             |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    |  Application Data, over TCP and TLS padded to 4 bytes         |
    +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
"""

import asyncio
import logging
import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from aioice import stun, turn

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.peer.ice.proxy import tunnel
from socks_tunnel.peer.ice.settings import IceServer
from socks_tunnel.protocol.addresses import IPAddress
from socks_tunnel.protocol.urls import Proxy

_log = logging.getLogger(__name__)

LIFETIME: Final = 600
"""Lifetime in seconds that is asked for an allocation. It is refreshed in time."""

LIFETIME_MIN: Final = 60
"""Seconds for which a server has to grant an allocation at least. It grants no less than 600 by
default (RFC 8656 section 7.2). One that grants none would be asked again at once, for ever."""

CHANNEL_REFRESH: Final = 240.0
"""Seconds after which a channel is bound again. The binding lasts 600 s, but the permission that it
installs only 300 s (RFC 8656 sections 9 and 12)."""

RELEASE_TIMEOUT: Final = 1.0
"""Seconds for the server to acknowledge the end of an allocation."""

CHANNELS_MAX: Final = 256
"""Peers' addresses that one allocation may have channels for."""

UNBOUND_MAX: Final = 16
"""Datagrams that may wait while the channel to a peer's address is bound. More are dropped."""

STREAM_BUFFER_MAX: Final = 256 * 1024
"""Bytes that may wait in a TCP connection to a server. Further datagrams are dropped, as by a full
socket buffer. SCTP above treats that as congestion, which it is."""

ADDRESS_FAMILY: Final = {4: 0x01000000, 6: 0x02000000}
"""Values of REQUESTED-ADDRESS-FAMILY (RFC 8656 section 18.6)."""

_CHANNEL_DATA = struct.Struct("!HH")

Address: TypeAlias = tuple[str, int]


class RelayError(OSError):
    """A server gives no allocation. The text is a sentence."""


class _Client(turn.TurnClientMixin):
    """The common part of the clients for UDP and for streams."""

    transport: Any = None
    heard = False
    """Whether the server has sent anything at all."""
    dropped = 0
    """Datagrams dropped because the connection to the server takes no more, or has ended. A
    transaction that waits for its answer repeats its request nevertheless."""

    def __init__(self, server: Address, login: IceServer) -> None:
        super().__init__(
            server,
            username=login.username,
            password=login.credential,
            lifetime=LIFETIME,
            channel_refresh_time=int(CHANNEL_REFRESH),
        )

    def datagram_received(self, data: bytes | str, addr: Address) -> None:
        """Takes a message of the server. A message that cannot be read is dropped."""
        self.heard = True
        if not data:
            return
        try:
            super().datagram_received(data, addr)
        except Exception as error:  # noqa: BLE001 - aioice may raise anything for a server's bytes
            _log.debug("a message of the TURN server %s cannot be read: %r", addr, error)

    async def allocate(self, family: int) -> Address:
        """Returns the relayed address of a new allocation. Raises as aioice does."""
        request = stun.Message(stun.Method.ALLOCATE, stun.Class.REQUEST)
        request.attributes["LIFETIME"] = self.lifetime
        request.attributes["REQUESTED-TRANSPORT"] = turn.UDP_TRANSPORT
        if family == 6:  # without the attribute, a server gives IPv4 (RFC 8656 section 7.2)
            request.attributes["REQUESTED-ADDRESS-FAMILY"] = ADDRESS_FAMILY[family]
        response, _ = await self.request_with_retry(request)
        for name in ("LIFETIME", "XOR-MAPPED-ADDRESS", "XOR-RELAYED-ADDRESS"):
            if name not in response.attributes:
                raise RelayError(f"its answer has no {name}")
        relayed: Address = response.attributes["XOR-RELAYED-ADDRESS"]
        self.relayed_address = relayed
        self.mapped_address = response.attributes["XOR-MAPPED-ADDRESS"]
        if (granted := response.attributes["LIFETIME"]) < LIFETIME_MIN:
            raise RelayError(f"it grants an allocation for {granted} s only")
        self.refresh_task = spawn(
            "refresh of a TURN allocation", self.refresh(response.attributes["LIFETIME"])
        )
        return relayed

    async def refresh(self, time_to_expiry: int) -> None:
        """Keeps the allocation, and ends the connection to the server when that refuses it."""
        while time_to_expiry >= LIFETIME_MIN:
            await asyncio.sleep(time_to_expiry * 5 / 6)
            request = stun.Message(stun.Method.REFRESH, stun.Class.REQUEST)
            request.attributes["LIFETIME"] = self.lifetime
            try:
                response, _ = await self.request_with_retry(request)
            except (OSError, stun.TransactionError) as error:
                _log.info("the TURN server %s refreshes no allocation: %s", self.server, error)
                break
            # An answer without it, or with 0, says that there is no allocation (section 8.2).
            time_to_expiry = response.attributes.get("LIFETIME", 0)
        else:
            _log.info("the TURN server %s has ended an allocation", self.server)
        self.transport.close()

    def send_channel(self, channel: int, data: bytes) -> None:
        """Sends a datagram to the peer of a bound channel."""
        self._send(_CHANNEL_DATA.pack(channel, len(data)) + data)


class UdpClient(_Client, asyncio.DatagramProtocol):
    """TURN over UDP."""

    def _send(self, data: bytes) -> None:
        if self.transport.is_closing():
            self.dropped += 1
            return
        self.transport.sendto(data)

    def error_received(self, exc: Exception) -> None:
        """Takes ICMP errors for earlier datagrams. The transaction decides what follows."""
        _log.debug("the TURN server %s: %s", self.server, exc)


class StreamClient(_Client, asyncio.Protocol):
    """TURN over TCP or TLS."""

    _rest = b""

    def data_received(self, data: bytes) -> None:
        """Cuts the stream into messages, and skips padding (RFC 8656 section 12.5)."""
        buffer = self._rest + data
        offset, end = 0, len(buffer)
        while end - offset >= 4:
            kind, length = _CHANNEL_DATA.unpack_from(buffer, offset)
            # The first two bits: 00 is STUN, 01 is ChannelData (RFC 8656 section 12).
            if kind >= 0x8000:
                _log.warning("the TURN server %s sends what is not TURN", self.server)
                self.transport.abort()
                return
            size = length + (4 + -length % 4 if kind >= 0x4000 else 20)
            if end - offset < size:
                break
            self.datagram_received(buffer[offset : offset + size], self.server)
            offset += size
        self._rest = buffer[offset:]

    def _send(self, data: bytes) -> None:
        transport = self.transport
        if transport.is_closing() or transport.get_write_buffer_size() > STREAM_BUFFER_MAX:
            self.dropped += 1
            return
        transport.write(data + bytes(-len(data) % 4))


class _Channel:
    """A channel that is bound to a peer's address, or is being bound."""

    __slots__ = ("bound", "number", "refresh_at", "refreshing", "waiting")

    def __init__(self, number: int) -> None:
        self.number = number
        self.bound = False
        self.refreshing = False
        self.refresh_at = 0.0
        self.waiting: list[bytes] = []


class RelayTransport(asyncio.DatagramTransport):
    """An allocation that looks like a UDP socket. Datagrams to a peer go through the server.

    Owned by the :class:`aioice.ice.StunProtocol` that it feeds.
    """

    def __init__(self, client: Any, receiver: asyncio.DatagramProtocol) -> None:
        super().__init__()
        self.dropped = 0
        """Number of datagrams that had to wait for a channel and found no room."""
        self._client = client
        self._receiver = receiver
        self._channels: dict[Address, _Channel] = {}
        self._closing = False
        self._loop = asyncio.get_running_loop()
        client.receiver = receiver
        receiver.connection_made(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`sockname`: the relayed address; `related_address`: ours, as the server sees it."""
        if name == "sockname":
            return self._client.relayed_address
        return self._client.mapped_address if name == "related_address" else default

    @property
    def drops(self) -> Mapping[str, int]:
        """The numbers of datagrams dropped here or by the connection to the server, by reason."""
        return {"relay-full": self.dropped + self._client.dropped}

    def is_closing(self) -> bool:
        """Whether the transport sends nothing any more."""
        return self._closing or bool(self._client.transport.is_closing())

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Sends a datagram to a peer. As with UDP, it may be lost."""
        if self.is_closing():
            return
        channel = self._channels.get(addr)
        if channel is None:
            if len(self._channels) >= CHANNELS_MAX:
                self.dropped += 1
                return
            # Channel numbers: 0x4000 to 0x4FFF (RFC 8656 section 12).
            channel = self._channels[addr] = _Channel(0x4000 + len(self._channels))
        if channel.bound:
            self._client.send_channel(channel.number, data)
            if self._loop.time() < channel.refresh_at:
                return
        elif len(channel.waiting) < UNBOUND_MAX:
            channel.waiting.append(bytes(data))
        else:
            self.dropped += 1
        if not channel.refreshing:
            channel.refreshing = True
            spawn(f"bind a TURN channel to {addr[0]}", self._bind(channel, addr))

    async def _bind(self, channel: _Channel, addr: Address) -> None:
        client = self._client
        # Relayed data may arrive before the server's answer to the binding.
        client.channel_to_peer[channel.number] = addr
        client.peer_to_channel[addr] = channel.number
        try:
            await client.channel_bind(channel.number, addr)
        except (stun.TransactionError, OSError, RuntimeError) as error:
            # The next datagram tries again, with the same number (RFC 8656 section 12).
            _log.debug("the TURN server binds no channel to %s: %s", addr, error)
            self.dropped += len(channel.waiting)
        else:
            channel.bound = True
            channel.refresh_at = self._loop.time() + CHANNEL_REFRESH
            if not self.is_closing():
                for data in channel.waiting:
                    client.send_channel(channel.number, data)
        finally:
            channel.refreshing = False
            channel.waiting.clear()

    def close(self) -> None:
        """Ends the allocation. The receiver is told at once, and the server in the background."""
        if self._closing:
            return
        self._closing = True
        self._client.receiver = None
        self._loop.call_soon(self._receiver.connection_lost, None)
        spawn("end of a TURN allocation", release(self._client))

    def abort(self) -> None:
        """Drops the connection without telling the server."""
        self.close()
        self._client.transport.abort()


async def release(client: Any) -> None:
    """Tells the server that the allocation has ended, if it answers, and closes the connection."""
    try:
        await asyncio.wait_for(client.delete(), RELEASE_TIMEOUT)
    except (TimeoutError, OSError, RuntimeError) as error:
        _log.debug("the TURN server %s: its allocation expires by itself: %r", client.server, error)
    finally:
        client.transport.close()


# --- allocating -------------------------------------------------------------------------------


async def open_relay(
    server: IceServer,
    address: IPAddress | None,
    family: int,
    *,
    tls: ssl.SSLContext | None,
    proxy: Proxy | None,
    alive: Callable[[], None],
) -> Any:
    """Returns a client with an allocation. Its owner makes a :class:`RelayTransport` of it.

    `address` is one of the server's, or the proxy's if there is one. `family` (4 or 6) is that of
    the relayed address. `alive` is called when the server shows that it is there.

    Raises :class:`OSError` with a sentence.
    """
    client = await _connect(server, address, tls, proxy, alive)
    allocated = False
    try:
        await client.allocate(family)
        allocated = True
    except stun.TransactionError as error:
        raise RelayError(_refusal(error, server)) from None
    finally:
        if client.heard:
            alive()
        if not allocated:  # also when cancelled
            client.transport.abort()
    return client


async def _connect(
    server: IceServer,
    address: IPAddress | None,
    tls: ssl.SSLContext | None,
    proxy: Proxy | None,
    alive: Callable[[], None],
) -> Any:
    loop = asyncio.get_running_loop()
    host = str(address)
    url = server.url
    version = 4 if address is None else address.version
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    if url.transport == "udp":
        own = socket.socket(family, socket.SOCK_DGRAM)
        try:
            own.setblocking(False)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, turn.UDP_SOCKET_BUFFER_SIZE)
            # Connected here, because on a failure uvloop leaves the transport open that it has
            # made.
            own.connect((host, url.port))
            _, udp = await loop.create_datagram_endpoint(
                lambda: UdpClient((host, url.port), server), sock=own
            )
        except BaseException:
            own.close()
            raise
        return udp
    sock = socket.socket(family, socket.SOCK_STREAM)
    stream = StreamClient((url.host, url.port), server)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, (host, proxy.port if proxy else url.port))
        alive()
        if proxy is not None:
            await tunnel(sock, proxy, url.host, url.port)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = tls if url.scheme == "turns" else None
        await loop.create_connection(
            lambda: stream,
            sock=sock,
            ssl=context,
            server_hostname=url.host if context else None,
        )
    except BaseException:
        if stream.transport is not None:  # otherwise a TLS shutdown keeps the socket for up to 30 s
            stream.transport.abort()
        sock.close()
        raise
    return stream


def _refusal(error: stun.TransactionError, server: IceServer) -> str:
    """Returns why a server gave no allocation (RFC 8656 section 19)."""
    response = error.response
    if response is None:
        return "it does not answer"
    code, words = response.attributes.get("ERROR-CODE", (0, ""))
    match code:
        case 401:
            return f"it refuses the user name {server.username!r} or the credential (401)"
        case 440:
            return "it relays no addresses of this family (440)"
        case 486:
            return f"the user {server.username!r} has too many allocations there (486)"
        case 508:
            return "it has no relayed address left (508)"
    return f"it refuses an allocation ({code} {words[:80]!r})"
