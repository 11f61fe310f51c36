"""Each sentence that the program says of a failure has its advice, under the name of the fault."""

import pytest

from socks_tunnel.ops.advice import advice_for, explain, known, why_chosen
from socks_tunnel.ops.labels import PATH_KINDS
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.signaling.envelope import EnvelopeRejected, Verifier, new_body, seal
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.portal import PORTAL_WORDS


def rejection(*, now: float = 0.0, stranger: bool = False, other: bool = False) -> str:
    """What an endpoint says of an offer whose sender has a fault."""
    gateway, endpoint, third = (PrivateIdentity.generate() for _ in range(3))
    known_keys = {(third if stranger else gateway).public: "laptop"}
    verifier = Verifier(endpoint.public, known_keys)
    to = third.public if other else endpoint.public
    offer = new_body("offer", gateway, to, session=bytes(16), now=1e9, sdp="v=0")
    with pytest.raises(EnvelopeRejected) as caught:
        verifier.open(seal(gateway, offer), 1e9 + now, kinds={"offer"})
    return f"rejected an offer from 192.0.2.1: {caught.value.sentence}"


@pytest.mark.parametrize(
    ("sentence", "about"),
    [
        (rejection(stranger=True), "wrong key"),
        (rejection(other=True), "wrong key"),
        (rejection(now=120), "clock skew"),
        (rejection(now=-600), "clock skew"),
        ("office: http://192.0.2.1/ refused the offer; its log says why", "offer refused"),
        (
            "http://a/ cannot be reached: the proxy b:3128 answered with HTTP status 407; it wants a user",
            "proxy authentication",
        ),
        (
            "TURN server turn:a:3478: it refuses the user name 'u' or the credential (401)",
            "TURN credentials",
        ),
        (
            "no path to the peer works (…; one side has only IPv4 addresses, the other only IPv6)",
            "no common candidate",
        ),
        ("there is no local address but loopback; name it in ice.addresses", "no candidate"),
        (
            "no ICE candidate pair has answered (ours: host 10.0.0.1 port 1; the peer's: none)",
            "UDP blocked",
        ),
        ("https://a/ has a certificate that ... no TLS with it", "TLS"),
        ("http://a/ cannot be reached: Name or service not known", "DNS"),
        ("STUN server stun:a:3478: its name cannot be resolved: Temporary failure", "DNS"),
        ("http://a/ cannot be reached: Connection refused", "signalling refused"),
        ("http://a/ did not answer within 15 s", "no answer"),
        (
            "http://a/ did not answer within 15 s: the connection was made, but nothing came back",
            "answer lost",
        ),
        ("https://a/ cannot be reached: Network is unreachable", "offline"),
        (f"https://a/: {PORTAL_WORDS} (HTTP status 302 to the offer)", "captive portal"),
        ("rendezvous wss://a/: the HTTP proxy answered with status 407", "proxy authentication"),
        ("rendezvous wss://a/: its name cannot be resolved: Try again", "DNS"),
        (
            "socks.listen: cannot listen on 127.0.0.1:1080: another program listens there",
            "port taken",
        ),
        ("[Errno 28] No space left on device", "disk full"),
        ("cannot connect to a:1: Too many open files", "descriptor limit"),
    ],
)
def test_a_fault_has_a_name_and_advice(sentence: str, about: str) -> None:
    found = explain(sentence)
    assert (found.level, found.about) == ("problem", about)
    assert found.sentence.startswith(sentence)
    assert found.advice
    assert explain(sentence, "link office").about == f"link office: {about}"
    assert known(sentence)
    assert advice_for(sentence) == f" {found.advice}"


def test_the_advice_in_a_log_line_is_not_said_twice() -> None:
    said = "cannot reach office: http://a/ cannot be reached: Network is unreachable"
    found = explain(f"{said}; trying again in 0.5 s.{advice_for(said)}")
    assert found.sentence == (
        f"{said}; trying again in 0.5 s. This host has no route to that address."
    )
    assert found.advice == advice_for(said).strip()


def test_what_nobody_has_seen_before_is_repeated() -> None:
    found = explain("the moon is in the way", "link")
    assert (found.about, found.sentence) == ("link", "the moon is in the way.")
    assert not known("the moon is in the way")
    assert advice_for("the moon is in the way") == ""
    assert clip(found.advice)


def test_why_a_pair_is_in_use() -> None:
    assert len({why_chosen(kind) for kind in PATH_KINDS}) == len(PATH_KINDS)
    assert why_chosen("") == "it is the best that has worked"
