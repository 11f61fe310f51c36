"""docs/protocol-vectors.md has each message of signalling in bytes, as this software sends and takes it.

If a block differs, the failure shows the one that belongs into the page. The contract with other implementations is the
page: a block changes only with the protocol.
"""

import re
import textwrap
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from socks_tunnel.peer.ice.datagram_relay import channel_address
from socks_tunnel.protocol import rendezvous as wire
from socks_tunnel.protocol.rendezvous_load import Load
from socks_tunnel.protocol.rendezvous_relay import Relayed, encode_relayed
from socks_tunnel.protocol.rendezvous_revoked import Revocation, encode_revocation, signed_text
from socks_tunnel.protocol.rendezvous_states import ServiceConnection
from socks_tunnel.signaling import envelope, group_list, joining, joining_jwt
from socks_tunnel.signaling.identity import PrivateIdentity, public_key_text, verify
from socks_tunnel.signaling.member_list import Entry
from support.checkout import ROOT

PAGE = (ROOT / "docs/protocol-vectors.md").read_text("utf-8")
PROTOCOL = (ROOT / "docs/protocol.md").read_text("utf-8")

NOW = 1_800_000_000
HOST = "rendezvous.example.net"
CHALLENGE = bytes(range(0x20, 0x40))
NONCE = bytes(range(0x10, 0x20))
SESSION = bytes(range(16))
REF = bytes(range(8))
CHANNEL = bytes.fromhex("a0a1a2a3a4a5a6a7")
SECRET = bytes.fromhex("b0b1b2b3b4b5b6b7b8b9babbbcbdbebf")
INVITATION = bytes.fromhex("c0c1c2c3c4c5c6c7")


def identity(byte: int) -> PrivateIdentity:
    return PrivateIdentity(Ed25519PrivateKey.from_private_bytes(bytes([byte]) * 32))


GATEWAY, ENDPOINT, NEW = identity(0x67), identity(0x65), identity(0x6E)
BOX = X25519PrivateKey.from_private_bytes(b"\x62" * 32)
ENVELOPE = envelope.seal(
    GATEWAY,
    envelope.Body(
        "offer", GATEWAY.public, ENDPOINT.public, SESSION, NONCE, None, NOW + 60, "v=0\r\n"
    ),
)

# HPKE chooses a key at random, so what it made once stands here.
SEALED_JWT = bytes.fromhex(
    "e23dd5970ea0a7b47baab6bb0d7bc77b2305de69d33420dc68c1a5af68327e1bde7976b45a7125f2cfa264b510c5eed4"
    "f3e9c66a5a0ae675ae669dc28952318cff5bc85e9a37de02149664"
)
SEALED_LIST = bytes.fromhex(
    "5cda7c553915ac0c77be456d1d621fcfd2df5cc1be8ac1a77dac8c9aec672802d1bfeedf6e323eea5015ee76b5f2a00e"
    "6ffa05399ea78e6e29545368d5eddf19746c650c8c6d8496a03ebc5d1a43cd464b228a633f4d587ab0d044d8bf9f2ad1"
    "6863defea6938e56a7befff2e3d0a27ed6213fd4821e66928dd26a8b18835ebf4ce9a9caae0e477919f602423b535ef4"
    "8ff705fb91086d96996d63b4da8311d587053194517e963ae9"
)
JWT = "eyJhbGciOiJFUzI1NiJ9.e30.AA"
ENTRIES: list[Entry] = [
    {"entry": "left", "name": "old-laptop"},
    {
        "entry": "renewed",
        "name": "laptop",
        "key": public_key_text(NEW.public),
        "old_until": NOW + 86_400,
    },
]


# --- what a block looks like ------------------------------------------------------------------------


def shown(value: object) -> str:
    match value:
        case None:
            return "nil"
        case bool():
            return "true" if value else "false"
        case bytes():
            return f"{len(value)} bytes"
        case str():
            return f'"{value}"'
        case list():
            return f"a list of {len(value)}"
        case dict():
            return f"a map of {len(value)}"
    return f"{value}"


