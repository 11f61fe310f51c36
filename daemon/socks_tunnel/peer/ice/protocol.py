"""The protocol of one socket of an ICE agent: aioice's, except for checks of consent."""

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from aioice import stun
from aioice.ice import CandidatePair, Connection, StunProtocol

from socks_tunnel.peer.ice.consent import (
    ANSWER,
    REQUEST,
    Address,
    Answers,
    attributes_of,
    is_sealed,
    seal,
    transaction_of,
)

_log = logging.getLogger(__name__)


class PathProtocol(StunProtocol):
    """Answers checks of consent on the established path, and asks for consent itself.

    Everything else is aioice's. aioice handles a peer's check first. Later checks on the nominated
    pair that equal an accepted one are answered here. `consented` is called when the peer has
    answered a check of ours. A missing answer is not reported, because PING notices that sooner.
    """

    def __init__(self, receiver: Connection, consented: Callable[[], None]) -> None:
        super().__init__(receiver)
        self.heard_at = 0.0
        """When the last STUN message came, by :func:`time.monotonic`."""
        self.strangers = 0
        """DTLS datagrams that were dropped because they came from no address of the peer's."""
        self._agent = receiver
        self._peer_address: Address | None = None
        self._consented = consented
        self._answers = Answers(receiver.local_password.encode())
        self._read = b""
        self._asked = b""
        self._request: tuple[CandidatePair, bool, bytes] | None = None

    def datagram_received(self, data: Any, addr: tuple[Any, ...]) -> None:
        """Takes a datagram that is not a DTLS record of the fast path."""
        kind = data[:2]
        if data and 19 < data[0] < 64:  # DTLS (RFC 7983 section 7)
            if not self._is_peers((addr[0], addr[1])):
                self.strangers += 1
                return
        elif kind == REQUEST:
            answer = self._answers.answer(data, (addr[0], addr[1]))
            if answer is not None:
                self.heard_at = time.monotonic()
                self._answer(answer, (addr[0], addr[1]))
                return
            self._read = data
        elif kind == ANSWER and self._asked and transaction_of(data) == self._asked:
            self.heard_at = time.monotonic()
            if is_sealed(data, self._peer_key):
                self._asked = b""
                self._consented()
            return
        super().datagram_received(data, addr)

    def _is_peers(self, address: Address) -> bool:
        """Returns whether the peer has named an address, or has sent a valid check from there.

        Nothing authenticates the messages of the handshake before its end: one forged alert would
        end it. Whoever sees no packet of the link does not know these addresses.
        """
        if address == self._peer_address:
            return True
        for candidate in self._agent.remote_candidates:
            if address == (candidate._network_host, candidate.port):  # noqa: SLF001 - as aioice's
                self._peer_address = address
                return True
        return False

    @property
    def _peer_key(self) -> bytes:
        password = self._agent.remote_password
        assert password is not None, "a pair was nominated"
        return password.encode()

    def _answer(self, answer: bytes, address: Address) -> None:
        if self._agent._closing:  # noqa: SLF001 - as aioice does it
            return
        try:
            self.transport.sendto(answer, address)
        except (OSError, RuntimeError) as error:
            _log.debug("%r: a check from %s cannot be answered: %r", self._agent, address, error)

    def accepted(self, message: stun.Message, address: Address) -> None:
        """Notes that ICE has accepted a check on the nominated pair, and would accept it again."""
        nominates = "USE-CANDIDATE" in message.attributes  # that may change the pair each time
        if transaction_of(self._read) == message.transaction_id and not nominates:
            self._answers.learn(self._read, address)

    def forget(self) -> None:
        """Forgets the accepted check, because the role of this agent has changed."""
        self._answers.forget()

    def ask_consent(self, pair: CandidatePair) -> None:
        """Sends one check, which is not repeated. Raises the errors of the socket."""
        agent = self._agent
        if self._request is None or self._request[:2] != (pair, agent.ice_controlling):
            message = agent.build_request(pair, nominate=False)
            message.add_message_integrity(self._peer_key)
            self._request = pair, agent.ice_controlling, attributes_of(bytes(message))
        self._asked = os.urandom(12)
        request = seal(REQUEST, self._asked, self._request[2], self._peer_key)
        self.transport.sendto(request, pair.remote_addr)
