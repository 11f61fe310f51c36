"""Both ends of a connection to a rendezvous service: what may come when."""

from dataclasses import replace
from typing import Any

import pytest

from socks_tunnel.protocol import rendezvous as wire
from socks_tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.rendezvous_relay import Relayed, encode_relayed
from socks_tunnel.protocol.rendezvous_revoked import Revocation, encode_revocation
from socks_tunnel.protocol.rendezvous_states import ClientConnection, ServiceConnection
from socks_tunnel.signaling.identity import PrivateIdentity, verify

NOW = 1_700_000_000.5
NONCE = bytes(range(32))
WELCOME = wire.Welcome(bytes(8), 1_700_000_100, 66_048, 64, 10)


@pytest.fixture(scope="module")
def identity() -> PrivateIdentity:
    return PrivateIdentity.generate()


def proof(client: ClientConnection, identity: PrivateIdentity) -> bytes:
    return client.proof(identity.public, identity.sign(client.signed_text(NOW)), NOW)


def opened(identity: PrivateIdentity) -> tuple[ClientConnection, ServiceConnection]:
    client = ClientConnection("rendezvous.example:8443")
    service = ServiceConnection(NONCE, frozenset(), verify)
    assert client.receive(service.challenge(), NOW) == wire.Challenge(NONCE)
    service.receive(proof(client, identity))
    client.receive(wire.encode(WELCOME), NOW)
    return client, service


def test_a_key_is_proved(identity: PrivateIdentity) -> None:
    client, service = opened(identity)
    assert service.key == identity.public
    assert client.is_open
    assert client.welcome == WELCOME
    assert client.skew == 100
    assert service.receive(client.envelope(bytes(32), b"parcel")) == wire.ToKey(
        bytes(32), b"parcel"
    )


@pytest.mark.parametrize(
    ("hosts", "accepted"),
    [
        ((), True),
        (("rendezvous.example",), True),
        (("rendezvous.example:8443",), True),
        (("rendezvous.example:443", "other.example"), False),
        (("example",), False),
    ],
)
def test_the_host_in_a_proof_is_judged(
    identity: PrivateIdentity, hosts: tuple[str, ...], accepted: bool
) -> None:
    client = ClientConnection("Rendezvous.Example:8443")
    service = ServiceConnection(NONCE, frozenset(hosts), verify)
    client.receive(service.challenge(), NOW)
    frame = proof(client, identity)
    if accepted:
        service.receive(frame)
        return
    with pytest.raises(RemoteProtocolError, match="another host") as caught:
        service.receive(frame)
    assert caught.value.kind == "proof"
    assert service.key is None


@pytest.mark.parametrize("change", ["host", "time", "key", "signature", "nonce"])
def test_every_part_of_a_proof_is_signed(identity: PrivateIdentity, change: str) -> None:
    client = ClientConnection("a.example")
    nonce = bytes(32) if change == "nonce" else NONCE
    client.receive(wire.encode(wire.Challenge(nonce)), NOW)
    sent = wire.decode_from_client(proof(client, identity))
    assert isinstance(sent, wire.Proof)
    changes: dict[str, Any] = {
        "host": "b.example",
        "time": sent.time + 1,
        "key": PrivateIdentity.generate().public,
        "signature": bytes(64),
    }
    if change in changes:
        sent = replace(sent, **{change: changes[change]})
    service = ServiceConnection(NONCE, frozenset(), verify)
    with pytest.raises(RemoteProtocolError, match="the proof is wrong"):
        service.receive(wire.encode(sent))
    assert service.key is None


def test_a_long_frame_before_the_proof_is_not_decoded() -> None:
    service = ServiceConnection(NONCE, frozenset(), verify)
    with pytest.raises(RemoteProtocolError, match="long frame"):
        service.receive(bytes(wire.SHORT_FRAME_MAX + 1))


@pytest.mark.parametrize("frame", [wire.Watch((), reset=True), wire.ToKey(bytes(32), b"")])
def test_nothing_is_taken_before_the_proof(frame: wire.Frame) -> None:
    service = ServiceConnection(NONCE, frozenset(), verify)
    with pytest.raises(RemoteProtocolError, match="has no place in the state challenged"):
        service.receive(wire.encode(frame))


def test_a_second_proof_has_no_place(identity: PrivateIdentity) -> None:
    _, service = opened(identity)
    with pytest.raises(RemoteProtocolError, match="has no place in the state open"):
        service.receive(wire.encode(wire.Proof(bytes(32), "", 0, bytes(64))))


