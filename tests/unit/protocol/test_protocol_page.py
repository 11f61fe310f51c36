"""docs/protocol.md says what the codec does: types, reasons, examples in bytes, defaults, limits.

Other implementations are written from that page, so whatever it says in numbers is compared with the code here.
"""

import re

import msgpack
import pytest

from socks_tunnel.ops.labels import SIGNALING_REJECTIONS
from socks_tunnel.peer import channels, sdp
from socks_tunnel.peer.fast import stall
from socks_tunnel.peer.ice import datagram_relay
from socks_tunnel.protocol import (
    addresses,
    keepalive,
    link,
    messages,
    rendezvous,
    rendezvous_load,
    rendezvous_relay,
    scheduler,
    session,
    streams,
)
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import Hello, MessageType, decode, message_header
from socks_tunnel.rendezvous import relay, service
from socks_tunnel.signaling import direct, envelope, group_list, joining, member_list
from socks_tunnel.supervisor import router, routing
from socks_tunnel_workers.relay import tcp as flows
from socks_tunnel_workers.targets import questions, udp
from socks_tunnel_workers.targets import tcp as targets
from support.checkout import ROOT

PAGE = (ROOT / "docs/protocol.md").read_text("utf-8")


def tables(head: str) -> list[list[str]]:
    """The rows of all tables whose head begins like this, as cells without backquotes."""
    found = []
    for after in PAGE.split(f"\n| {head} |")[1:]:
        for line in after.split("\n\n")[0].splitlines()[2:]:
            cells = line.strip().removeprefix("|").removesuffix("|").split(" | ")
            found.append([cell.strip().strip("`") for cell in cells])
    assert found, f"the page has no table that begins with {head}"
    return found


def block(begin: str) -> bytes:
    """The bytes of the block that begins with these bytes: comments stand to the right, or between quotes."""
    text = next(
        part for part in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) if part.startswith(begin)
    )
    lines = (re.split(r" {2,}(?=\S*[^0-9a-f\s])", line.strip())[0] for line in text.splitlines())
    return bytes.fromhex("".join(line for line in lines if not re.search(r"[^0-9a-f ]", line)))


# --- tunnel messages --------------------------------------------------------------------------------


def test_types() -> None:
    rows = tables("TYPE | hex")
    assert {(int(number), int(code, 16), name) for number, code, name, *_ in rows} == {
        (kind.value, kind.value, kind.name) for kind in MessageType
    }
    assert {name for _, _, name, sender, _ in rows if "link" in sender} == {
        kind.name for kind in messages.LINK_TYPES
    }


def test_reasons() -> None:
    assert [int(row[0], 16) for row in tables("REASON | meaning")] == [
        reason.value for reason in CloseReason
    ]


EXAMPLES = [(text, bytes.fromhex(code)) for text, code in tables("example | bytes")]


@pytest.mark.parametrize(("text", "wire"), EXAMPLES, ids=[text for text, _ in EXAMPLES])
def test_example(text: str, wire: bytes) -> None:
    """It is of the type and has the CONN_ID that its text says, and is what the codec makes of it."""
    message = decode(wire)
    assert not isinstance(message, messages.UnknownMessage)
    assert message.encode() == wire
    named = re.match(r"([A-Z_]+)(?: (0x[0-9a-f]+|\d+))?", text)
    assert named is not None
    assert named[1] == message.TYPE.name
    assert int(named[2] or "0", 0) == getattr(message, "conn_id", 0)


def test_each_type_has_an_example() -> None:
    seen = {decode(wire).TYPE for _, wire in EXAMPLES if wire}  # type: ignore[union-attr]  # none is unknown
    assert seen | {MessageType.HELLO} == set(MessageType)


def test_hello_in_bytes() -> None:
    wire = block("0a 0000 00000000 87")
    expected = Hello(1, "socks-tunnel/0.1", bytes(range(16)), 262_144, 65_529, ("bind", "udp"), 300)
    assert decode(wire) == expected
    assert expected.encode() == wire


def test_keys_of_hello_and_what_holds_without_them() -> None:
    listed = {
        name: absent
        for name, _, _, absent in tables("key | type | meaning | if absent")
        if name in Hello.__slots__
    }
    needed = {"version": 1, "session": bytes(16)}
    assert {name for name, absent in listed.items() if absent == "malformed"} == set(needed)
    hello = decode(message_header(MessageType.HELLO, 0) + msgpack.packb(needed))
    assert isinstance(hello, Hello)
    for name, absent in listed.items():
        if absent != "malformed":
            assert (getattr(hello, name) or "empty") == (
                int(absent) if absent.isdigit() else absent
            ), name
    assert set(listed) == set(Hello.__slots__)