def line(code: str, comment: str) -> str:
    return f"{code:58}  {comment}".replace("\r\n", " CR LF")


def lines(value: Any, indent: str, name: str = "", key: str = "") -> Iterator[str]:
    """Yields one value: its bytes to the left, and what they are to the right."""
    comment = f'"{name}": {shown(value)}' if name else shown(value)
    packed = msgpack.packb(value)
    if isinstance(value, dict | list):
        head = (0x80 if isinstance(value, dict) else 0x90) | len(value)
        assert packed[0] == head, "at most 15 entries"
        yield line(f"{indent}{key}{head:02x}", comment)
        for entry in value.items() if isinstance(value, dict) else value:
            if isinstance(value, dict):
                yield from lines(
                    entry[1], indent + "  ", entry[0], msgpack.packb(entry[0]).hex() + " "
                )
            else:
                yield from lines(entry, indent + "  ")
        return
    size = len(value) if isinstance(value, bytes) else 0
    begin, rest = packed[: len(packed) - size], packed[len(packed) - size :]
    inner = None
    if name in {"body", "envelope", "enrolment"} and rest and rest[0] >> 4 == 0x8:  # a map
        inner = msgpack.unpackb(rest)
    if inner is None and size <= 16:
        yield line(f"{indent}{key}{packed.hex()}", comment)
        return
    yield line(f"{indent}{key}{begin.hex()}", comment)
    if inner is not None:
        assert msgpack.packb(inner) == rest
        yield from lines(inner, indent + "  ")
    else:
        yield from (f"{indent}  {part}" for part in textwrap.wrap(rest.hex(), 64))


def block(data: bytes) -> str:
    return "\n".join(row.rstrip() for row in lines(msgpack.unpackb(data), ""))


def bytes_of(text: str) -> bytes:
    return bytes.fromhex(
        "".join(re.split(r" {2,}(?=[^ ])", line.strip())[0] for line in text.splitlines())
    )


# --- frames of a rendezvous service -----------------------------------------------------------------


def proof() -> wire.Proof:
    signature = GATEWAY.sign(wire.proof_text(HOST, CHALLENGE, NOW))
    return wire.Proof(GATEWAY.public, HOST, NOW, signature)


def revocation() -> Revocation:
    unsigned = Revocation(1, reset=True, keys=(GATEWAY.public,))
    signature = ENDPOINT.sign(signed_text(CHALLENGE, HOST, unsigned))
    return Revocation(1, reset=True, keys=(GATEWAY.public,), signature=signature)


WELCOME = wire.Welcome(
    REF,
    NOW,
    66_048,
    64,
    10,
    (wire.TurnServer(("turn:turn.example.net:3478",), "1800003600:laptop", "aGk="),),
    relay=2_000_000,
    load=5,
)
LOADED = ((ENDPOINT.public, Load(3, 1, "0.1.0")),)

FRAMES: dict[
    str, wire.Challenge | wire.Welcome | wire.Presence | wire.FromKey | wire.Absent | wire.Drain
] = {
    "challenge": wire.Challenge(CHALLENGE),
    "welcome": WELCOME,
    "presence": wire.Presence((ENDPOINT.public,), (), LOADED),
    "envelope, from the service": wire.FromKey(GATEWAY.public, b"parcel"),
    "absent": wire.Absent(ENDPOINT.public, "unrelayed", CHANNEL),
    "drain": wire.Drain(10),
}
FROM_SERVICE: dict[str, tuple[bytes, wire.FromService]] = {
    name: (wire.encode(frame), frame) for name, frame in FRAMES.items()
}
RELAYED = Relayed(ENDPOINT.public, CHANNEL, b"first one.second.", 10)
FROM_SERVICE["relay, from the service"] = encode_relayed(RELAYED, "from"), RELAYED
FROM_CLIENT: dict[str, tuple[bytes, wire.FromClient]] = {
    "proof": (wire.encode(proof()), proof()),
    "watch": (
        wire.encode(wire.Watch((ENDPOINT.public,), reset=True, loads=True)),
        wire.Watch((ENDPOINT.public,), reset=True, loads=True),
    ),
    "load": (wire.encode(Load(3, 1, "0.1.0")), Load(3, 1, "0.1.0")),
    "revoked": (encode_revocation(revocation()), revocation()),
    "envelope, from a client": (
        wire.encode(wire.ToKey(ENDPOINT.public, b"parcel")),
        wire.ToKey(ENDPOINT.public, b"parcel"),
    ),
    "relay, from a client": (encode_relayed(RELAYED, "to"), RELAYED),
}
PARCEL = wire.Parcel("offer", REF, "", ENVELOPE)