@pytest.mark.parametrize(
    "frame",
    [WELCOME, wire.Presence((), ()), wire.FromKey(bytes(32), b""), wire.Drain(1)],
)
def test_a_client_takes_a_challenge_first(frame: wire.Frame) -> None:
    with pytest.raises(RemoteProtocolError, match="has no place in the state start"):
        ClientConnection("a").receive(wire.encode(frame), NOW)


def test_a_client_takes_one_challenge(identity: PrivateIdentity) -> None:
    client = ClientConnection("a")
    challenge = wire.encode(wire.Challenge(NONCE))
    client.receive(challenge, NOW)
    with pytest.raises(RemoteProtocolError):
        client.receive(challenge, NOW)
    with pytest.raises(RemoteProtocolError):
        client.receive(wire.encode(WELCOME), NOW)
    client, _ = opened(identity)
    with pytest.raises(RemoteProtocolError):
        client.receive(challenge, NOW)


def test_a_further_welcome_replaces_the_first(identity: PrivateIdentity) -> None:
    client, _ = opened(identity)
    skew = client.skew
    renewed = replace(WELCOME, time=5, body=70, turn=(wire.TurnServer(("turn:a",), "9:me", "x"),))
    assert client.receive(wire.encode(renewed), NOW) == renewed
    assert (client.welcome, client.skew) == (renewed, skew)
    with pytest.raises(ValueError, match="the service takes 70"):
        client.envelope(bytes(32), bytes(71))


@pytest.mark.parametrize(
    "frame",
    [wire.Presence((bytes(32),), ()), wire.FromKey(bytes(32), b"x"), wire.Drain(5)],
    ids=lambda frame: type(frame).__name__,
)
def test_what_an_open_client_is_told(identity: PrivateIdentity, frame: wire.Frame) -> None:
    client, _ = opened(identity)
    assert client.receive(wire.encode(frame), NOW) == frame


def test_calls_out_of_turn_are_our_fault(identity: PrivateIdentity) -> None:
    client = ClientConnection("a")
    with pytest.raises(LocalProtocolError):
        client.proof(bytes(32), bytes(64), NOW)
    with pytest.raises(LocalProtocolError):
        client.envelope(bytes(32), b"")
    client, _ = opened(identity)
    with pytest.raises(LocalProtocolError):
        client.proof(bytes(32), bytes(64), NOW)
    with pytest.raises(ValueError, match="the service takes 66048"):
        client.envelope(bytes(32), bytes(66_049))


def test_datagrams_have_a_place_once_the_key_is_proved(identity: PrivateIdentity) -> None:
    client, service = opened(identity)
    frame = Relayed(bytes(32), b"channel1", b"datagram", 8)
    assert service.receive(encode_relayed(frame, "to")) == frame
    assert client.receive(encode_relayed(frame, "from"), NOW) == frame
    with pytest.raises(RemoteProtocolError, match="has no place in the state challenged"):
        ServiceConnection(NONCE, frozenset(), verify).receive(encode_relayed(frame, "to"))
    with pytest.raises(RemoteProtocolError, match="has no place in the state start"):
        ClientConnection("a").receive(encode_relayed(frame, "from"), NOW)


# --- exactly what is said -------------------------------------------------------------------------


@pytest.mark.parametrize("enrolment", [b"", b"paper"])
def test_a_proof_shows_the_enrolment_and_nothing_without_one(
    identity: PrivateIdentity, enrolment: bytes
) -> None:
    client = (
        ClientConnection("a.example", enrolment) if enrolment else ClientConnection("a.example")
    )
    client.receive(wire.encode(wire.Challenge(NONCE)), NOW)
    sent = wire.decode_from_client(client.proof(identity.public, bytes(64), NOW))
    assert sent == wire.Proof(identity.public, "a.example", int(NOW), bytes(64), enrolment)


def test_a_client_begins_with_nothing_known() -> None:
    client = ClientConnection("a.example")
    assert (client.welcome, client.skew, client.is_open) == (None, 0, False)


def test_an_envelope_holds_as_much_as_the_service_takes(identity: PrivateIdentity) -> None:
    client, _ = opened(identity)
    client.receive(wire.encode(replace(WELCOME, body=70)), NOW)
    sent = wire.decode_from_client(client.envelope(bytes(32), bytes(70)))
    assert sent == wire.ToKey(bytes(32), bytes(70))
    with pytest.raises(ValueError, match=r"^71 bytes are to be sent; the service takes 70$"):
        client.envelope(bytes(32), bytes(71))


