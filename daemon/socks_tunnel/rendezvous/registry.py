"""The clients of a node, who may talk to whom, and what is passed on. No socket and no clock.

A client is registered only once its key is proved and accepted. It *watches* the keys that it may
talk to. An envelope from A to B is passed on only if B watches A, and each is told of the other's
presence only if both watch each other. So a stranger cannot even learn whether a key is present.

A client that accepts *guests* also gets envelopes of keys that it does not watch, so that hosts can
join it. One rate limits all of these. If keys have to be enrolled, a key that is neither listed nor
enrolled by a listed one is a guest itself, and may stay only for a short time. A client with an
enrolment that its endpoint has revoked is refused, and ended if it is connected.

Frames for a client wait in its outbox, which is bounded in bytes. An envelope that does not fit is
not passed on, and the sender is told. Presence that does not fit ends the client's connection,
because the client would otherwise keep a wrong state.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Final, Literal, Protocol

from socks_tunnel.protocol.rendezvous import (
    CLOSE_FORBIDDEN,
    CLOSE_REPLACED,
    CLOSE_TOO_MUCH,
    PARCEL_MAX,
    Absent,
    Drain,
    FromKey,
    TurnServer,
    Watch,
    Welcome,
    encode,
    presences,
)
from socks_tunnel.protocol.rendezvous_load import PERIOD as LOAD_PERIOD
from socks_tunnel.protocol.rendezvous_load import Load
from socks_tunnel.protocol.rendezvous_relay import Relayed
from socks_tunnel.protocol.rendezvous_revoked import REVOKED_MAX
from socks_tunnel.rendezvous.client import Client
from socks_tunnel.rendezvous.limits import Bucket, Buckets
from socks_tunnel.rendezvous.revoked import Revocations
from socks_tunnel.rendezvous.turn import TurnLogins

WATCH_MAX: Final = 16_384
"""Keys that a listed client may watch."""

WATCH_MAX_ANY: Final = 64
"""Keys that a client may watch if its key is not listed."""

ENVELOPES_PER_SECOND: Final = 200
ENVELOPES_BURST: Final = 2000
"""Envelopes that are passed on for a listed key: per second in the long run, and at once. An
endpoint with thousands of gateways answers all of them when its network comes back."""

ENVELOPES_PER_SECOND_ANY: Final = 10
ENVELOPES_BURST_ANY: Final = 50
"""The same for a key that is not listed."""
GUEST_SECONDS: Final = 60.0
GUESTS_MAX: Final = 1024
"""Seconds after which a guest's connection is ended, and how many guests there may be at a time."""

GUEST_ENVELOPES_PER_SECOND: Final = 50
GUEST_ENVELOPES_BURST: Final = 200
"""Envelopes of strangers that one client gets: per second in the long run, and at once."""

ANSWERED_TOO_MANY: Final = 1000
"""Envelopes beyond the rate that are answered. The next one ends the connection."""

JOINS_PER_SECOND: Final = 2.0
JOINS_BURST: Final = 20
"""Rate of connections of one key, each of which replaces the older one."""

CLOSE_NORMAL: Final = 1000
"""Close code for a client that is to reconnect (RFC 6455 section 7.4.1)."""

CLIENTS_MAX: Final = 20_000
"""Clients at a time."""