def check(name: str, data: bytes) -> None:
    """The page has this block below the heading of that name."""
    _, _, after = PAGE.partition(f"### {name}\n")
    found = re.search(r"```\n(.*?)\n```", after.partition("\n### ")[0], re.DOTALL)
    assert found is not None, f"### {name}\n\n```\n{block(data)}\n```\n"
    assert found[1] == block(data)
    assert bytes_of(found[1]) == data


@pytest.mark.parametrize("name", FROM_SERVICE)
def test_frame_of_the_service(name: str) -> None:
    data, frame = FROM_SERVICE[name]
    check(name, data)
    assert wire.decode_from_service(data) == frame


@pytest.mark.parametrize("name", FROM_CLIENT)
def test_frame_of_a_client(name: str) -> None:
    data, frame = FROM_CLIENT[name]
    check(name, data)
    assert wire.decode_from_client(data) == frame


def test_the_service_takes_the_signatures() -> None:
    connection = ServiceConnection(CHALLENGE, frozenset({HOST}), verify)
    assert connection.receive(FROM_CLIENT["proof"][0]) == proof()
    endpoint = ServiceConnection(CHALLENGE, frozenset({HOST}), verify)
    signature = ENDPOINT.sign(wire.proof_text(HOST, CHALLENGE, NOW))
    endpoint.receive(wire.encode(wire.Proof(ENDPOINT.public, HOST, NOW, signature)))
    assert endpoint.receive(FROM_CLIENT["revoked"][0]) == revocation()


def test_parcel() -> None:
    check("parcel", wire.encode_parcel(PARCEL))
    assert wire.decode_parcel(wire.encode_parcel(PARCEL)) == PARCEL


def test_the_envelope_in_the_page_of_the_protocol() -> None:
    """Section 7.2 prints it, with another layout."""
    _, _, after = PROTOCOL.partition("public key of the gateway   ")
    keys, _, code = after.partition("```")[0].partition("\n\n")
    assert re.findall(r"[0-9a-f]{64}", keys) == [GATEWAY.public.hex(), ENDPOINT.public.hex()]
    assert bytes_of(code) == ENVELOPE
    verifier = envelope.Verifier(ENDPOINT.public, {GATEWAY.public: "laptop"})
    body, name = verifier.open(ENVELOPE, NOW)
    assert (body.kind, body.nonce, name) == ("offer", NONCE, "laptop")
    assert f"`{GATEWAY.public_text}`" in PROTOCOL


def test_address_of_a_channel() -> None:
    assert f"`{channel_address(CHANNEL)}`" in PAGE


# --- joining ----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _fixed_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nonces and keys that are otherwise chosen at random."""
    nonces = SimpleNamespace(token_bytes=lambda size: NONCE[:size])
    for module in (joining, joining_jwt, group_list):
        monkeypatch.setattr(module, "secrets", nonces)
    monkeypatch.setattr(group_list, "X25519PrivateKey", SimpleNamespace(generate=lambda: BOX))


def sealing(monkeypatch: pytest.MonkeyPatch, module: object, sealed: bytes) -> None:
    suite = SimpleNamespace(encrypt=lambda *_: sealed, decrypt=joining_jwt.SUITE.decrypt)
    monkeypatch.setattr(module, "SUITE", suite)


TOKEN = joining.Token(ENDPOINT.public, INVITATION, SECRET)


def join() -> tuple[bytes, joining.JoinRequest]:
    return joining.new_request(GATEWAY, TOKEN, "laptop", NOW)


