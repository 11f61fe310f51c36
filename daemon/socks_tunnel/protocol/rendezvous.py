"""What a rendezvous service and its clients say to each other, version 1. Sans-IO.

Gateways and endpoints each hold one outbound WebSocket (RFC 6455) to the service, at the path
:data:`PATH`. Each binary message on it is one frame, a msgpack map::

    kind        from     carries
    challenge   service  "nonce": bin 32
    proof       client   "key": bin 32, "host": str, "time": int, "signature": bin 64,
                         "enrolment": bin
    welcome     service  "session": bin 8, "time": int,
                         "limits": {"body": int, "watch": int, "rate": int,
                                    "relay": int, "load": int, "revoked": int},
                         "turn": [{"urls": [str], "username": str, "credential": str}]
    watch       client   "keys": bin 32*n, "reset": bool,      whom the client may talk to
                         "guests": bool,                       envelopes of others are welcome too
                         "loads": bool                         it wants to know how busy they are
    presence    service  "online": bin 32*n, "offline": bin 32*n, "loads": list
    load        client   socks_tunnel.protocol.rendezvous_load
    revoked     client   socks_tunnel.protocol.rendezvous_revoked
    envelope    client   "to": bin 32, "body": bin
                service  "from": bin 32, "body": bin
    relay       client   "to": bin 32, "channel": bin 8, "datagram": bin, "segment": int
                service  "from": bin 32, "channel": bin 8, "datagram": bin, "segment": int
    absent      service  "to": bin 32, "reason": str,          an envelope was not passed on,
                         "channel": bin                        or datagrams of this channel
    drain       service  "within": int                         seconds in which to leave

Unknown keys are ignored; an unknown kind is a protocol error. Times are Unix seconds. `turn` may be
absent, `enrolment` (socks_tunnel.signaling.joining) is empty or absent where there is none, and
`guests` and `loads` are false where they are absent. Where the limit `relay` is absent or 0, no
datagrams are relayed (socks_tunnel.protocol.rendezvous_relay). A further `welcome` replaces what
the first one said: it renews logins before they expire.

::

    client                                     service
      <------------- challenge ----------------   nothing is kept for the client yet
      -------------- proof -------------------->  the key is proved, and may be refused
      <------------- welcome ------------------
      -------------- watch (one or several) --->
      <------------- presence -----------------
      -------------- envelope ----------------->  passed on, or `absent` comes back

The signature is Ed25519 (RFC 8032) over what :func:`proof_text` returns. The host in it is the one
that the client has connected to, so that a service cannot pass a challenge of another one on to its
own clients and use the proof there.

The service passes an envelope on only if its receiver watches the sender or takes guests, and tells
of a key's presence only if both watch each other. To anybody else, a key is absent. What is passed
on is a parcel, which is between the clients and means nothing to the service::

    parcel      "kind": "offer" | "answer" | "refused" | "bye" | "join" | "joined",
                "ref": bin 8,         chosen by who asks, repeated in what answers it
                "session": str,       names the session in an answer and in a bye; "" otherwise
                "envelope": bin       signed (socks_tunnel.signaling.envelope); empty if refused

Neither frames nor parcels are signed: whoever runs the service can drop, delay, repeat, invent and
exchange them. What counts is the envelope.

This file is long because frames, bounds and both directions of the codec belong together.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import msgpack

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.rendezvous_load import (
    LOADS_PER_FRAME,
    KeyLoad,
    Load,
    decode_load,
    decode_loads,
    encode_loads,
)
from socks_tunnel.protocol.rendezvous_relay import CHANNEL_SIZE, Relayed, decode_relayed
from socks_tunnel.protocol.rendezvous_revoked import Revocation, decode_revocation

PATH: Final = "/v1"
"""Path of the WebSocket, after the path of the URL that a configuration names."""

KEY_SIZE: Final = 32
NONCE_SIZE: Final = 32
SIGNATURE_SIZE: Final = 64
SESSION_SIZE: Final = 8
REF_SIZE: Final = 8

PARCEL_MAX: Final = 65_536 + 512
"""Longest parcel in bytes: the longest envelope and what goes with it."""

FRAME_MAX: Final = PARCEL_MAX + 256
"""Longest frame in bytes."""

KEYS_PER_FRAME: Final = 1024
"""Most keys in one field of a frame; longer lists take several frames."""

HOST_MAX: Final = 300
"""Longest host, with its port, in bytes."""

SHORT_FRAME_MAX: Final = 1024
"""Longest frame in bytes that is read from a client that has proved nothing yet."""

_U64_MAX: Final = (1 << 64) - 1
_TIME_MAX: Final = (1 << 53) - 1
"""Latest Unix time of a service: sums with it still fit 64 bits, and a float."""

_DRAIN_MAX: Final = 3600
_LOAD_MAX: Final = 3600

TURN_SERVERS_MAX: Final = 8
"""Most TURN servers in one welcome."""

TURN_URLS_MAX: Final = 8
"""Most URLs of one of them."""

_BOUNDS: Final = bounded.Bounds(
    size=FRAME_MAX, text=HOST_MAX, binary=PARCEL_MAX, entries=16, items=64, depth=2
)
_SERVICE_BOUNDS: Final = bounded.Bounds(
    size=FRAME_MAX, text=HOST_MAX, binary=PARCEL_MAX, entries=16, items=256, depth=4
)
"""A welcome is the only frame with structures: a map of lists of maps of lists."""

_PARCEL_BOUNDS: Final = bounded.Bounds(
    size=PARCEL_MAX, text=128, binary=PARCEL_MAX, entries=16, items=64, depth=1
)

CLOSE_PROTOCOL: Final = 4400
"""Close codes of the WebSocket (RFC 6455 section 7.4.2: 4000 to 4999 are for private use)."""
CLOSE_PROOF: Final = 4401
CLOSE_FORBIDDEN: Final = 4403
CLOSE_LATE: Final = 4408
CLOSE_REPLACED: Final = 4409
CLOSE_TOO_MUCH: Final = 4429
CLOSE_GOING_AWAY: Final = 1001

CLOSE_MEANINGS: Final[Mapping[int, str]] = {
    CLOSE_PROTOCOL: "it could not make sense of what this host sent",
    CLOSE_PROOF: "it did not accept the proof of this host's key; is the URL's host the one that "
    "it goes by?",
    CLOSE_FORBIDDEN: "it does not know this host's key",
    CLOSE_LATE: "this host was too slow",
    CLOSE_REPLACED: "another connection with the same key took the place of this one; do two hosts "
    "have the same private key?",
    CLOSE_TOO_MUCH: "this host sent or asked for too much",
    CLOSE_GOING_AWAY: "it is shutting down",
}
"""What a client says when the service closed with such a code; ends a sentence."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """The service asks for a proof."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class Proof:
    """A client says who it is. `host` is whom it believes to talk to."""

    key: bytes
    host: str
    time: int
    signature: bytes
    enrolment: bytes = b""