class Refused(Exception):  # noqa: N818 - it is a verdict on a client, not a fault of ours
    """A client is refused or ended; the text says why. `code` closes its WebSocket."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Elsewhere(Protocol):
    """Is told what happens to our clients, for clients at other nodes."""

    def joined(self, client: Client) -> None:
        """A client has come."""

    def left(self, client: Client) -> None:
        """A client has gone."""

    def watched(self, client: Client, keys: Collection[bytes]) -> None:
        """A client watches these keys, or repeats that."""

    def unwatched(self, client: Client, keys: Collection[bytes]) -> None:
        """A client does not watch these keys any more."""

    def envelope(self, client: Client, to: bytes, body: bytes) -> None:
        """A client sends to a key that is not here."""

    def load(self, client: Client, load: Load) -> None:
        """A client has reported its load."""

    def told(self, client: Client, key: bytes) -> bool:
        """Returns whether a client was told that this key is at another node."""

    def revoked(self, by: bytes, keys: Collection[bytes]) -> None:
        """An endpoint of ours has revoked these keys, which may be at other nodes."""

    def refused(self, by: bytes) -> None:
        """A client was refused because of what an endpoint has told this node earlier."""

    def relay(self, client: bytes, frame: Relayed, now: float, *, known: bool) -> bool:
        """Passes datagrams on to a client at another node. Returns whether that node is reached."""


class Registry:
    """All clients of one node. `names` are the listed keys.

    `clients` says who else may connect: nobody (`listed`), keys that a listed key has enrolled
    (`enrolled`), or any key.
    """

    def __init__(
        self,
        names: dict[bytes, str],
        *,
        clients: Literal["listed", "enrolled", "any"],
        clients_max: int = CLIENTS_MAX,
    ) -> None:
        self.turn: TurnLogins | None = None
        """Makes logins for TURN servers; None if there are none."""
        self.elsewhere: Elsewhere | None = None
        """The other nodes; None if there are none."""
        self.relay_rate = 0
        """Bytes per second that are relayed for each client; 0: none."""
        self.counts: Counter[str] = Counter()
        """Counts since the start of what was passed on and what was not, with the reason."""
        self._names = names
        self._mode = clients
        self._guests = 0
        self._clients_max = clients_max
        self._clients: dict[bytes, Client] = {}
        self._joins = Buckets(JOINS_PER_SECOND, JOINS_BURST)
        self.revocations = Revocations(self)

    def __len__(self) -> int:
        return len(self._clients)

    def get(self, key: bytes) -> Client | None:
        """Returns the client with this key; None if it is not connected."""
        return self._clients.get(key)

    # --- clients come and go --------------------------------------------------------------------

    def join(
        self,
        key: bytes,
        now: float,
        *,
        wake: Callable[[], None],
        end: Callable[[int, str], None],
        enrolled_by: bytes | None = None,
        enrolled_until: int = 0,
    ) -> Client:
        """Adds a client whose key is proved. Raises :class:`Refused`, and then keeps nothing.

        `enrolled_by` is the key that has enrolled it, if it has shown that, and `enrolled_until`
        the Unix time at which that ends; 0: without an end.

        An older connection with the same key is ended: after a change of networks the service
        often notices later than the client that the old one is dead.
        """
        name = self._names.get(key)
        if enrolled_by not in self._names:
            enrolled_by, enrolled_until = None, 0  # any two strangers can enrol each other
        guest = name is None and self._mode == "enrolled" and enrolled_by is None
        if name is None and self._mode == "listed":
            self.counts["refused: not listed"] += 1
            raise Refused(CLOSE_FORBIDDEN, "its key is not listed")
        if name is None and self.revocations.has(enrolled_by, key):
            self.counts["refused: revoked"] += 1
            if self.elsewhere is not None and enrolled_by is not None:
                self.elsewhere.refused(enrolled_by)
            raise Refused(CLOSE_FORBIDDEN, "its enrolment is revoked")
        if guest and self._guests >= GUESTS_MAX:
            self.counts["refused: guests"] += 1
            raise Refused(CLOSE_TOO_MUCH, f"there are {GUESTS_MAX} guests already")
        if not self._joins.take(key, now):
            self.counts["refused: joins"] += 1
            raise Refused(CLOSE_TOO_MUCH, "its key connects too often")
        older = self._clients.get(key)
        if older is None and len(self._clients) >= self._clients_max:
            self.counts["refused: clients"] += 1
            raise Refused(CLOSE_TOO_MUCH, f"there are {self._clients_max} clients already")
        if older is not None:
            self.leave(older)
            self.counts["replaced"] += 1
            older.finish(CLOSE_REPLACED, "a newer connection with the same key")
        listed = name is not None
        rate = ENVELOPES_PER_SECOND if listed else ENVELOPES_PER_SECOND_ANY
        burst = ENVELOPES_BURST if listed else ENVELOPES_BURST_ANY
        client = Client(
            key,
            name or key.hex()[:16],
            listed=listed,
            bucket=Bucket(rate, burst, now),
            counts=self.counts,
            wake=wake,
            end=end,
        )
        client.enrolled_by = enrolled_by
        client.enrolled_until = 0 if listed else enrolled_until
        client.guest = guest
        self._guests += guest
        self._clients[key] = client
        self.counts["guests" if guest else "joined"] += 1
        if self.elsewhere is not None:
            self.elsewhere.joined(client)
        return client

    def welcome(self, client: Client, session: bytes, unix_time: float) -> Welcome:
        """Returns the welcome for a new client, or for one whose logins are renewed."""
        watch = WATCH_MAX if client.listed else WATCH_MAX_ANY
        rate = ENVELOPES_PER_SECOND if client.listed else ENVELOPES_PER_SECOND_ANY
        turn: tuple[TurnServer, ...] = ()
        # A guest may be anybody, and a login is good for an hour, anywhere behind the TURN server.
        if self.turn is not None and not client.guest:
            turn = self.turn.for_key(client.key, unix_time, client.enrolled_until)
        relay = 0 if client.guest else self.relay_rate
        times = int(unix_time)
        revoked = REVOKED_MAX if client.listed else 0
        return Welcome(session, times, PARCEL_MAX, watch, rate, turn, relay, LOAD_PERIOD, revoked)

    def leave(self, client: Client) -> None:
        """Removes a client, and tells those that may know. Does nothing if it was replaced."""
        if self._clients.get(client.key) is not client:
            return
        del self._clients[client.key]
        self._guests -= client.guest
        for other in self._mutual(client, client.watched):
            self._tell(other, offline=[client.key])
        if self.elsewhere is not None:
            self.elsewhere.left(client)

    def drain(self, within: int) -> None:
        """Asks all clients to leave."""
        frame = encode(Drain(within))
        for client in list(self._clients.values()):
            client.push(frame)

    def end_all(self, code: int, reason: str) -> None:
        """Has all connections closed."""
        for client in list(self._clients.values()):
            client.finish(code, reason)

    def update(self, names: dict[bytes, str]) -> None:
        """Replaces the listed keys.

        If only those may connect, clients with other keys are ended.
        """
        self._names = names
        self.revocations.keep(set(names))
        for client in list(self._clients.values()):
            name = names.get(client.key)
            if name is not None and client.listed:
                client.name = name
            elif name is not None:
                # It was told other limits, and has not reported its revoked enrolments.
                self.leave(client)
                client.finish(CLOSE_NORMAL, "its key is listed now; it is to come back")
            elif client.listed or not self._is_welcome(client):
                # Its limits were different. It may reconnect if it is still accepted.
                self.leave(client)
                client.finish(CLOSE_FORBIDDEN, "its key is not listed any more")
            elif client.enrolled_by not in names:
                client.enrolled_by, client.enrolled_until = None, 0

    def _is_welcome(self, client: Client) -> bool:
        """Returns whether a client whose key is not listed may stay."""
        if self._mode == "enrolled":
            return client.guest or client.enrolled_by in self._names
        return self._mode == "any"

    # --- what clients ask for -------------------------------------------------------------------

    def watch(self, client: Client, asked: Watch) -> None:
        """Sets or extends the keys that a client watches. Raises :class:`Refused` for too many."""
        added = set(asked.keys)
        dropped: set[bytes] = client.watched - added if asked.reset else set()
        new = added - client.watched
        limit = WATCH_MAX if client.listed else WATCH_MAX_ANY
        if len(client.watched) - len(dropped) + len(new) > limit:
            self.counts["refused: watch"] += 1
            raise Refused(CLOSE_TOO_MUCH, f"it watches more than {limit} keys")
        for other in self._mutual(client, dropped):
            self._tell(other, offline=[client.key])
        # A guest accepts none, because otherwise two guests could talk through this service.
        client.guests = asked.guests and not client.guest
        client.wants_loads = asked.loads
        client.watched -= dropped
        client.watched |= new
        # After a reset, the client knows nobody, so it is told of all again.
        there = self._mutual(client, added)
        self._tell(client, online=[other.key for other in there])
        client.tell_loads([(o.key, o.load) for o in there if o.load is not None])
        for other in self._mutual(client, new):
            self._tell(other, online=[client.key])
        if self.elsewhere is not None:
            self.elsewhere.unwatched(client, dropped)
            self.elsewhere.watched(client, added)

    def envelope(self, client: Client, to: bytes, body: bytes, now: float) -> None:
        """Passes an envelope on, or tells the sender why not. Raises :class:`Refused`."""
        if not client.bucket.take(now):
            client.excess += 1
            if client.excess > ANSWERED_TOO_MANY:
                self.counts["refused: rate"] += 1
                raise Refused(CLOSE_TOO_MUCH, "it sends far too many envelopes")
            self._not_passed(client, to, "rate")
            return
        if to not in self._clients and self.elsewhere is not None:
            self.elsewhere.envelope(client, to, body)
            return
        reason = self._deliver(client.key, to, body, now)
        if reason is not None:
            self._not_passed(client, to, reason)

    def _deliver(self, sender: bytes, to: bytes, body: bytes, now: float) -> str | None:
        """Passes an envelope on to a client of ours, or returns why not."""
        receiver = self._clients.get(to)
        known = receiver is not None and sender in receiver.watched
        if receiver is None or not (known or receiver.guests):
            return "absent"
        welcome = known or self._as_guest(receiver, now)
        if not (welcome and receiver.push(encode(FromKey(sender, body)))):
            return "busy"
        self.counts["passed"] += 1
        return None

    @staticmethod
    def _as_guest(receiver: Client, now: float) -> bool:
        """Returns whether a client may get one more envelope of a stranger."""
        if receiver.guest_bucket is None:
            receiver.guest_bucket = Bucket(GUEST_ENVELOPES_PER_SECOND, GUEST_ENVELOPES_BURST, now)
        return receiver.guest_bucket.take(now)

    def _not_passed(self, client: Client, to: bytes, reason: str) -> None:
        self.counts[f"not passed: {reason}"] += 1
        if not client.push(encode(Absent(to, reason))):
            self.counts["refused: outbox"] += 1
            raise Refused(CLOSE_TOO_MUCH, "it does not read what it is sent")

    # --- clients of other nodes -----------------------------------------------------------------

    def clients(self) -> list[Client]:
        """Returns the clients that are here."""
        return list(self._clients.values())

    def from_elsewhere(self, sender: bytes, to: bytes, body: bytes, now: float) -> str | None:
        """Passes on an envelope of another node's client, or returns why not."""
        self.counts["from other nodes"] += 1
        return self._deliver(sender, to, body, now)

    def not_passed(self, sender: bytes, to: bytes, reason: str) -> None:
        """Tells a client of ours, if it is still connected, that its envelope was not passed on."""
        client = self._clients.get(sender)
        if client is None:
            self.counts["dropped: sender gone too"] += 1
            return
        try:
            self._not_passed(client, to, reason)
        except Refused as refusal:
            client.finish(refusal.code, str(refusal))

    def elsewhere_online(self, key: bytes, watched: Iterable[bytes]) -> list[bytes]:
        """Tells our clients of another node's client. Returns those that were told.

        Those are the keys among `watched` that are connected here and watch it too.
        """
        mutual = [
            client
            for client in map(self._clients.get, watched)
            if client is not None and key in client.watched
        ]
        for client in mutual:
            self._tell(client, online=[key])
        return [client.key for client in mutual]

    def elsewhere_offline(self, key: bytes, told: Iterable[bytes]) -> None:
        """Tells clients of ours that another node's client has left."""
        for client in map(self._clients.get, told):
            if client is not None and key in client.watched:
                self._tell(client, offline=[key])

    def replaced(self, key: bytes) -> None:
        """Ends a client of ours that has connected to another node meanwhile."""
        client = self._clients.get(key)
        if client is not None:
            self.leave(client)
            self.counts["replaced"] += 1
            client.finish(CLOSE_REPLACED, "a newer connection with the same key, at another node")

    def elsewhere_load(self, key: bytes, load: Load, told: Iterable[bytes]) -> None:
        """Tells clients of ours the load of another node's client."""
        for client in map(self._clients.get, told):
            if client is not None and key in client.watched:
                client.tell_loads([(key, load)])

    # --- presence -------------------------------------------------------------------------------

    def _mutual(self, client: Client, keys: Collection[bytes]) -> list[Client]:
        """Returns the clients among `keys` that watch this one too."""
        found = []
        for key in keys:
            other = self._clients.get(key)
            if other is not None and other is not client and client.key in other.watched:
                found.append(other)
        return found

    def load(self, client: Client, load: Load, now: float) -> None:
        """Passes a client's load on to those that want it, unless it reported one just before."""
        if client.load is not None and now - client.load_at < LOAD_PERIOD / 2:
            self.counts["dropped: load"] += 1
            return
        client.load, client.load_at = load, now
        for other in self._mutual(client, client.watched):
            other.tell_loads([(client.key, load)])
        if self.elsewhere is not None:
            self.elsewhere.load(client, load)

    def _tell(
        self, client: Client, *, online: Collection[bytes] = (), offline: Collection[bytes] = ()
    ) -> None:
        client.tell(presences(online, offline))
