"""SOCKS5, both roles: any bytes, any cut, trailing bytes, and there and back again."""

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from property.strategies import (
    attempt,
    client_streams,
    host_ports,
    ip_ports,
    server_streams,
    split,
    u8,
    udp_packets,
)
from socks_tunnel.protocol.addresses import HostPort, canonical_host, parse_ip
from socks_tunnel.protocol.errors import RemoteProtocolError, Reply
from socks_tunnel.protocol.socks5 import (
    NEED_DATA,
    BindRequest,
    ConnectRequest,
    Event,
    GreetingReceived,
    PasswordOffered,
    Request,
    ServerConnection,
    UdpAssociateRequest,
    parse_udp_packet,
    udp_header,
)
from socks_tunnel.protocol.socks5_client import ClientConnection, ReplyReceived


class Outcome(NamedTuple):
    """All that a connection told its shell and its peer."""

    events: list[Event] | list[ReplyReceived]
    error: str
    sent: bytes
    trailing: bytes


def serve(chunks: Sequence[bytes], *, require_password: bool, accept: bool = True) -> Outcome:
    connection = ServerConnection(require_password=require_password)
    events: list[Event] = []
    sent = b""
    error = ""
    for chunk in chunks:
        connection.receive_data(chunk)
        try:
            while (event := connection.next_event()) is not NEED_DATA:
                events.append(event)
                if isinstance(event, PasswordOffered):
                    connection.accept_password(accept)
        except RemoteProtocolError as caught:
            error = caught.kind
        sent += connection.data_to_send()
    return Outcome(events, error, sent, connection.trailing_data())


def ask(chunks: Sequence[bytes], request: Request, username: str | None) -> Outcome:
    connection = ClientConnection(request, username=username, password="secret")
    events: list[ReplyReceived] = []
    sent = connection.data_to_send()
    error = ""
    for chunk in chunks:
        connection.receive_data(chunk)
        try:
            while (event := connection.next_event()) is not NEED_DATA:
                events.append(event)
        except RemoteProtocolError as caught:
            error = caught.kind
        sent += connection.data_to_send()
    return Outcome(events, error, sent, connection.trailing_data())


def in_bytes(raw: bytes) -> list[bytes]:
    return [raw[i : i + 1] for i in range(len(raw))]


targets = st.one_of(st.builds(ConnectRequest, host_ports), st.builds(BindRequest, host_ports))
requests: st.SearchStrategy[Request] = targets | st.builds(
    UdpAssociateRequest,
    st.none()
    | ip_ports.filter(
        lambda hint: hint.port != 0 or not getattr(parse_ip(hint.host), "is_unspecified", True)
    ),
)
usernames = st.none() | st.text(max_size=20)


# --- any bytes, however cut -------------------------------------------------------------------


@given(client_streams, st.booleans(), st.booleans(), st.data())
def test_server_whole_is_byte_by_byte(
    raw: bytes, require_password: bool, accept: bool, data: st.DataObject
) -> None:
    whole = serve([raw], require_password=require_password, accept=accept)

    for chunks in (in_bytes(raw), data.draw(split(raw))):
        assert serve(chunks, require_password=require_password, accept=accept) == whole


@given(client_streams, st.booleans(), st.booleans())
def test_server_answers_any_bytes_as_rfc_1928_says(
    raw: bytes, require_password: bool, accept: bool
) -> None:
    outcome = serve([raw], require_password=require_password, accept=accept)

    expected = b""
    for event in outcome.events:
        if isinstance(event, GreetingReceived):
            expected += bytes((5, 2 if require_password else 0))
        elif isinstance(event, PasswordOffered):
            expected += bytes((1, 0 if accept else 1))
    match outcome.error:
        case "no-acceptable-method":
            expected += b"\x05\xff"
        case "authentication" if accept:  # otherwise counted above, with the event
            expected += b"\x01\x01"
        case "authentication" if not any(isinstance(e, PasswordOffered) for e in outcome.events):
            expected += b"\x01\x01"
        case "bad-request" | "bad-name":
            expected += b"\x05\x01\0\x01" + bytes(6)
        case "command":
            expected += b"\x05\x07\0\x01" + bytes(6)
        case "address-type":
            expected += b"\x05\x08\0\x01" + bytes(6)
        case kind:
            assert kind in {"", "not-socks5", "authentication"}
    assert outcome.sent == expected


