"""What the property tests are made of: hosts, messages, and byte streams that are nearly right."""

import string
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

from hypothesis import strategies as st

from socks_tunnel.protocol.addresses import NAME_MAX, HostPort, encode_address
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.messages import (
    DATA_MAX,
    HEADER,
    Answer,
    Bind,
    BindAccepted,
    BindListening,
    CloseConnection,
    ConnectionOpened,
    Data,
    Goaway,
    Hello,
    Message,
    MessageType,
    OpenConnection,
    Ping,
    Pong,
    Resolve,
    Resolved,
    ResolveKind,
    Resume,
    SendEof,
    UdpAssociate,
    UdpAssociateClosed,
    UdpAssociateOpened,
    UdpPacket,
    UnknownMessage,
    WindowUpdate,
)

T = TypeVar("T")


def attempt(decoder: Callable[..., T], *arguments: object) -> T | RemoteProtocolError:
    """Returns what the decoder returns, or its error; any other exception is the test's failure."""
    try:
        return decoder(*arguments)
    except RemoteProtocolError as error:
        return error


# --- hosts and addresses ----------------------------------------------------------------------

u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
u64 = st.integers(0, (1 << 64) - 1)

# Hypothesis draws addresses of special ranges more often than chance would.
ips = st.ip_addresses()

_LABEL = string.ascii_lowercase + string.digits + "-_"
labels = st.text(_LABEL, min_size=1, max_size=63).filter(lambda text: not text.isdigit())
names = st.lists(labels, min_size=1, max_size=8).map(".".join).filter(lambda n: len(n) <= NAME_MAX)
"""Canonical names, whose last label is no number."""

hosts = names | ips.map(str)
host_ports = st.builds(HostPort, hosts, u16)
ip_ports = st.builds(HostPort, ips.map(str), u16)

# --- messages ---------------------------------------------------------------------------------

conn_ids = u32
payloads = st.binary(min_size=1, max_size=300) | st.just(b"x" * DATA_MAX)
msgpack_keys = st.text(max_size=5)
msgpack_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(msgpack_keys, inner, max_size=3),
    max_leaves=5,
)

link_messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Ping, st.binary(min_size=8, max_size=8)),
    st.builds(Pong, st.binary(min_size=8, max_size=8)),
    st.builds(
        Hello,
        version=st.just(1),
        software=st.text(max_size=200).map(clip),  # what is kept of it
        session=st.binary(min_size=16, max_size=16),
        window=st.integers(1, (1 << 64) - 1),
        max_data=st.integers(1, (1 << 64) - 1),
        features=st.lists(st.text(max_size=8), max_size=4).map(tuple),
        idle_udp=u64,
    ),
    st.builds(Goaway, u8),
    st.builds(
        Resume,
        st.lists(
            st.tuples(
                st.integers(1, 0xFFFFFFFF),
                st.integers(0, 1 << 63),
                st.integers(0, 1 << 63),
                st.integers(0, 0xFFFF),
            ),
            max_size=4,
        ).map(tuple),
        st.booleans(),
    ),
)


@st.composite
def window_updates(draw: st.DrawFn) -> WindowUpdate:
    """WINDOW_UPDATEs with CONSUMED not beyond LIMIT."""
    consumed, limit = sorted((draw(u64), draw(u64)))
    return WindowUpdate(draw(conn_ids), consumed, limit)


flow_messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(OpenConnection, conn_ids, hosts, u16),
    st.builds(CloseConnection, conn_ids, u8),
    st.builds(ConnectionOpened, conn_ids, host_ports),
    st.builds(SendEof, conn_ids),
    st.builds(Data, conn_ids, payloads),
    window_updates(),
    st.builds(UdpAssociate, conn_ids),
    st.builds(UdpAssociateOpened, conn_ids, st.none() | host_ports),
    st.builds(UdpPacket, conn_ids, st.binary(max_size=300)),
    st.builds(UdpAssociateClosed, conn_ids, u8),
    st.builds(Bind, conn_ids, host_ports),
    st.builds(BindListening, conn_ids, host_ports),
    st.builds(BindAccepted, conn_ids, host_ports),
    st.builds(Resolve, conn_ids, st.just(ResolveKind.ADDRESSES), hosts),
    st.builds(
        Resolved, conn_ids, u8, st.lists(st.builds(Answer, u32, hosts), max_size=3).map(tuple)
    ),
)

messages = link_messages | flow_messages


def encoded(message: Message) -> bytes:
    """Returns the bytes of any message that can be sent."""
    assert not isinstance(message, UnknownMessage)
    return message.encode()


# --- bytes that are nearly right --------------------------------------------------------------


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """What is left of good bytes after a cut, a change, an insertion or an addition."""
    raw = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(raw)))
        match draw(st.sampled_from(("cut", "change", "insert", "append"))):
            case "cut":
                del raw[at:]
            case "change" if at < len(raw):
                raw[at] = draw(u8)
            case "insert":
                raw[at:at] = draw(st.binary(max_size=4))
            case _:
                raw += draw(st.binary(max_size=4))
    return bytes(raw)


message_bytes = st.one_of(
    st.binary(max_size=64),
    st.builds(
        lambda kind, conn_id, body: HEADER.pack(kind, 0, conn_id) + body,
        st.sampled_from(MessageType),
        conn_ids,
        st.binary(max_size=64),
    ),
    damaged(messages.map(encoded)),
)

socks_addresses = host_ports.map(encode_address)

greetings = st.binary(max_size=4).map(lambda methods: bytes((5, len(methods))) + methods)
password_offers = st.builds(
    lambda name, secret: bytes((1, len(name))) + name + bytes((len(secret),)) + secret,
    st.binary(max_size=8) | st.text(max_size=4).map(str.encode),
    st.binary(max_size=8) | st.text(max_size=4).map(str.encode),
)
requests = st.builds(
    lambda command, address: bytes((5, command, 0)) + address,
    st.integers(0, 4),
    socks_addresses,
)

# Each side's whole stream: every step may be missing or damaged.
client_streams = st.binary(max_size=32) | damaged(
    st.tuples(
        st.sampled_from((b"\x05\x01\x00", b"\x05\x02\x00\x02", b"\x05\x01\x02")) | greetings,
        st.just(b"") | password_offers,
        requests,
        st.binary(max_size=8),
    ).map(b"".join)
)
server_streams = st.binary(max_size=32) | damaged(
    st.tuples(
        st.sampled_from((b"\x05\x00", b"\x05\x02\x01\x00", b"\x05\xff")),
        st.builds(lambda code, a: bytes((5, code, 0)) + a, st.integers(0, 9), socks_addresses),
        st.just(b"") | st.builds(lambda a: b"\x05\0\0" + a, socks_addresses),
        st.binary(max_size=8),
    ).map(b"".join)
)
udp_packets = st.binary(max_size=32) | damaged(
    st.builds(
        lambda frag, address, data: bytes((0, 0, frag)) + address + data,
        st.just(0) | u8,
        socks_addresses,
        st.binary(max_size=16),
    )
)


@st.composite
def split(draw: st.DrawFn, raw: bytes) -> list[bytes]:
    """The same bytes in pieces, as a stream may deliver them."""
    cuts = sorted(draw(st.sets(st.integers(0, len(raw)), max_size=6)))
    edges = [0, *cuts, len(raw)]
    return [raw[a:b] for a, b in pairwise(edges)]
