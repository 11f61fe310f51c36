"""Which datagrams are relayed between clients, and how much of it. No socket and no clock.

Datagrams go from A to B only if both watch each other and the operator knows them: neither is a
guest, and at least one of the two keys is listed or enrolled. Each connection between them uses a
channel. A channel begins with its first datagram, and ends when none has come for a while. Until
its receiver has used it too, it carries little. So a peer cannot flood a client that does not
answer.

Datagrams count against the rate of their sender. They wait in a queue of their receiver, with a
part for each channel, so that a slow client or a busy channel does not delay others.

Between nodes, the sender's node decides what the sender may send, and the receiver's node what the
receiver gets. Each of them sees both directions of a channel, and counts it as one of its own.
"""

from typing import Final, Protocol, TypeAlias

from socks_tunnel.protocol.rendezvous import Absent, encode
from socks_tunnel.protocol.rendezvous_relay import Relayed, RelayQueue, encode_relayed
from socks_tunnel.rendezvous.client import Client
from socks_tunnel.rendezvous.limits import Bucket, Buckets
from socks_tunnel.rendezvous.registry import Registry

CHANNELS_PER_PAIR: Final = 4
"""Channels of two clients: for their link, for a second link beside it, and for two attempts that
have ended. A further channel replaces the one that was idle longest."""

UNANSWERED_MAX: Final = 65_536
"""Bytes that one side may send on a channel before the other side has used it."""

BURST_SECONDS: Final = 0.25
BURST_MIN: Final = 131_072
"""Burst that a client may send: so many seconds of its rate, but at least so many bytes."""

FRAME_COST: Final = 78
"""Bytes that each frame counts besides its datagrams, which is the least size of its other fields.
So a rate also bounds the number of small frames. A client counts whole frames."""

REFUSALS_PER_SECOND: Final = 1.0
REFUSALS_BURST: Final = 8
"""Rate of refusals of which one client is told. Beyond that, datagrams are dropped silently."""

SWEEP_INTERVAL: Final = 1.0
"""Seconds between two searches for idle channels when there is no room for another one."""

_Pair: TypeAlias = tuple[bytes, bytes]


class Settings(Protocol):
    """`[relay]` of the configuration."""

    @property
    def enabled(self) -> bool:
        """Whether anything is relayed."""

    @property
    def bytes_per_second(self) -> int:
        """Bytes that each key may send."""

    @property
    def sessions(self) -> int:
        """Channels at a time."""

    @property
    def idle_timeout(self) -> float:
        """Seconds after which a channel without datagrams ends."""


class _Channel:
    """One channel: who has used it, the bytes without an answer, and the last use."""

    __slots__ = ("last", "unanswered", "used_by")

    def __init__(self, sender: bytes, now: float) -> None:
        self.used_by: bytes | None = sender
        """The only side that has used it; None once both have."""
        self.unanswered = UNANSWERED_MAX
        self.last = now