@dataclass(frozen=True, slots=True)
class TurnServer:
    """A TURN server (RFC 8656), and a login for it that expires."""

    urls: tuple[str, ...]
    username: str
    credential: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Welcome:
    """The key is proved.

    `body` is the longest parcel in bytes, `watch` the most keys that may be watched, `rate` the
    envelopes a second that are passed on for long. `turn` are servers that the client may use.
    `relay` is how many bytes a second are relayed for it; 0: none are. `load` is how many seconds
    lie between two frames about its load; 0: none are taken. `revoked` is how many keys the service
    remembers whose enrolment by this client is void; 0: it takes none.
    """

    session: bytes
    time: int
    body: int
    watch: int
    rate: int
    turn: tuple[TurnServer, ...] = ()
    relay: int = 0
    load: int = 0
    revoked: int = 0


@dataclass(frozen=True, slots=True)
class Watch:
    """The client may talk to these keys; with `reset`, to no others.

    With `guests`, it also takes envelopes of keys that it does not watch: of hosts that join. With
    `loads`, it is told how busy they are.
    """

    keys: tuple[bytes, ...]
    reset: bool
    guests: bool = False
    loads: bool = False


@dataclass(frozen=True, slots=True)
class Presence:
    """Watched keys have come or gone, or have another load."""

    online: tuple[bytes, ...]
    offline: tuple[bytes, ...]
    loads: tuple[KeyLoad, ...] = ()


