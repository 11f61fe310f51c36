"""Messages, addresses and IPC frames: any bytes, any cut, and there and back again."""

from collections.abc import Sequence
from typing import Any

from hypothesis import assume, example, given
from hypothesis import strategies as st

from property.strategies import (
    attempt,
    damaged,
    encoded,
    host_ports,
    hosts,
    message_bytes,
    messages,
    msgpack_values,
    socks_addresses,
    split,
    u16,
)
from socks_tunnel.protocol.addresses import (
    HostPort,
    canonical_host,
    decode_address,
    encode_address,
    parse_host_port,
)
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.frames import FrameReader
from socks_tunnel.protocol.ipc import (
    BODY_MAX,
    FRAME_HEADER,
    Attached,
    ChildHello,
    Control,
    NewFlows,
    ReadyState,
    Reload,
    decode_control,
    encode_control,
)
from socks_tunnel.protocol.messages import (
    CloseConnection,
    Hello,
    Message,
    UdpAssociateClosed,
    UnknownMessage,
    decode,
    message_key,
)

# --- messages ---------------------------------------------------------------------------------


@given(messages)
def test_message_encode_then_decode_is_identity(message: Message) -> None:
    raw = encoded(message)

    assert decode(raw) == message
    assert decode(bytearray(raw)) == message
    assert decode(memoryview(raw)) == message
    assert message_key(raw) == (raw[0], getattr(message, "conn_id", 0))


@given(message_bytes)
def test_any_bytes_are_a_message_or_a_remote_protocol_error(raw: bytes) -> None:
    message = attempt(decode, raw)

    if isinstance(message, RemoteProtocolError):
        assert message.kind.startswith(("malformed-", "short-message"))
        if len(raw) >= 7 and raw[0] >= 14:  # a message of a flow, whose header could be read
            assert message.conn_id == int.from_bytes(raw[3:7], "big")
        return
    if isinstance(message, UnknownMessage):
        return
    if isinstance(message, Hello) and message.version != 1:
        return
    # What was understood says the same when it is said again in our own words.
    assert decode(message.encode()) == message


@given(messages, st.binary(min_size=1, max_size=8))
def test_a_message_with_bytes_after_its_end_is_another_message_or_malformed(
    message: Message, tail: bytes
) -> None:
    assume(not (isinstance(message, CloseConnection | UdpAssociateClosed) and tail == b"\0"))

    assert attempt(decode, encoded(message) + tail) != message


# --- addresses --------------------------------------------------------------------------------


@given(host_ports)
def test_address_encode_then_decode_is_identity(address: HostPort) -> None:
    raw = encode_address(address)

    assert decode_address(raw) == (canonical(address), len(raw))


@given(host_ports, st.binary(max_size=8), st.binary(max_size=8))
def test_an_address_is_found_between_other_bytes(
    address: HostPort, before: bytes, after: bytes
) -> None:
    raw = encode_address(address)

    decoded, end = decode_address(before + raw + after, len(before))

    assert (decoded, end) == (canonical(address), len(before) + len(raw))


@given(st.binary(max_size=32) | damaged(socks_addresses), st.integers(0, 4))
def test_any_bytes_are_an_address_or_a_remote_protocol_error(raw: bytes, offset: int) -> None:
    decoded = attempt(decode_address, raw, offset)

    if not isinstance(decoded, RemoteProtocolError):
        address, end = decoded
        assert end <= len(raw)
        assert decode_address(encode_address(address))[0] == address


@given(st.text() | hosts | hosts.map(str.upper) | hosts.map(lambda host: f"[{host}]"))
@example("１２７.0.0.1")  # noqa: RUF001 - an address in other digits
@example("xn--a")
@example("\u00ad")
def test_canonical_host_is_canonical(text: str) -> None:
    try:
        host = canonical_host(text)
    except ValueError:
        return
    assert canonical_host(host) == host
    assert host.isascii()
    assert host == host.lower()
    assert 1 <= len(host) <= 255


@given(host_ports)
def test_a_printed_address_can_be_read_back(address: HostPort) -> None:
    assert parse_host_port(str(address)) == canonical(address)


def canonical(address: HostPort) -> HostPort:
    # Python 3.13 writes IPv4-mapped addresses another way than 3.11: compare in one way.
    return HostPort(canonical_host(address.host), address.port)