def test_token() -> None:
    assert f"`{TOKEN}`" in PAGE
    assert joining.Token.parse(str(TOKEN)) == TOKEN


def test_join() -> None:
    data, _ = join()
    check("join", data)
    request = joining.open_request(data, ENDPOINT.public, NOW)
    assert isinstance(request, joining.JoinRequest)
    assert request.proves(SECRET)
    assert request.proof.hex() in re.sub(r"\s", "", PAGE)


def test_enrolment_and_joined() -> None:
    enrolment = joining.enrolment_for(ENDPOINT, GATEWAY.public, NOW + 86_400)
    check("enrolment", enrolment)
    assert joining.open_enrolment(enrolment, GATEWAY.public, NOW).by == ENDPOINT.public
    _, request = join()
    decided = joining.Joined("laptop", "staff", NOW + 86_400, enrolment)
    data = joining.answer_to(ENDPOINT, request, decided)
    check("joined", data)
    assert joining.open_answer(data, request) == decided


def test_not_joined() -> None:
    _, request = join()
    data = joining.answer_to(ENDPOINT, request, joining.NotJoined("the name is taken"))
    check("not-joined", data)
    assert joining.open_answer(data, request) == joining.NotJoined("the name is taken")


def test_renew() -> None:
    data, expected = joining.new_renewal(GATEWAY, NEW, ENDPOINT.public, NOW)
    check("renew", data)
    assert joining.open_request(data, ENDPOINT.public, NOW) == expected


def test_join_jwt(monkeypatch: pytest.MonkeyPatch) -> None:
    address = joining_jwt.JoinAddress.of(ENDPOINT)
    assert f"`{address}`" in PAGE
    assert joining_jwt.JoinAddress.parse(str(address).rstrip("=")) == address, (
        "the padding may be left out"
    )
    sealing(monkeypatch, joining_jwt, SEALED_JWT)
    data, _ = joining_jwt.new_jwt_request(GATEWAY, address, "laptop", JWT, NOW)
    check("join-jwt", data)
    request = joining.open_request(data, ENDPOINT.public, NOW)
    assert isinstance(request, joining.JwtRequest)
    assert joining_jwt.unseal(request, ENDPOINT) == JWT
    assert f"`{JWT}`" in PAGE


def listing() -> tuple[bytes, group_list.ListRequest]:
    return group_list.new_request(GATEWAY, ENDPOINT.public, "office", (7, 41), NOW)


def test_list() -> None:
    data, request = listing()
    check("list", data)
    found = group_list.open_request(data, ENDPOINT.public, "office", {GATEWAY.public: "copy"}, NOW)
    assert found == request


def test_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    _, request = listing()
    sealing(monkeypatch, group_list, SEALED_LIST)
    portion = group_list.Portion((7, 43), reset=False, more=False, entries=tuple(ENTRIES))
    data = group_list.answer_to(ENDPOINT, request, portion)
    check("listed", data)
    assert group_list.open_answer(data, request) == portion
    check("the entries of this `listed`", msgpack.packb(ENTRIES))


def test_list_changed_and_noted() -> None:
    data, change = group_list.new_change(ENDPOINT, GATEWAY.public, "office", NOW)
    check("list-changed", data)
    assert (
        group_list.open_request(data, GATEWAY.public, "office", {ENDPOINT.public: "owner"}, NOW)
        == change
    )
    noted = group_list.noted(GATEWAY, change)
    check("list-noted", noted)
    group_list.check_noted(noted, change)


def test_each_kind_has_a_block() -> None:
    """The kinds in the tables of sections 7.4 and 7.5."""

    def section(begin: str, end: str) -> str:
        return PROTOCOL.partition(begin)[2].partition(end)[0]

    kinds = re.findall(
        r"^\| `([a-z-]+)` \| (?:service|client|host|endpoint|copy|owner) \|",
        section("### 7.4", "## 8"),
        re.MULTILINE,
    )
    headings = re.findall(r"^### ([a-z-]+)", PAGE, re.MULTILINE)
    assert len(kinds) == 22
    assert set(kinds) <= set(headings)