@dataclass(frozen=True, slots=True)
class ToKey:
    """An envelope on its way to the service."""

    to: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class FromKey:
    """An envelope on its way from the service. `sender` is what the service says it is."""

    sender: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Absent:
    """An envelope was not passed on, or datagrams of a channel were not relayed.

    `reason` is one of :data:`REASONS`; `channel` is empty for an envelope.
    """

    to: bytes
    reason: str
    channel: bytes = b""


@dataclass(frozen=True, slots=True)
class Drain:
    """The service wants its clients to leave within so many seconds."""

    within: int


REASONS: Final[Mapping[str, str]] = {
    "absent": "the peer is not there, or does not name this host's key",
    "busy": "the peer takes no envelopes at the moment",
    "rate": "too many envelopes were sent",
    "elsewhere": "the peer is at another node of the service, which is not reached at the moment",
    "unrelayed": "the service relays nothing for this host",
    "channels": "the service relays for as many hosts as it may already",
}
"""Why something was not passed on, in the frame and in words. The last three are those of
datagrams alone."""

FromService: TypeAlias = Challenge | Welcome | Presence | FromKey | Absent | Drain | Relayed
FromClient: TypeAlias = Proof | Watch | ToKey | Relayed | Load | Revocation
Frame: TypeAlias = (
    Challenge | Welcome | Presence | FromKey | Absent | Drain | Proof | Watch | ToKey | Load
)
"""All but datagrams, whose encoder has to know in which direction they go."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What two clients pass to each other through the service."""

    kind: str
    ref: bytes
    session: str = ""
    envelope: bytes = b""


PARCEL_KINDS: Final = frozenset({"offer", "answer", "refused", "bye", "join", "joined"})


def proof_text(host: str, nonce: bytes, time: int) -> bytes:
    """Returns the bytes that a proof signs.

    ::

        "socks-tunnel rendezvous" 0x00 | NONCE 32 | TIME 8 | HOST (UTF-8, the rest)
    """
    return b"socks-tunnel rendezvous\0" + nonce + time.to_bytes(8, "big") + host.encode()


# --- encoding ---------------------------------------------------------------------------------


def encode(frame: Frame) -> bytes:
    """Returns the frame's bytes."""
    packed: bytes = msgpack.packb(_fields(frame))
    return packed


def _fields(frame: Frame) -> dict[str, Any]:
    match frame:
        case Challenge(nonce):
            return {"kind": "challenge", "nonce": nonce}
        case Proof(key, host, time, signature, enrolment):
            return {
                "kind": "proof",
                "key": key,
                "host": host,
                "time": time,
                "signature": signature,
                "enrolment": enrolment,
            }
        case Welcome(session, time, body, watch, rate, turn, relay, load, revoked):
            limits = {"body": body, "watch": watch, "rate": rate, "relay": relay, "load": load}
            limits["revoked"] = revoked
            return {
                "kind": "welcome",
                "session": session,
                "time": time,
                "limits": limits,
                "turn": [
                    {"urls": s.urls, "username": s.username, "credential": s.credential}
                    for s in turn
                ],
            }
        case Watch(keys, reset, guests, loads):
            fields = {"kind": "watch", "keys": b"".join(keys), "reset": reset, "guests": guests}
            return {**fields, "loads": loads}
        case Presence(online, offline, told):
            fields = {"online": b"".join(online), "offline": b"".join(offline)}
            more = {"loads": encode_loads(told)} if told else {}
            return {"kind": "presence", **fields, **more}
        case Load(flows, links, version):
            return {"kind": "load", "flows": flows, "links": links, "version": version}
        case ToKey(to, body):
            return {"kind": "envelope", "to": to, "body": body}
        case FromKey(sender, body):
            return {"kind": "envelope", "from": sender, "body": body}
        case Absent(to, reason, channel):
            return {"kind": "absent", "to": to, "reason": reason, "channel": channel}
        case _:  # a Drain: there are no others
            return {"kind": "drain", "within": frame.within}


