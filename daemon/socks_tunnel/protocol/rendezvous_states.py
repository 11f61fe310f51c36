"""The two ends of one connection to a rendezvous service: what may come when. Sans-IO.

Frames and their meaning are in :mod:`socks_tunnel.protocol.rendezvous`. All transitions::

    client    start --challenge--> challenged --send proof--> proving --welcome--> open
              open --presence, envelope, relay, absent, drain, welcome--> open

    service   start --send challenge--> challenged --proof--> open
              open --watch, envelope, relay, load, revoked--> open

Any other frame in a state is a :class:`RemoteProtocolError`, and the connection has to be closed.
"""

from collections.abc import Callable
from typing import Final

from socks_tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.rendezvous import (
    PARCEL_MAX,
    SHORT_FRAME_MAX,
    Absent,
    Challenge,
    Drain,
    FromClient,
    FromKey,
    FromService,
    Presence,
    Proof,
    ToKey,
    Watch,
    Welcome,
    decode_from_client,
    decode_from_service,
    encode,
    proof_text,
)
from socks_tunnel.protocol.rendezvous_load import Load
from socks_tunnel.protocol.rendezvous_relay import Relayed
from socks_tunnel.protocol.rendezvous_revoked import Revocation, signed_text

SKEW_TOLD: Final = 30
"""Seconds by which a client's clock may differ from the service's before the log has it."""

Verify = Callable[[bytes, bytes, bytes], bool]
"""Returns whether a signature is that of a public key over a text: key, signature, text."""


class ClientConnection:
    """The client's end. `host` is the host (and port) that it has connected to.

    `enrolment` is what it shows if its key is not listed there; empty if it has none.
    """

    def __init__(self, host: str, enrolment: bytes = b"") -> None:
        self.host = host
        self._enrolment = enrolment
        self.welcome: Welcome | None = None
        """What the service said of itself; None until then."""
        self.skew: int = 0
        """Seconds that the service's clock is ahead of ours, as far as the welcome tells."""
        self._state = "start"
        self._nonce = b""

    @property
    def is_open(self) -> bool:
        """Whether the key is proved, so that envelopes are passed on."""
        return self._state == "open"

    def receive(self, data: bytes, now: float) -> FromService:
        """Returns the event that a frame is. `now` is Unix time.

        A :class:`Challenge` wants :meth:`proof` called. Raises :class:`RemoteProtocolError`.
        """
        event = decode_from_service(data)
        match self._state, event:
            case "start", Challenge(nonce):
                self._nonce, self._state = nonce, "challenged"
            case "proving", Welcome():
                self.welcome, self._state = event, "open"
                self.skew = round(event.time - now)
            case "open", Welcome():
                self.welcome = event
            case "open", Presence() | FromKey() | Relayed() | Absent() | Drain():
                pass
            case _:
                raise _out_of_turn(type(event).__name__, self._state)
        return event

    def signed_text(self, now: float) -> bytes:
        """Returns what has to be signed for :meth:`proof` with the same `now`."""
        return proof_text(self.host, self._nonce, int(now))

    def proof(self, key: bytes, signature: bytes, now: float) -> bytes:
        """Returns the frame that answers the challenge."""
        if self._state != "challenged":
            raise LocalProtocolError("there is no challenge to answer")
        self._state = "proving"
        return encode(Proof(key, self.host, int(now), signature, self._enrolment))

    def revocation_text(self, revocation: Revocation) -> bytes:
        """Returns what has to be signed for a revocation on this connection."""
        return signed_text(self._nonce, self.host, revocation)

    def envelope(self, to: bytes, body: bytes) -> bytes:
        """Returns the frame that passes `body` to a key.

        Raises :class:`ValueError` if it is longer than the service takes.
        """
        if self.welcome is None:
            raise LocalProtocolError("the key is not proved yet")
        longest = min(self.welcome.body, PARCEL_MAX)
        if len(body) > longest:
            raise ValueError(f"{len(body)} bytes are to be sent; the service takes {longest}")
        return encode(ToKey(to, body))


class ServiceConnection:
    """The service's end. `hosts` are the names that it goes by; empty: any that a client uses.

    A host in a proof is compared with its port and without, in lower case. Until the proof, nothing
    but the nonce is kept, and frames are at most :data:`SHORT_FRAME_MAX` bytes long.
    """

    def __init__(self, nonce: bytes, hosts: frozenset[str], verify: Verify) -> None:
        self.key: bytes | None = None
        """The client's public key, once it is proved."""
        self._nonce = nonce
        self._hosts = hosts
        self._verify = verify
        self._host = ""
        self._revocations = 0

    def challenge(self) -> bytes:
        """Returns the first frame."""
        return encode(Challenge(self._nonce))

    def receive(self, data: bytes) -> FromClient:
        """Returns the event that a frame is. Raises :class:`RemoteProtocolError`.

        The kind of the error is `proof` if the key was not proved.
        """
        if self.key is None and len(data) > SHORT_FRAME_MAX:
            raise RemoteProtocolError("a long frame came before the proof", kind="malformed")
        event = decode_from_client(data)
        match event:
            case Proof() if self.key is None:
                self._check(event)
                self.key, self._host = event.key, event.host
            case Revocation() if self.key is not None:
                self._check_revocation(self.key, event)
            case Watch() | ToKey() | Relayed() | Load() if self.key is not None:
                pass
            case _:
                state = "challenged" if self.key is None else "open"
                raise _out_of_turn(type(event).__name__, state)
        return event

    def _check(self, proof: Proof) -> None:
        host = proof.host.lower()
        if self._hosts and not {host, host.rpartition(":")[0]} & self._hosts:
            raise RemoteProtocolError("the proof is for another host", kind="proof")
        text = proof_text(proof.host, self._nonce, proof.time)
        if not self._verify(proof.key, proof.signature, text):
            raise RemoteProtocolError("the proof is wrong", kind="proof")

    def _check_revocation(self, key: bytes, said: Revocation) -> None:
        if said.number <= self._revocations:
            raise RemoteProtocolError("a revocation came a second time", kind="revocation")
        if not self._verify(key, said.signature, signed_text(self._nonce, self._host, said)):
            raise RemoteProtocolError("the signature of a revocation is wrong", kind="revocation")
        self._revocations = said.number


def _out_of_turn(event: str, state: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"a {event} has no place in the state {state}", kind="out-of-turn")