# --- IPC frames -------------------------------------------------------------------------------

controls = st.one_of(
    st.builds(ChildHello, st.integers(0, 1 << 31)),
    st.builds(
        NewFlows,
        st.lists(st.lists(st.lists(u16, max_size=3), min_size=2, max_size=2), max_size=3),
        st.lists(st.lists(st.lists(st.floats(0, 1e9), min_size=2, max_size=2)), max_size=3),
    ),
    st.builds(Reload, st.dictionaries(st.text(max_size=8), msgpack_values, max_size=6)),
    st.builds(ReadyState, st.none() | st.text(max_size=20)),
    st.builds(
        Attached,
        st.lists(st.lists(st.integers(0, (1 << 63)), min_size=4, max_size=4), max_size=4),
        st.booleans(),
    ),
)
frames = st.lists(
    st.tuples(st.just(0), u16, st.binary(max_size=64)) | st.tuples(st.just(1), u16, controls),
    max_size=8,
)


def wire(items: Sequence[tuple[int, int, Any]]) -> bytes:
    return b"".join(
        FRAME_HEADER.pack(len(item) + 3, 0, session) + item
        if kind == 0
        else encode_control(session, item)
        for kind, session, item in items
    )


def read(reader: FrameReader, chunks: Sequence[bytes]) -> tuple[list[tuple[int, int, Any]], str]:
    """Returns what comes out, message by message, and the kind of error that ended it or nothing.

    A batch that an error follows is not delivered, however the stream is cut.
    """
    found: list[tuple[int, int, Any]] = []
    try:
        for chunk in chunks:
            reader.get_buffer()[: len(chunk)] = chunk
            for session, item in reader.received(len(chunk)):
                if isinstance(item, list):
                    found += [(0, session, bytes(body)) for body in item]
                else:
                    found.append((1, session, item))
    except RemoteProtocolError as error:
        return found, error.kind
    return found, ""


def in_bytes(raw: bytes) -> list[bytes]:
    return [raw[i : i + 1] for i in range(len(raw))]


@given(frames, st.data())
def test_frames_encode_then_decode_is_identity_however_cut(
    expected: list[tuple[int, int, Any]], data: st.DataObject
) -> None:
    raw = wire(expected)

    assert read(FrameReader(), [raw]) == (expected, "")
    assert read(FrameReader(), in_bytes(raw)) == (expected, "")
    assert read(FrameReader(), data.draw(split(raw))) == (expected, "")


@given(st.binary(max_size=64) | damaged(frames.map(wire)))
@example(FRAME_HEADER.pack(3, 0, 1) + b"\xff" * 7)
def test_any_bytes_are_frames_or_a_remote_protocol_error_however_cut(raw: bytes) -> None:
    whole, error = read(FrameReader(), [raw])
    found, error_in_bytes = read(FrameReader(), in_bytes(raw))
    assert error == error_in_bytes
    assert repr(found[: len(whole)]) == repr(whole)  # in which one NaN is as another


@given(st.lists(st.integers(0, BODY_MAX), min_size=1, max_size=6), st.integers(1, BODY_MAX))
def test_long_frames_pass_a_reader_of_the_smallest_capacity(lengths: list[int], step: int) -> None:
    reader = FrameReader(BODY_MAX + FRAME_HEADER.size)
    raw = wire([(0, i, bytes(n)) for i, n in enumerate(lengths)])
    found: list[tuple[int, int]] = []
    position = 0
    while position < len(raw):
        room = reader.get_buffer()
        count = min(len(room), step, len(raw) - position)
        assert count > 0
        room[:count] = raw[position : position + count]
        position += count
        for session, item in reader.received(count):
            assert isinstance(item, list)
            found += [(session, len(body)) for body in item]
        # Each turn of a long stream would take as many steps as it has bytes.
        step = max(step, len(raw) // 200)

    assert found == list(enumerate(lengths))


@given(
    st.binary(max_size=64)
    | damaged(controls.map(lambda message: encode_control(0, message)[FRAME_HEADER.size :]))
)
def test_any_bytes_are_a_control_message_or_a_remote_protocol_error(raw: bytes) -> None:
    message = attempt(decode_control, raw)

    assert isinstance(message, RemoteProtocolError | Control)