def watches(keys: Iterable[bytes], *, guests: bool = False, loads: bool = False) -> Iterator[bytes]:
    """Yields the frames that replace all watched keys by `keys`; at least one."""
    chunks = list(_chunks(list(keys))) or [()]
    for number, chunk in enumerate(chunks):
        yield encode(Watch(chunk, reset=number == 0, guests=guests, loads=loads))


def presences(online: Iterable[bytes], offline: Iterable[bytes] = ()) -> Iterator[bytes]:
    """Yields the frames that tell of these keys; none for none."""
    for chunk in _chunks(list(online)):
        yield encode(Presence(chunk, ()))
    for chunk in _chunks(list(offline)):
        yield encode(Presence((), chunk))


def loads_of(loads: list[KeyLoad]) -> Iterator[bytes]:
    """Yields the frames that tell of these loads; none for none."""
    for start in range(0, len(loads), LOADS_PER_FRAME):
        yield encode(Presence((), (), tuple(loads[start : start + LOADS_PER_FRAME])))


def _chunks(keys: list[bytes]) -> Iterator[tuple[bytes, ...]]:
    for start in range(0, len(keys), KEYS_PER_FRAME):
        yield tuple(keys[start : start + KEYS_PER_FRAME])


def encode_parcel(parcel: Parcel) -> bytes:
    """Returns the parcel's bytes."""
    packed: bytes = msgpack.packb(
        {
            "kind": parcel.kind,
            "ref": parcel.ref,
            "session": parcel.session,
            "envelope": parcel.envelope,
        }
    )
    return packed


# --- decoding ---------------------------------------------------------------------------------


def decode_from_client(data: bytes) -> FromClient:
    """Returns the frame that a client sent. Raises :class:`RemoteProtocolError`."""
    try:
        fields = bounded.unpack_map(data, _BOUNDS)
        match bounded.text(fields, "kind"):
            case "proof":
                return Proof(
                    key=bounded.binary(fields, "key", KEY_SIZE),
                    host=bounded.text(fields, "host"),
                    time=bounded.integer(fields, "time", 0, _U64_MAX),
                    signature=bounded.binary(fields, "signature", SIGNATURE_SIZE),
                    enrolment=_optional_binary(fields, "enrolment"),
                )
            case "watch":
                reset = _boolean(fields, "reset")
                guests = "guests" in fields and _boolean(fields, "guests")
                loads = "loads" in fields and _boolean(fields, "loads")
                return Watch(_keys(fields, "keys"), reset, guests, loads)
            case "load":
                return decode_load(fields)
            case "revoked":
                return decode_revocation(fields)
            case "envelope":
                return ToKey(bounded.binary(fields, "to", KEY_SIZE), bounded.binary(fields, "body"))
            case "relay":
                return decode_relayed(bounded.binary(fields, "to", KEY_SIZE), fields)
            case _:
                raise bounded.unusable(fields, "kind")
    except bounded.Malformed as error:
        raise _malformed(error) from None