# --- channels and signalling ------------------------------------------------------------------------


def test_types_of_channels() -> None:
    """The channel types of RFC 8832 section 5.1 in the table are those that an endpoint takes."""
    delivery = {
        "0x00": {"ordered": True, "max_retransmits": None},
        "0x81": {"ordered": False, "max_retransmits": 0},
    }
    for labels, _, kind, _ in tables("label | delivery"):
        for label in re.findall(r"[a-z]+(?:-\d+)?", labels.replace(" to ", " ")):
            taken = channels.kind_of(
                label,
                **delivery[kind[:4]],  # type: ignore[arg-type]  # both are there
                max_lifetime=None,
                subprotocol=messages.SUBPROTOCOL,
            )
            assert taken == label.partition("-")[0]
    assert f"the protocol `{messages.SUBPROTOCOL}`" in PAGE


def test_rejections_of_envelopes() -> None:
    codes = {code for _, code in tables("check | code of the rejection")}
    assert codes <= set(SIGNALING_REJECTIONS)


def test_reasons_and_close_codes_of_a_rendezvous_service() -> None:
    assert [row[0] for row in tables("`reason` | what was not passed on")] == list(
        rendezvous.REASONS
    )
    assert {int(code) for code, _ in tables("close code | meaning")} == {
        *rendezvous.CLOSE_MEANINGS,
        1000,
        1009,
    }


def test_entries_of_a_list_of_members() -> None:
    texts, times = group_list._TEXTS, group_list._TIMES
    assert {
        kind: re.findall(r"`?(\w+)`(?!\w)", keys) for kind, keys in tables("`entry` | other keys")
    } == {kind: [*names, *times.get(kind, ())] for kind, names in texts.items()}


LIMITS = {
    "shortest message": messages.HEADER.size,
    "longest message": messages.MESSAGE_MAX,
    "stream bytes of one DATA": messages.DATA_MAX,
    "stream bytes of one DATA that are sent": flows.CHUNK,
    "host or name": addresses.NAME_MAX,
    "lanes": channels.LANES_MAX,
    "lanes that a gateway opens": channels.LANES,
    "answers of one RESOLVED": messages.ANSWERS_MAX,
    "window if HELLO names none": messages.INITIAL_WINDOW,
    "longest window that is used": streams.WINDOW_MAX,
    "HELLO": messages.HELLO_BOUNDS.size,
    "`software` of HELLO that is kept": messages.SOFTWARE_MAX,
    "RESUME": messages.RESUME_BOUNDS.size,
    "rows of one RESUME": messages.RESUME_BOUNDS.entries,
    "rows of one RESUME that are sent": messages.RESUME_ROWS_MAX,
    "rows on one link beyond two for each flow": routing.PEER_ROWS_SPARE,
    "closed flows that are remembered": session.CLOSED_REMEMBERED_MAX,
    "flow messages before HELLO": link.EARLY_MESSAGES_MAX,
    "bytes of flow messages before HELLO": link.EARLY_BYTES_MAX,
    "RESUMEs before all channels are open": link.EARLY_RESUMES_MAX,
    "link that does not come up": link.CONNECT_TIMEOUT,
    "RESUME that is not complete": router.RESUME_SECONDS,
    "silence until a PING": keepalive.PING_INTERVAL,
    "silence until a link is dead": keepalive.DEAD_AFTER,
    "PINGs that are answered in a second": keepalive.PONGS_PER_SECOND,
    "answer to an end of both streams, at the endpoint": flows.FINISHED_IDLE_MAX,
    "half-closed flow without a byte": flows.HALF_CLOSED_IDLE_MAX,
    "local socket of a closed flow that takes nothing": flows.LINGER_IDLE_MAX,
    "quiet stream until its last bytes are acknowledged": flows.TAIL_SECONDS,
    "datagram that waits to be sent": scheduler.DATAGRAM_AGE_MAX,
    "bytes of datagrams that wait": scheduler.DATAGRAM_BYTES_MAX,
    "idle association if HELLO names no time": Hello(1, "", b"", 1, 1).idle_udp,
    "wait of the endpoint beyond that": udp.IDLE_GRACE,
    "caller of a BIND": targets.BIND_SECONDS,
    "questions of one session in one worker": questions.QUESTIONS_MAX,
    "SDP": envelope.SDP_MAX,
    "candidates of one SDP": sdp.CANDIDATES_MAX,
    "smallest `max-message-size`": sdp.MESSAGE_MIN,
    "envelope": envelope.ENVELOPE_MAX,
    "validity of an envelope": envelope.LIFETIME,
    "latest expiry of an envelope": envelope.LIFETIME_MAX,
    "nonces that are remembered of one peer": envelope.NONCES_PER_PEER,
    "frame of the rendezvous service": rendezvous.FRAME_MAX,
    "parcel": rendezvous.PARCEL_MAX,
    "frame of a client before its proof": rendezvous.SHORT_FRAME_MAX,
    "keys in one field of a frame": rendezvous.KEYS_PER_FRAME,
    "loads in one frame": rendezvous_load.LOADS_PER_FRAME,
    "TURN servers of one `welcome`": rendezvous.TURN_SERVERS_MAX,
    "bytes of datagrams in one frame": rendezvous_relay.JOINED_MAX,
    "datagrams in one frame": rendezvous_relay.SEGMENTS_MAX,
    "proof of a key": service.PROOF_TIMEOUT,
    "request to join and its answer": joining.REQUEST_MAX,
    "JWT before it is encrypted": joining.JWT_MAX,
    "`listed`": group_list.ANSWER_MAX,
}


