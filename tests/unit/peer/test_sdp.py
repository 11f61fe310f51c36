"""The look at the peer's SDP before aiortc sees it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.peer.sdp import CANDIDATES_MAX, SDP_MAX, check_sdp
from socks_tunnel.protocol.errors import RemoteProtocolError

DIGEST = ":".join(["AB"] * 32)
GOOD = f"""v=0
o=- 4004368834 4004368834 IN IP4 0.0.0.0
s=-
t=0 0
a=group:BUNDLE 0
m=application 52802 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 192.0.2.1
a=mid:0
a=sctp-port:5000
a=max-message-size:65536
a=candidate:1 1 udp 2130706431 192.0.2.1 52802 typ host
a=candidate:2 1 udp 1694498815 2001:db8::1 6000 typ srflx raddr :: rport 9
a=end-of-candidates
a=ice-ufrag:Nv4c
a=ice-pwd:MMCWGCwjRtiYnBs23IFAaV
a=fingerprint:sha-256 {DIGEST}
a=setup:actpass
""".replace("\n", "\r\n")


def without(start: str) -> str:
    return "".join(line for line in GOOD.splitlines(keepends=True) if not line.startswith(start))


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


def refused(sdp: str) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        check_sdp(sdp)
    assert caught.value.kind == "sdp"
    return str(caught.value)


def test_what_matters_of_good_sdp() -> None:
    facts = check_sdp(GOOD)
    assert facts.fingerprints == [("sha-256", DIGEST)]
    assert facts.max_message_size == 65536
    assert facts.candidates == ["192.0.2.1 port 52802", "2001:db8::1 port 6000"]


@pytest.mark.parametrize(
    ("line", "size"),
    [("65536", 65536), ("262144", 65536), ("0", 65536), ("2000", 2000), ("1024", 1024)],
)
def test_max_message_size(line: str, size: int) -> None:
    assert check_sdp(changed("size:65536", f"size:{line}")).max_message_size == size


def test_an_absent_max_message_size_is_65536() -> None:
    assert check_sdp(without("a=max-message-size")).max_message_size == 65536


def test_fingerprints_of_other_hashes_do_not_count() -> None:
    weak = f"a=fingerprint:sha-1 {':'.join(['AB'] * 20)}\r\n"
    assert ("sha-1", ":".join(["AB"] * 20)) in check_sdp(GOOD + weak).fingerprints
    assert "sha-256 or stronger" in refused(without("a=fingerprint") + weak)


def test_an_empty_candidate_list_is_the_callers_to_judge() -> None:
    assert check_sdp(without("a=candidate")).candidates == []


VIDEO = "m=video 9 UDP/TLS/RTP/SAVPF 96\r\n"


@pytest.mark.parametrize(
    ("sdp", "sentence"),
    [
        ("", "v=0"),
        ("v=1\r\n", "v=0"),
        ("v=0\r\n", "one section"),
        (GOOD + GOOD.partition("m=")[1] + GOOD.partition("m=")[2], "one section"),
        (GOOD + VIDEO, "one section"),
        (changed("m=application 52802 UDP/DTLS/SCTP webrtc-datachannel\r\n", VIDEO), "one section"),
        (changed("UDP/DTLS/SCTP", "TCP/DTLS/SCTP"), "one section"),
        (changed("UDP/DTLS/SCTP webrtc-datachannel", "DTLS/SCTP 5000"), "one section"),
        (without("a=fingerprint"), "no DTLS fingerprint"),
        (changed(DIGEST, DIGEST[:-3]), "malformed DTLS fingerprint"),
        (changed(DIGEST, "xx"), "malformed DTLS fingerprint"),
        (changed(f"sha-256 {DIGEST}", "sha-256"), "malformed DTLS fingerprint"),
        (changed(DIGEST, f"{DIGEST} {DIGEST}"), "malformed DTLS fingerprint"),
        (without("a=setup"), "no a=setup"),
        (changed("actpass", "holdconn"), "unknown value"),
        (without("a=ice-ufrag"), "no a=ice-ufrag"),
        (without("a=ice-pwd"), "no a=ice-pwd"),
        (changed("ufrag:Nv4c", "ufrag:N"), "malformed"),
        (changed("ufrag:Nv4c", "ufrag:Nv4 c"), "malformed"),
        (without("a=sctp-port"), "no a=sctp-port"),
        (changed("port:5000", "port:0"), "out of range"),
        (changed("port:5000", "port:x"), "no number"),
        (changed("size:65536", "size:-1"), "no number"),
        (changed("size:65536", "size:1023"), "1024 are needed"),
        (changed("192.0.2.1 52802 typ", "secret.local 52802 typ"), "no IP address"),
        (changed("192.0.2.1 52802 typ", "fe80::1%lo 52802 typ"), "with a zone"),
        (changed("192.0.2.1 52802 typ", "192.0.2.1 0 typ"), "out of range"),
        (changed("192.0.2.1 52802 typ", "192.0.2.1 65536 typ"), "out of range"),
        (changed("udp 2130706431", "udp high"), "no number"),
        (changed("1 1 udp", "1 2 udp"), "malformed candidate"),
        (changed("typ host", "host"), "malformed candidate"),
        (changed("typ host", "typ host raddr"), "malformed candidate"),
        (GOOD + "a=candidate:1 1 udp 1 192.0.2.1 1 typ host\r\n" * CANDIDATES_MAX, "limit of 64"),
        (GOOD + "a=x\r\n" * SDP_MAX, "over the limit"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(sdp: str, sentence: str) -> None:
    assert sentence in refused(sdp)


@given(st.text(max_size=200))
def test_any_text_is_judged(text: str) -> None:
    refused(text)


@given(st.integers(0, len(GOOD) - 1), st.text(max_size=3))
def test_any_change_is_judged(position: int, replacement: str) -> None:
    try:
        check_sdp(GOOD[:position] + replacement + GOOD[position + 1 :])
    except RemoteProtocolError:
        return