def decode_from_service(data: bytes) -> FromService:
    """Returns the frame that the service sent. Raises :class:`RemoteProtocolError`."""
    try:
        fields = bounded.unpack_map(data, _SERVICE_BOUNDS)
        match bounded.text(fields, "kind"):
            case "challenge":
                return Challenge(bounded.binary(fields, "nonce", NONCE_SIZE))
            case "welcome":
                return _welcome(fields)
            case "presence":
                loads = decode_loads(fields, KEY_SIZE)
                return Presence(_keys(fields, "online"), _keys(fields, "offline"), loads)
            case "envelope":
                sender = bounded.binary(fields, "from", KEY_SIZE)
                return FromKey(sender, bounded.binary(fields, "body"))
            case "relay":
                return decode_relayed(bounded.binary(fields, "from", KEY_SIZE), fields)
            case "absent":
                reason = bounded.text(fields, "reason", "absent")
                if reason not in REASONS:
                    raise bounded.unusable(fields, "reason")
                channel = _optional_binary(fields, "channel")
                if len(channel) not in {0, CHANNEL_SIZE}:
                    raise bounded.unusable(fields, "channel")
                return Absent(bounded.binary(fields, "to", KEY_SIZE), reason, channel)
            case "drain":
                return Drain(bounded.integer(fields, "within", 0, _DRAIN_MAX))
            case _:
                raise bounded.unusable(fields, "kind")
    except bounded.Malformed as error:
        raise _malformed(error) from None


def _welcome(fields: Mapping[str, Any]) -> Welcome:
    limits = fields.get("limits")
    if not isinstance(limits, dict):
        raise bounded.unusable(fields, "limits")
    return Welcome(
        session=bounded.binary(fields, "session", SESSION_SIZE),
        time=bounded.integer(fields, "time", 0, _TIME_MAX),
        body=bounded.integer(limits, "body", 1, _U64_MAX),
        watch=bounded.integer(limits, "watch", 1, _U64_MAX),
        rate=bounded.integer(limits, "rate", 1, _U64_MAX),
        turn=_turn_servers(fields),
        relay=bounded.integer(limits, "relay", 0, _U64_MAX, default=0),
        load=bounded.integer(limits, "load", 0, _LOAD_MAX, default=0),
        revoked=bounded.integer(limits, "revoked", 0, _U64_MAX, default=0),
    )


def _turn_servers(fields: Mapping[str, Any]) -> tuple[TurnServer, ...]:
    servers = fields.get("turn", [])
    if not isinstance(servers, list) or len(servers) > TURN_SERVERS_MAX:
        raise bounded.unusable(fields, "turn")
    return tuple(_turn_server(server) for server in servers)


def _turn_server(fields: object) -> TurnServer:
    if not isinstance(fields, dict):
        raise bounded.Malformed("a TURN server is no map")
    urls = bounded.texts(fields, "urls")
    if not 0 < len(urls) <= TURN_URLS_MAX:
        raise bounded.unusable(fields, "urls")
    return TurnServer(
        urls=urls,
        username=bounded.text(fields, "username"),
        credential=bounded.text(fields, "credential"),
    )


def _boolean(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if not isinstance(value, bool):
        raise bounded.unusable(fields, name)
    return value


def _optional_binary(fields: Mapping[str, Any], name: str) -> bytes:
    return bounded.binary(fields, name) if name in fields else b""


def _keys(fields: Mapping[str, Any], name: str) -> tuple[bytes, ...]:
    joined = bounded.binary(fields, name)
    if len(joined) % KEY_SIZE or len(joined) > KEYS_PER_FRAME * KEY_SIZE:
        raise bounded.unusable(fields, name)
    return tuple(joined[at : at + KEY_SIZE] for at in range(0, len(joined), KEY_SIZE))


def decode_parcel(data: bytes) -> Parcel:
    """Returns the parcel that another client sent. Raises :class:`RemoteProtocolError`."""
    try:
        fields = bounded.unpack_map(data, _PARCEL_BOUNDS)
        parcel = Parcel(
            kind=bounded.text(fields, "kind"),
            ref=bounded.binary(fields, "ref", REF_SIZE),
            session=bounded.text(fields, "session", ""),
            envelope=bounded.binary(fields, "envelope"),
        )
        if parcel.kind not in PARCEL_KINDS:
            raise bounded.unusable(fields, "kind")
    except bounded.Malformed as error:
        raise _malformed(error) from None
    return parcel


def _malformed(error: bounded.Malformed) -> RemoteProtocolError:
    return RemoteProtocolError(f"the frame: {error}", kind="malformed")