def test_limits_and_times() -> None:
    listed = {
        re.sub(r"^(\w+)`", r"`\1`", name): value.split()[0]
        for name, value, _ in tables("limit or time | value")
    }
    expected = {
        name: f"{value:,.0f}" if value >= 1 else f"{value:g}" for name, value in LIMITS.items()
    }
    assert {name.replace("`", ""): value for name, value in listed.items()} == {
        name.replace("`", ""): value for name, value in expected.items()
    }


@pytest.mark.parametrize(
    "sentence",
    [
        f"at most {rendezvous.FRAME_MAX:,} bytes, which is a msgpack map",
        f"`body` (bin, at most {rendezvous.PARCEL_MAX:,} bytes)",
        f"`version` (text, at most {rendezvous_load.VERSION_MAX} bytes)",
        f"`within` (int, at most {rendezvous._DRAIN_MAX:,})",
        f"has one, at most {rendezvous.HOST_MAX} bytes",
        f"1 to {rendezvous.TURN_URLS_MAX} texts",
        f"counts as its datagrams and {relay.FRAME_COST} bytes",
        f"has not taken for {rendezvous_relay.QUEUE_TIME * 1000:.0f} ms",
        f"when {rendezvous_relay.QUEUE_MAX:,} bytes wait",
        f"what is beyond {relay.UNANSWERED_MAX:,} bytes on a channel",
        f"an address of `{datagram_relay.NETWORK}`",
        f"`join-jwt`\n{joining.SEALED_MAX + joining.REQUEST_MAX:,} bytes",
        f"`sealed` (bin, at most {joining.SEALED_MAX:,})",
        f"reasons have at most {joining.TEXT_MAX} bytes",
        f"refuses the {member_list.REPLACED_MAX + 1}th\nrenewal",
        f"`POST {direct.JOIN_PATH}`",
        f"`{direct.CONTENT_TYPE}`",
    ],
)
def test_numbers_in_sentences(sentence: str) -> None:
    assert sentence in PAGE


@pytest.mark.parametrize(
    "row",
    [
        f"at least every {keepalive._RTT_PINGS * keepalive.PING_INTERVAL:g} s | PING",
        f"nothing was heard for {keepalive.PING_INTERVAL:g} s | PING",
        f"nothing was heard for {keepalive.PROBE_AFTER:g} s since | PING",
        f"has sent something {keepalive.ASK_AFTER:g} s ago",
        f"nothing was heard for {keepalive.DEAD_AFTER:g} s | the link is dead",
        f"nothing was heard for {keepalive.SUSPECT_AFTER:g} s since; three round trips",
        f"waits for a PONG for {keepalive.PONG_AFTER:g} s; three round trips",
        f"(at most {stall.DRAIN_MAX:g} s); after {stall.STALLED_MIN:g} s at the earliest",
        f"PING {keepalive.SEEN_INTERVALS * keepalive.PING_INTERVAL:g} s after the last answer",
        (
            f"PING after {keepalive.FAST_FAILOVER_TIMING.ping_interval:g} s "
            f"({keepalive.FAILOVER_TIMING.ping_interval:g} s outside the fast path) of silence"
        ),
        (
            f"after {keepalive.FAST_FAILOVER_TIMING.pong_after:g} s "
            f"({keepalive.FAILOVER_TIMING.pong_after:g} s) without a PONG"
        ),
    ],
)
def test_times_of_keepalive(row: str) -> None:
    assert row in re.sub(r"\s+", " ", PAGE)
