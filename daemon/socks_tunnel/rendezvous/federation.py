"""Messages by which the nodes of one service tell each other about clients. Sans-I/O, no clock.

Each client is at one node, and a key-value store says at which. Nodes send messages over a bus
(publish and subscribe), on which each node has an address::

    kind       carries
    here       "client": bin 32, "keys": bin 32*n, "asks": bool   the client watches these keys
    gone       "client": bin 32, "keys": bin 32*n                 it does not, or has left
    envelope   "client": bin 32, "to": bin 32, "body": bin
    absent     "client": bin 32, "to": bin 32, "reason": str,     an envelope was not passed on,
               "channel": bin                                     or datagrams of this channel
    relay      "client": bin 32, "to": bin 32, "known": bool,     datagrams, as clients send them;
               "channel": bin 8, "datagram": bin, "segment": int  the client is listed or enrolled
    load       "client": bin 32, "flows": int, "links": int, "version": str,
               "to": bin                                          who is told; empty: all
    replaced   "client": bin 32                                   it has come to another node
    enrolled   "client": bin 32, "by": bin 32                     it is here by this enrolment
    revoked    "client": bin 32, "by": bin 32                     which is void

All have "node", the address of the sending node. Nodes may have different versions for a while, so
unknown kinds and unknown fields are ignored. Nothing is remembered of other nodes' clients, with
one exception: which of them our clients were told to be online, and at which node, so that our
clients can be told when that node dies. `here` is sent to the nodes of all keys that a client
watches. If a client of such a node also watches that client, the node tells its own client, and
answers once with `here`, so that the first client is told as well. So two clients that watch each
other always learn of each other, whichever of them comes or watches last.

An endpoint tells its own node which of its enrolments are void. That node sends `revoked` to the
nodes of such clients. When a client comes with an enrolment, its node sends `enrolled` to the
endpoint's node, which answers with `revoked` if the enrolment is void.

The bus may lose everything, because it is restarted or a node is cut off. Then
:meth:`Federation.resync` sends all state again. Datagrams go to the last known node of the
receiver, are never sent again, and wait in a queue of their own that drops old ones.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import Any, Final, Protocol

import msgpack

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.rendezvous import (
    FRAME_MAX,
    KEY_SIZE,
    KEYS_PER_FRAME,
    REASONS,
    Absent,
)
from socks_tunnel.protocol.rendezvous_load import Load, decode_load
from socks_tunnel.protocol.rendezvous_relay import CHANNEL_SIZE, Relayed, decode_relayed
from socks_tunnel.rendezvous.client import Client
from socks_tunnel.rendezvous.registry import Registry

_BOUNDS: Final = bounded.Bounds(
    size=FRAME_MAX + 1024, text=128, binary=FRAME_MAX, entries=16, items=64, depth=1
)

_KINDS: Final = frozenset(
    {
        "here",
        "gone",
        "envelope",
        "absent",
        "load",
        "relay",
        "replaced",
        "enrolled",
        "revoked",
    }
)

Found = Mapping[bytes, str]
"""The nodes of the keys that are at some node."""


class Bus(Protocol):
    """The store and the bus.

    No call waits. State that could not be sent is sent by a later resync.
    """

    def claim(self, key: bytes, then: Callable[[str | None], None]) -> None:
        """Stores that a key is at this node from now on.

        `then` gets the node where it was before.
        """

    def release(self, key: bytes) -> None:
        """Stores that a key has left this node, unless another node has claimed it."""

    def find(self, keys: Collection[bytes], then: Callable[[Found], None]) -> None:
        """Looks up the nodes of keys."""

    def send(self, node: str, message: bytes, then: Callable[[bool], None] | None = None) -> None:
        """Sends a message to one node. `then` gets whether a node received it."""

    def relay(self, node: str, lane: Hashable, message: bytes, datagrams: int, now: float) -> bool:
        """Sends datagrams to one node. They may be lost. Returns False if no node is reached.

        `lane` is their sender. Senders take turns, so that none waits behind all of another's.
        """


class Hall(Protocol):
    """The relay of this node."""

    def from_elsewhere(
        self, sender: bytes, frame: Relayed, now: float, *, known: bool
    ) -> str | None:
        """Passes datagrams on. Returns why not, if the sender is to be told."""

    def refused(self, sender: bytes, refusal: Absent) -> None:
        """Tells a client that another node has dropped its datagrams."""


class Federation:
    """One node's part. `node` is its address on the bus."""

    def __init__(self, node: str, registry: Registry, hall: Hall, bus: Bus) -> None:
        self.node = node
        self._registry = registry
        self._hall = hall
        self._bus = bus
        self._told: dict[bytes, tuple[str, set[bytes]]] = {}
        """Other nodes' clients of which ours were told: the node of each, and who was told."""

    # --- what happens to our clients ------------------------------------------------------------

    def joined(self, client: Client) -> None:
        """A client has come."""

        def claimed(before: str | None) -> None:
            if before is not None and before != self.node:
                self._send(before, {"kind": "replaced", "client": client.key})

        entry = self._told.pop(client.key, None)
        if entry is not None:  # from now on the registry reports what it watches
            self._registry.elsewhere_offline(client.key, entry[1])
        self._bus.claim(client.key, claimed)
        self._ask_about(client)

    def left(self, client: Client) -> None:
        """Releases what this node holds for a client that has left.

        Not called if a newer connection with its key has come meanwhile.
        """
        self._bus.release(client.key)
        self.unwatched(client, client.watched)

    def watched(self, client: Client, keys: Collection[bytes]) -> None:
        """A client watches these keys now."""
        self._spread("here", client.key, keys, asks=True)

    def unwatched(self, client: Client, keys: Collection[bytes]) -> None:
        """A client does not watch these keys any more."""
        for key in keys:
            entry = self._told.get(key)
            if entry is not None:
                entry[1].discard(client.key)
                if not entry[1]:
                    del self._told[key]
        self._spread("gone", client.key, keys)

    def envelope(self, client: Client, to: bytes, body: bytes) -> None:
        """A client sends to a key that is not here."""

        def found(nodes: Found) -> None:
            node = nodes.get(to)
            if node is None or node == self.node:
                self._registry.not_passed(client.key, to, "absent")
            else:
                fields = {"kind": "envelope", "client": client.key, "to": to, "body": body}
                self._send(node, fields, taken)

        def taken(by_a_node: bool) -> None:
            if not by_a_node:  # the node has died, or the bus cannot be reached
                self._registry.not_passed(client.key, to, "absent")

        self._bus.find([to], found)

    def load(self, client: Client, load: Load) -> None:
        """A client has reported its load. Nodes whose clients were told of the client get it."""
        entries = map(self._told.get, client.watched)
        for node in {entry[0] for entry in entries if entry is not None and client.key in entry[1]}:
            self._send_load(node, client.key, load)

    def _send_load(self, node: str, client: bytes, load: Load, to: bytes = b"") -> None:
        fields = {"flows": load.flows, "links": load.links, "version": load.version}
        self._send(node, {"kind": "load", "client": client, "to": to, **fields})

    def revoked(self, by: bytes, keys: Collection[bytes]) -> None:
        """An endpoint of ours has revoked these keys. The nodes where they are have to end them."""

        def found(nodes: Found) -> None:
            for key, node in nodes.items():
                if node != self.node:
                    self._send(node, {"kind": "revoked", "client": key, "by": by})

        elsewhere = [key for key in keys if self._registry.get(key) is None]
        if elsewhere:
            self._bus.find(elsewhere, found)

    def refused(self, by: bytes) -> None:
        """A client was refused because of what an endpoint has told this node.

        If the endpoint is at another node now, that node knows the present state, because the
        endpoint may have admitted the key again. From the client's next attempt on, that node is
        asked.
        """

        def found(nodes: Found) -> None:
            if nodes.get(by) not in {None, self.node}:
                self._registry.revocations.forget(by)

        if self._registry.get(by) is None:
            self._bus.find([by], found)

    def _ask_about(self, client: Client) -> None:
        """Asks the node of the endpoint that has enrolled a client whether that is still valid."""
        by = client.enrolled_by
        if by is None or self._registry.get(by) is not None:
            return

        def found(nodes: Found) -> None:
            node = nodes.get(by)
            if node is not None and node != self.node:
                self._send(node, {"kind": "enrolled", "client": client.key, "by": by})

        self._bus.find([by], found)

    def told(self, client: Client, key: bytes) -> bool:
        """Returns whether a client was told that this key is at another node."""
        entry = self._told.get(key)
        return entry is not None and client.key in entry[1]

    def relay(self, client: bytes, frame: Relayed, now: float, *, known: bool) -> bool:
        """Passes datagrams on to a client at another node. Returns whether that node is reached."""
        entry = self._told.get(frame.peer)
        if entry is None:
            return False
        fields = {
            "kind": "relay",
            "node": self.node,
            "client": client,
            "to": frame.peer,
            "known": known,
            "channel": frame.channel,
            "datagram": frame.joined,
            "segment": frame.segment,
        }
        lane = client, frame.channel
        return self._bus.relay(entry[0], lane, msgpack.packb(fields), frame.count, now)

    def _spread(self, kind: str, client: bytes, keys: Collection[bytes], **more: Any) -> None:
        """Tells the nodes of these keys, each about its own keys."""
        elsewhere = [key for key in keys if self._registry.get(key) is None]

        def found(nodes: Found) -> None:
            by_node: dict[str, list[bytes]] = defaultdict(list)
            for key, node in nodes.items():
                by_node[node].append(key)
            by_node.pop(self.node, None)  # the client has just left
            for node, theirs in by_node.items():
                for start in range(0, len(theirs), KEYS_PER_FRAME):
                    joined = b"".join(theirs[start : start + KEYS_PER_FRAME])
                    self._send(node, {"kind": kind, "client": client, "keys": joined, **more})

        if elsewhere:
            self._bus.find(elsewhere, found)

    def _send(
        self,
        node: str,
        fields: Mapping[str, Any],
        then: Callable[[bool], None] | None = None,
    ) -> None:
        packed: bytes = msgpack.packb({**fields, "node": self.node})
        self._bus.send(node, packed, then)

    # --- what other nodes say -------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> str | None:
        """Takes a message of another node. Returns its kind if this version does not know it.

        Raises :class:`bounded.Malformed`.
        """
        fields = bounded.unpack_map(data, _BOUNDS)
        node = bounded.text(fields, "node")
        kind = bounded.text(fields, "kind")
        if kind not in _KINDS:
            return kind
        client = bounded.binary(fields, "client", KEY_SIZE)
        match kind:
            case "here":
                self._here(node, client, _keys(fields), asks=fields.get("asks") is True)
            case "gone":
                self._gone(node, client, _keys(fields))
            case "envelope":
                to = bounded.binary(fields, "to", KEY_SIZE)
                reason = self._registry.from_elsewhere(
                    client, to, bounded.binary(fields, "body"), now
                )
                if reason is not None:
                    answer = {"kind": "absent", "client": client, "to": to, "reason": reason}
                    self._send(node, answer)
            case "absent":
                reason = bounded.text(fields, "reason")
                if reason not in REASONS:
                    raise bounded.unusable(fields, "reason")
                to = bounded.binary(fields, "to", KEY_SIZE)
                if "channel" in fields:
                    channel = bounded.binary(fields, "channel", CHANNEL_SIZE)
                    self._hall.refused(client, Absent(to, reason, channel))
                else:
                    self._registry.not_passed(client, to, reason)
            case "load":
                load = decode_load(fields)
                entry = self._told.get(client)
                to = bounded.binary(fields, "to")
                if entry is not None and entry[0] == node:
                    told = entry[1] & {to} if to else entry[1]
                    self._registry.elsewhere_load(client, load, told)
            case "relay":
                self._relayed(node, client, fields, now)
            case "replaced":
                self._registry.replaced(client)
            case "enrolled":
                by = bounded.binary(fields, "by", KEY_SIZE)
                if self._registry.revocations.has(by, client):
                    self._send(node, {"kind": "revoked", "client": client, "by": by})
            case "revoked":
                self._registry.revocations.expel(bounded.binary(fields, "by", KEY_SIZE), client)
        return None

    def _relayed(self, node: str, client: bytes, fields: Mapping[str, Any], now: float) -> None:
        frame = decode_relayed(bounded.binary(fields, "to", KEY_SIZE), fields)
        known = fields.get("known") is True
        reason = self._hall.from_elsewhere(client, frame, now, known=known)
        if reason is not None:
            answer = {"kind": "absent", "client": client, "to": frame.peer, "reason": reason}
            self._send(node, {**answer, "channel": frame.channel})

    def _here(self, node: str, client: bytes, keys: Iterable[bytes], *, asks: bool) -> None:
        mutual = self._registry.elsewhere_online(client, keys)
        if not mutual:
            return
        before = self._told.get(client)
        told = before[1] if before is not None else set()
        self._told[client] = node, told | set(mutual)
        if asks:
            for key in mutual:
                answer = {"kind": "here", "client": key, "keys": client, "asks": False}
                self._send(node, answer)
        for key in mutual:
            ours = self._registry.get(key)
            if ours is not None and ours.load is not None:
                self._send_load(node, key, ours.load, to=client)

    def _gone(self, node: str, client: bytes, keys: Iterable[bytes]) -> None:
        entry = self._told.get(client)
        if entry is None or entry[0] != node:
            return  # the client has come back at another node, and this message is late
        gone = entry[1] & set(keys)
        entry[1].difference_update(gone)
        if not entry[1]:
            del self._told[client]
        self._registry.elsewhere_offline(client, gone)

    # --- what happens to nodes ------------------------------------------------------------------

    def lost(self, node: str) -> None:
        """Notes that a node is silent.

        Its clients are absent until they come back at another node.
        """
        for client, (where, told) in list(self._told.items()):
            if where == node:
                del self._told[client]
                self._registry.elsewhere_offline(client, told)

    def nodes(self) -> set[str]:
        """Returns the nodes of clients of which ours were told."""
        return {node for node, _ in self._told.values()}

    def resync(self) -> None:
        """Sends all state again, after the bus or the store may have lost something."""
        for client in self._registry.clients():
            self._bus.claim(client.key, lambda _: None)
        for client in self._registry.clients():
            self.watched(client, client.watched)
            self._ask_about(client)


def _keys(fields: Mapping[str, Any]) -> list[bytes]:
    joined = bounded.binary(fields, "keys")
    if len(joined) % KEY_SIZE or len(joined) > KEYS_PER_FRAME * KEY_SIZE:
        raise bounded.unusable(fields, "keys")
    return [joined[at : at + KEY_SIZE] for at in range(0, len(joined), KEY_SIZE)]
