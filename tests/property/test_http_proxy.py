"""The HTTP proxy: any bytes give an event or a RemoteProtocolError, whole as in pieces."""

from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from property.strategies import damaged, split
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.http_proxy import Event, ForwardRequest, ProxyConnection, ResponseBroken
from socks_tunnel.protocol.socks5 import NEED_DATA, PasswordOffered

lines = st.sampled_from(
    (
        b"GET http://a.b/ HTTP/1.1",
        b"POST http://a.b:81/x?y HTTP/1.1",
        b"GET http://a.b/ HTTP/1.0",
        b"CONNECT a.b:443 HTTP/1.1",
        b"GET / HTTP/1.1",
        b"HEAD http://[::1]/ HTTP/1.1",
    )
)
fields = st.sampled_from(
    (
        b"Content-Length: 3",
        b"Content-Length: 0",
        b"Transfer-Encoding: chunked",
        b"Connection: close, x",
        b"Proxy-Authorization: Basic YTpi",
        b"Expect: 100-continue",
        b"X: y",
    )
)
bodies = st.sampled_from((b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n", b"0\r\n\r\n"))
requests = st.builds(
    lambda line, some, body: b"\r\n".join((line, b"Host: a", *some, b"", b"")) + body,
    lines,
    st.lists(fields, max_size=3),
    bodies,
)
client_streams = st.binary(max_size=64) | damaged(
    st.lists(requests, min_size=1, max_size=3).map(b"".join)
)
statuses = st.sampled_from((b"HTTP/1.1 200 K", b"HTTP/1.0 200 K", b"HTTP/1.1 204 N", b"HTTP/1.1 100 C"))  # fmt: skip
answers = st.builds(
    lambda line, some, body: b"\r\n".join((line, *some, b"", b"")) + body,
    statuses,
    st.lists(fields, max_size=2),
    bodies,
)
origin_streams = st.binary(max_size=64) | damaged(st.lists(answers, max_size=2).map(b"".join))


class Outcome(NamedTuple):
    """What the proxy told its shell, its client and the origin, for one request stream."""

    events: list[Event]
    error: str
    to_client: bytes


def drain(proxy: ProxyConnection, events: list[Event]) -> str:
    try:
        while (event := proxy.next_event()) is not NEED_DATA:
            events.append(event)
            if isinstance(event, PasswordOffered):
                proxy.accept_password(True)
    except RemoteProtocolError as error:
        return error.kind
    return ""


def serve(chunks: Sequence[bytes], *, require_password: bool) -> Outcome:
    proxy = ProxyConnection(require_password=require_password)
    events: list[Event] = []
    sent = b""
    error = ""
    for chunk in chunks:
        proxy.receive_data(chunk)
        error = drain(proxy, events)
        sent += proxy.data_to_send()
    return Outcome(events, error, sent)


@given(client_streams, st.booleans(), st.data())
def test_whole_is_in_pieces(raw: bytes, require_password: bool, data: st.DataObject) -> None:
    whole = serve([raw], require_password=require_password)

    one_by_one = [raw[i : i + 1] for i in range(len(raw))]
    for chunks in (one_by_one, [piece for piece in data.draw(split(raw)) if piece]):
        pieces = serve(chunks, require_password=require_password)
        assert pieces.events == whole.events
        assert pieces.error == whole.error
        assert pieces.to_client == whole.to_client


@given(origin_streams, st.booleans())
def test_any_answer_of_an_origin_costs_its_exchange_alone(raw: bytes, clean: bool) -> None:
    proxy = ProxyConnection()
    events: list[Event] = []
    proxy.receive_data(b"GET http://a.b/ HTTP/1.1\r\nHost: a\r\n\r\n")
    assert drain(proxy, events) == ""
    assert isinstance(events[0], ForwardRequest)
    if raw:
        proxy.receive_from_origin(raw)
    assert drain(proxy, events) == ""
    proxy.origin_ended(clean=clean)
    assert drain(proxy, events) == ""
    assert proxy.data_to_send() or isinstance(events[-1], ResponseBroken)
