"""The state that another program goes on with: what is written is read, and nothing else."""

import io
import re
import struct
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.protocol import handover
from socks_tunnel.protocol.bounded import Malformed
from socks_tunnel.protocol.errors import CloseReason, LocalProtocolError
from socks_tunnel.protocol.flow import FlowState, TcpFlow
from socks_tunnel.protocol.handover import (
    STATE_VERSION,
    Head,
    StateReader,
    StateWriter,
    UnknownVersionError,
    export_session,
    restore_session,
)
from socks_tunnel.protocol.session import CLOSED_REMEMBERED_MAX, Session, Terms
from socks_tunnel.protocol.streams import ReceiveStream, SendStream

HEAD = Head(STATE_VERSION, "1.2.3", (11, 12), (5, 6, 7))


class Silent:
    """An outlet that expects nothing."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


def session() -> Session[Any]:
    return Session(Silent(), opens=True, flows_max=10)


def written(*records: dict[str, Any], head: Head = HEAD, end: bool = True) -> bytes:
    file = io.BytesIO()
    writer = StateWriter(file, head)
    for record in records:
        writer.write(record)
    if end:
        writer.finish()
    return file.getvalue()


def again(fields: dict[str, Any]) -> dict[str, Any]:
    """What becomes of a record on its way."""
    (record,) = StateReader(io.BytesIO(written(fields))).records()
    return record


# --- the file -----------------------------------------------------------------------------------


def test_what_is_written_is_read() -> None:
    reader = StateReader(io.BytesIO(written({"a": 1}, {"b": b"xyz"})))
    assert reader.head == HEAD
    assert list(reader.records()) == [{"a": 1}, {"b": b"xyz"}]


@given(st.integers(0, 1000))
def test_a_file_that_is_cut_anywhere_is_no_state(cut: int) -> None:
    whole = written({"a": 1}, {"b": b"xyz" * 200})
    with pytest.raises(Malformed, match=r"^it ends too early$"):
        list(StateReader(io.BytesIO(whole[: min(cut, len(whole) - 1)])).records())


def test_a_state_without_its_last_record_is_cut() -> None:
    with pytest.raises(Malformed, match="too early"):
        list(StateReader(io.BytesIO(written({"a": 1}, end=False))).records())


@pytest.mark.parametrize("version", [0, STATE_VERSION + 1])
def test_of_another_version_the_head_is_read_and_nothing_else(version: int) -> None:
    other = Head(version, "9.0", (31,), (3,))
    reader = StateReader(io.BytesIO(written({"a": 1}, head=other)))
    assert reader.head == other
    with pytest.raises(
        UnknownVersionError,
        match=rf"^it is of version {version}, written by 9\.0; this program reads 1$",
    ):
        list(reader.records())


def test_all_versions_that_can_be_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "READABLE", frozenset({5, 3}))
    reader = StateReader(io.BytesIO(written(head=Head(4, "v" * 41))))
    with pytest.raises(
        UnknownVersionError, match=rf"written by {'v' * 37}…; this program reads 3, 5$"
    ):
        list(reader.records())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"magic": "x"}, "it is no hand-over of socks-tunnel"),
        ({"version": "1"}, "'version' is not usable: 1"),
        ({"version": -1}, "'version' is not usable: -1"),
        ({"program": 7}, "'program' is not usable: 7"),
        ({"pids": [1, "2"]}, "'pids' is not usable: a list of 2 entries"),
        ({"fds": None}, "'fds' is not usable: None"),
    ],
)
def test_a_head_that_is_none_is_refused(change: dict[str, Any], sentence: str) -> None:
    file = io.BytesIO(written())
    (length,) = struct.unpack("!I", file.read(4))
    fields = msgpack.unpackb(file.read(length)) | change
    body = msgpack.packb(fields)
    with pytest.raises(Malformed, match=f"^{re.escape(sentence)}$"):
        StateReader(io.BytesIO(struct.pack("!I", len(body)) + body))


def test_a_record_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "RECORD_MAX", 1000)
    writer = StateWriter(io.BytesIO(), HEAD)
    writer.write({"a": b"x" * 994})
    with pytest.raises(ValueError, match="over the limit 1000"):
        writer.write({"a": b"x" * 995})
    longest = {"a": b"x" * 994}
    assert again(longest) == longest
    head = written()[:-10]
    with pytest.raises(Malformed, match="at most 1000"):
        list(StateReader(io.BytesIO(head + struct.pack("!I", 1001))).records())


@given(st.binary(max_size=200))
def test_any_bytes_are_a_state_or_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        list(StateReader(io.BytesIO(raw)).records())


# --- a session ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "terms",
    [Terms(5000, 65_529, 300, frozenset({"resume", "udp"})), Terms(0, 1, 0, frozenset())],
)
def test_a_session_goes_on_with_its_terms_and_the_flows_that_have_ended(terms: Terms) -> None:
    old = session()
    old.terms = terms
    old.closed[7] = CloseReason.RESET
    old.closed[3] = CloseReason.ORDERLY
    new = session()
    restore_session(new, again(export_session(old)))
    assert new.terms == old.terms
    assert list(new.closed.items()) == list(old.closed.items())
    assert not new.attached


def test_a_session_that_never_had_a_link_has_no_terms() -> None:
    new = session()
    restore_session(new, again(export_session(session())))
    assert new.terms is None


def test_a_session_with_a_link_is_not_handed_over() -> None:
    old = session()
    old.attach(Terms(1, 1, 1), 0, resume=True)
    with pytest.raises(LocalProtocolError, match=r"^a session with a link cannot be handed over$"):
        export_session(old)


def test_of_the_flows_that_have_ended_the_latest_are_remembered() -> None:
    fields = {"terms": None, "closed": [[n, 0] for n in range(1, CLOSED_REMEMBERED_MAX + 2)]}
    new = session()
    restore_session(new, fields)
    assert len(new.closed) == CLOSED_REMEMBERED_MAX
    assert 1 not in new.closed


# --- flows --------------------------------------------------------------------------------------


def flow() -> TcpFlow:
    """A flow in the middle of its life, with bytes kept both ways."""
    flow = TcpFlow(9, send_window=10_000, receive_window=10_000)
    flow.open()
    flow.send.write_through(b"a" * 3000)
    flow.send.write_through(b"b" * 3000)
    flow.send.update(1000, 20_000)
    flow.send.write(b"c" * 3000)
    flow.send.take(700)
    flow.receive_data(4000)
    flow.receive.pending.append(b"d" * 1500)
    flow.receive.pending.append(b"e" * 1500)
    flow.receive.consume(1000)
    flow.receive.announce(5.25)
    flow.receive_eof()
    return flow


def test_a_flow_goes_on_where_it_was() -> None:
    old = flow()
    new = TcpFlow.restore(again(old.export()))
    assert new.export() == old.export()
    assert (new.state, new.cost, new.row()) == (old.state, old.cost, old.row())
    assert new.send.take(10_000) == old.send.take(10_000)
    for each in (old, new):
        each.resume(5000, 20_000, 0)
    assert [bytes(new.send.take(400)) for _ in range(20)] == [
        bytes(old.send.take(400)) for _ in range(20)
    ]


def test_a_flow_that_is_closing_still_owes_what_came() -> None:
    old = flow()
    old.close(CloseReason.ORDERLY)
    new = TcpFlow.restore(again(old.export()))
    assert new.closing
    assert new.state is FlowState.CLOSING
    assert b"".join(new.receive.pending.export()) == b"d" * 1500 + b"e" * 1500


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("", {"conn_id": 0}),
        ("", {"phase": "finished"}),
        ("", {"send": None}),
        ("send", {"acked": 9001}),
        ("send", {"next": 500}),
        ("send", {"end": 8999}),
        ("send", {"first": 1001}),
        ("send", {"pieces": [b"x"]}),
        ("send", {"pieces": ["x"]}),
        ("send", {"eof": 1}),
        ("receive", {"received": 1 << 40}),
        ("receive", {"consumed": 4001}),
        ("receive", {"announced": 1001}),
        ("receive", {"pending": []}),
        ("receive", {"updated_at": float("inf")}),
        ("receive", {"eof_delivered": None}),
    ],
)
def test_a_flow_that_cannot_be_is_refused(part: str, change: dict[str, Any]) -> None:
    fields = again(flow().export())
    (fields[part] if part else fields).update(change)
    with pytest.raises(Malformed):
        TcpFlow.restore(fields)


def test_empty_streams_are_restored() -> None:
    send, receive = SendStream(10), ReceiveStream(10)
    assert SendStream.restore(again(send.export())).export() == send.export()
    assert ReceiveStream.restore(again(receive.export())).export() == receive.export()