def test_a_call_out_of_turn_says_what_is_missing() -> None:
    client = ClientConnection("a.example")
    with pytest.raises(LocalProtocolError, match=r"^there is no challenge to answer$"):
        client.proof(bytes(32), bytes(64), NOW)
    with pytest.raises(LocalProtocolError, match=r"^the key is not proved yet$"):
        client.envelope(bytes(32), b"")


def test_a_frame_out_of_turn_is_named_and_has_its_own_kind() -> None:
    with pytest.raises(
        RemoteProtocolError, match=r"^a Welcome has no place in the state start$"
    ) as caught:
        ClientConnection("a.example").receive(wire.encode(WELCOME), NOW)
    assert caught.value.kind == "out-of-turn"
    service = ServiceConnection(NONCE, frozenset(), verify)
    with pytest.raises(
        RemoteProtocolError, match=r"^a ToKey has no place in the state challenged$"
    ) as caught:
        service.receive(wire.encode(wire.ToKey(bytes(32), b"")))
    assert caught.value.kind == "out-of-turn"


def test_the_port_is_what_follows_the_last_colon(identity: PrivateIdentity) -> None:
    client = ClientConnection("[2001:db8::1]:8443")
    service = ServiceConnection(NONCE, frozenset({"[2001:db8::1]"}), verify)
    client.receive(service.challenge(), NOW)
    service.receive(proof(client, identity))
    assert service.key == identity.public


@pytest.mark.parametrize(
    ("hosts", "sentence"),
    [
        (("b.example",), "the proof is for another host"),
        ((), "the proof is wrong"),
    ],
)
def test_a_refused_proof_has_its_own_kind(hosts: tuple[str, ...], sentence: str) -> None:
    service = ServiceConnection(NONCE, frozenset(hosts), verify)
    with pytest.raises(RemoteProtocolError, match=f"^{sentence}$") as caught:
        service.receive(wire.encode(wire.Proof(bytes(32), "a.example", 0, bytes(64))))
    assert caught.value.kind == "proof"


def test_a_frame_before_the_proof_is_as_long_as_the_limit_at_most() -> None:
    service = ServiceConnection(NONCE, frozenset(), verify)
    with pytest.raises(
        RemoteProtocolError, match=r"^a long frame came before the proof$"
    ) as caught:
        service.receive(bytes(wire.SHORT_FRAME_MAX + 1))
    assert caught.value.kind == "malformed"
    with pytest.raises(RemoteProtocolError) as caught:
        service.receive(bytes(wire.SHORT_FRAME_MAX))
    assert "long frame" not in str(caught.value), "it was decoded"


# --- revocations ----------------------------------------------------------------------------------


def said(identity: PrivateIdentity, client: ClientConnection, number: int) -> bytes:
    bare = Revocation(number, True, (bytes(32),))
    signature = identity.sign(client.revocation_text(bare))
    return encode_revocation(replace(bare, signature=signature))


def test_a_revocation_is_taken_once(identity: PrivateIdentity) -> None:
    client, service = opened(identity)
    first, second = said(identity, client, 1), said(identity, client, 2)
    assert isinstance(service.receive(first), Revocation)
    assert isinstance(service.receive(second), Revocation)
    for again in (first, second):
        with pytest.raises(
            RemoteProtocolError, match=r"^a revocation came a second time$"
        ) as caught:
            service.receive(again)
        assert caught.value.kind == "revocation"


def test_a_revocation_means_nothing_on_another_connection(identity: PrivateIdentity) -> None:
    client, _ = opened(identity)
    recorded = said(identity, client, 1)
    service = ServiceConnection(bytes([9]) * 32, frozenset(), verify)
    other = ClientConnection("a.example")
    other.receive(service.challenge(), NOW)
    service.receive(proof(other, identity))
    with pytest.raises(
        RemoteProtocolError, match=r"^the signature of a revocation is wrong$"
    ) as caught:
        service.receive(recorded)
    assert caught.value.kind == "revocation"


def test_nobody_else_signs_a_revocation(identity: PrivateIdentity) -> None:
    client, service = opened(identity)
    with pytest.raises(RemoteProtocolError, match="signature of a revocation is wrong"):
        service.receive(said(PrivateIdentity.generate(), client, 1))
    with pytest.raises(RemoteProtocolError, match="has no place in the state challenged"):
        ServiceConnection(NONCE, frozenset(), verify).receive(said(identity, client, 1))