@given(server_streams, requests, usernames, st.data())
def test_client_whole_is_byte_by_byte(
    raw: bytes, request: Request, username: str | None, data: st.DataObject
) -> None:
    whole = ask([raw], request, username)

    for chunks in (in_bytes(raw), data.draw(split(raw))):
        assert ask(chunks, request, username) == whole


@given(client_streams, st.binary(min_size=1, max_size=64), st.booleans())
def test_server_gives_back_every_byte_after_the_request(
    raw: bytes, tail: bytes, require_password: bool
) -> None:
    before = serve([raw], require_password=require_password)
    if before.error or not before.events or isinstance(before.events[-1], GreetingReceived):
        return
    if isinstance(before.events[-1], PasswordOffered):
        return

    after = serve([raw + tail], require_password=require_password)

    assert after == before._replace(trailing=before.trailing + tail)


# --- there and back again ---------------------------------------------------------------------


@given(requests, usernames, st.booleans(), ip_ports, st.sampled_from(Reply), st.data())
def test_client_and_server_understand_each_other(
    request: Request,
    username: str | None,
    require_password: bool,
    bound: HostPort,
    code: Reply,
    data: st.DataObject,
) -> None:
    client = ClientConnection(request, username=username, password="secret")
    server = ServerConnection(require_password=require_password and username is not None)
    events: list[object] = []
    replies: list[object] = []
    for _ in range(4):
        for chunk in data.draw(split(client.data_to_send())):
            server.receive_data(chunk)
            while (event := server.next_event()) is not NEED_DATA:
                events.append(event)
                if isinstance(event, PasswordOffered):
                    server.accept_password(True)
                elif not isinstance(event, GreetingReceived):
                    server.reply(code, bound)
        for chunk in data.draw(split(server.data_to_send())):
            client.receive_data(chunk)
            while (reply := client.next_event()) is not NEED_DATA:
                replies.append(reply)

    assert canonical(events[-1]) == canonical(request)
    if require_password and username is not None:
        assert events[1] == PasswordOffered(username, "secret")
    if code is Reply.SUCCEEDED:
        assert replies == [ReplyReceived(0, HostPort(canonical_host(bound.host), bound.port))]
    else:
        assert replies == [ReplyReceived(code, HostPort("0.0.0.0", 0))]


def canonical(request: object) -> tuple[type, HostPort | None]:
    """A request with its host in this Python's words (they differ for IPv4-mapped addresses)."""
    address = request.hint if isinstance(request, UdpAssociateRequest) else None
    if isinstance(request, ConnectRequest | BindRequest):
        address = request.destination
    if address is not None:
        address = HostPort(canonical_host(address.host), address.port)
    return type(request), address


# --- UDP --------------------------------------------------------------------------------------


@given(host_ports, st.binary(max_size=64), u8)
def test_udp_header_then_parse_is_identity(address: HostPort, data: bytes, frag: int) -> None:
    header = udp_header(address)
    packet = header[:2] + bytes((frag,)) + header[3:] + data

    datagram = parse_udp_packet(packet)

    assert datagram.frag == frag
    assert datagram.destination == HostPort(canonical_host(address.host), address.port)
    assert packet[datagram.offset :] == data
    assert parse_udp_packet(memoryview(packet)) == datagram


@given(udp_packets, st.binary(max_size=8))
def test_any_bytes_are_a_udp_packet_or_a_remote_protocol_error(raw: bytes, tail: bytes) -> None:
    datagram = attempt(parse_udp_packet, raw)

    if isinstance(datagram, RemoteProtocolError):
        assert datagram.kind in {"udp-header", "address-type", "bad-name"}
        return
    assert datagram.offset <= len(raw)
    assert parse_udp_packet(raw + tail) == datagram