class RelayHall:
    """The relay of one node, between the clients of `registry`."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry = registry
        self._counts = registry.counts
        self._pairs: dict[_Pair, dict[bytes, _Channel]] = {}
        self._channels = 0
        self._buckets: dict[bytes, Bucket] = {}
        self._refusals = Buckets(REFUSALS_PER_SECOND, REFUSALS_BURST)
        self._swept_at = float("-inf")
        self.apply(settings)

    def __len__(self) -> int:
        """Returns how many channels there are."""
        return self._channels

    def apply(self, settings: Settings) -> None:
        """Takes changed settings. Channels beyond a smaller number end when they are idle."""
        self._enabled = settings.enabled
        self._rate = settings.bytes_per_second
        self._channels_max = settings.sessions
        self._idle_timeout = settings.idle_timeout
        self._buckets.clear()
        self._registry.relay_rate = self._rate if self._enabled else 0

    def relay(self, sender: Client, frame: Relayed, now: float) -> None:
        """Passes datagrams on to a client of any node, or drops and counts them."""
        reason = self._pass(sender, frame, now)
        if reason is None:
            return
        self._drop(reason, frame.count)
        if reason in _TOLD and self._refusals.take(sender.key, now):
            sender.push(encode(Absent(frame.peer, reason, frame.channel)))

    def from_elsewhere(
        self, sender: bytes, frame: Relayed, now: float, *, known: bool
    ) -> str | None:
        """Passes on datagrams of another node's client, or drops and counts them.

        `known` says whether the sender is listed or enrolled at its node. Returns why they were
        dropped, if the sender is to be told.
        """
        reason = self._pass_in(sender, frame, now, known=known)
        if reason is None:
            return None
        self._drop(reason, frame.count)
        return reason if reason in _TOLD and self._refusals.take(sender, now) else None

    def refused(self, sender: bytes, refusal: Absent) -> None:
        """Tells a client that another node has dropped and counted its datagrams."""
        client = self._registry.get(sender)
        if client is not None:
            client.push(encode(refusal))

    def _deliver(self, receiver: Client, sender: bytes, frame: Relayed, now: float) -> None:
        if receiver.relayed is None:
            receiver.relayed = RelayQueue(self._drop)
        passed = encode_relayed(Relayed(sender, frame.channel, frame.joined, frame.segment), "from")
        receiver.relayed.push((sender, frame.channel), passed, frame.count, now)
        self._counts["relayed datagrams"] += frame.count
        self._counts["relayed bytes"] += len(frame.joined)
        receiver.wake()

    def _drop(self, why: str, datagrams: int) -> None:
        self._counts[f"relay dropped: {why}"] += datagrams

    def left(self, client: Client) -> None:
        """Forgets the rate of a client that has left. Its channels go on if it comes back soon."""
        if self._registry.get(client.key) is None:
            self._buckets.pop(client.key, None)

    # --- who may ----------------------------------------------------------------------------------

    def _pass(self, sender: Client, frame: Relayed, now: float) -> str | None:
        """Passes datagrams on, or returns why not."""
        if not self._enabled or sender.guest:
            return "unrelayed"
        receiver = self._registry.get(frame.peer)
        elsewhere = None
        if receiver is None:
            elsewhere = self._registry.elsewhere
            if elsewhere is None or not elsewhere.told(sender, frame.peer):
                return "absent"
        elif receiver is sender or frame.peer not in sender.watched:
            return "absent"
        elif reason := _not_for(receiver, sender.key, known=_is_known(sender)):
            return reason
        if not self._bucket(sender, now).take(now, len(frame.joined) + FRAME_COST):
            return "rate"
        if reason := self._use_channel(sender.key, frame, now):
            return reason
        if receiver is not None:
            self._deliver(receiver, sender.key, frame, now)
        elif elsewhere is not None and not elsewhere.relay(
            sender.key, frame, now, known=_is_known(sender)
        ):
            return "elsewhere"
        return None

    def _pass_in(self, sender: bytes, frame: Relayed, now: float, *, known: bool) -> str | None:
        """Passes datagrams of another node's client on, or returns why not."""
        if not self._enabled:
            return "unrelayed"
        receiver = self._registry.get(frame.peer)
        if receiver is None:
            return "absent"
        if reason := _not_for(receiver, sender, known=known):
            return reason
        if reason := self._use_channel(sender, frame, now):
            return reason
        self._deliver(receiver, sender, frame, now)
        return None

    def _bucket(self, sender: Client, now: float) -> Bucket:
        bucket = self._buckets.get(sender.key)
        if bucket is None:
            burst = max(self._rate * BURST_SECONDS, BURST_MIN)
            bucket = self._buckets[sender.key] = Bucket(self._rate, burst, now)
        return bucket

    # --- channels ---------------------------------------------------------------------------------

    def _use_channel(self, sender: bytes, frame: Relayed, now: float) -> str | None:
        """Notes that a channel is used, and opens it if necessary.

        Returns why that is not allowed.
        """
        pair = (sender, frame.peer) if sender < frame.peer else (frame.peer, sender)
        channels = self._pairs.get(pair)
        channel = None if channels is None else channels.get(frame.channel)
        if channel is None:
            if channels is not None and len(channels) >= CHANNELS_PER_PAIR:
                idlest = min(channels, key=lambda name: channels[name].last)
                self._end(pair, idlest)
            elif not self._has_room(now):
                return "channels"
            channel = _Channel(sender, now)
            self._pairs.setdefault(pair, {})[frame.channel] = channel
            self._channels += 1
        channel.last = now
        if channel.used_by is None:
            return None
        if channel.used_by != sender:
            channel.used_by = None
            return None
        channel.unanswered -= len(frame.joined)
        return "unanswered" if channel.unanswered < 0 else None

    def _has_room(self, now: float) -> bool:
        """Returns whether one more channel is allowed. Ends idle ones if necessary."""
        if self._channels >= self._channels_max and now - self._swept_at >= SWEEP_INTERVAL:
            self.sweep(now)
        return self._channels < self._channels_max

    def sweep(self, now: float) -> None:
        """Ends the channels that are idle."""
        self._swept_at = now
        idle_since = now - self._idle_timeout
        for pair, channels in list(self._pairs.items()):
            for name in [n for n, channel in channels.items() if channel.last < idle_since]:
                self._end(pair, name)

    def _end(self, pair: _Pair, channel: bytes) -> None:
        del self._pairs[pair][channel]
        self._channels -= 1
        if not self._pairs[pair]:
            del self._pairs[pair]


def _not_for(receiver: Client, sender: bytes, *, known: bool) -> str | None:
    """Returns why a client gets nothing from this sender.

    `known`: the operator knows the sender.
    """
    if sender not in receiver.watched:
        return "absent"
    if receiver.guest or not (known or _is_known(receiver)):
        return "unrelayed"
    return None


_TOLD: Final = frozenset({"elsewhere", "unrelayed", "channels"})
"""Reasons of which the sender is told. It learns of a peer's absence by presence, and SCTP detects
loss by itself."""


def _is_known(client: Client) -> bool:
    """Returns whether this key is listed, or enrolled by a listed key."""
    return client.listed or client.enrolled_by is not None
