"""SOCKS4: any bytes, any cut, trailing bytes."""

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from property.strategies import damaged, split
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.socks4 import ServerConnection
from socks_tunnel.protocol.socks5 import NEED_DATA, Request

texts = st.binary(max_size=300).map(lambda raw: raw.replace(b"\0", b"") + b"\0")
streams = st.binary(max_size=32) | damaged(
    st.builds(
        lambda command, port, address, user, name, rest: b"".join(
            (b"\x04", bytes((command,)), port, address, user, name, rest)
        ),
        st.sampled_from((1, 2, 3, 0xF0)),
        st.binary(min_size=2, max_size=2),
        st.just(b"\0\0\0\1") | st.binary(min_size=4, max_size=4),
        texts,
        st.sampled_from((b"", b"a.b\0", b"10.0.0.1\0", b"[::1]\0")) | texts,
        st.binary(max_size=8),
    )
)


class Outcome(NamedTuple):
    """All that a connection told its shell and its client."""

    events: list[Request]
    error: str
    sent: bytes
    trailing: bytes


def serve(chunks: Sequence[bytes], *, require_password: bool) -> Outcome:
    connection = ServerConnection(require_password=require_password)
    events: list[Request] = []
    sent = trailing = b""
    error = ""
    for chunk in chunks:
        connection.receive_data(chunk)
        try:
            while (event := connection.next_event()) is not NEED_DATA:
                events.append(event)
        except RemoteProtocolError as caught:
            error = caught.kind
        sent += connection.data_to_send()
        trailing += connection.trailing_data()
    return Outcome(events, error, sent, trailing)


@given(streams, st.booleans(), st.data())
def test_whole_is_byte_by_byte(raw: bytes, require_password: bool, data: st.DataObject) -> None:
    whole = serve([raw], require_password=require_password)

    for chunks in ([raw[i : i + 1] for i in range(len(raw))], data.draw(split(raw))):
        assert serve(chunks, require_password=require_password) == whole


@given(streams, st.booleans())
def test_one_answer_at_most(raw: bytes, require_password: bool) -> None:
    outcome = serve([raw], require_password=require_password)

    assert len(outcome.events) <= 1
    assert not (outcome.events and (require_password or outcome.error))
    answered = outcome.error not in {"", "not-socks4"}
    assert outcome.sent == (bytes.fromhex("005b000000000000") if answered else b"")
