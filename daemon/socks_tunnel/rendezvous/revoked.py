"""The revoked enrolments, as reported by the endpoints that made them. No socket, no clock."""

from collections import Counter
from typing import Protocol

from socks_tunnel.protocol.rendezvous import CLOSE_FORBIDDEN
from socks_tunnel.protocol.rendezvous_revoked import REVOKED_MAX, Revocation
from socks_tunnel.rendezvous.client import Client


class Elsewhere(Protocol):
    """The other nodes."""

    def revoked(self, by: bytes, keys: list[bytes]) -> None:
        """An endpoint of ours has revoked these keys, which may be at other nodes."""


class Clients(Protocol):
    """The clients of this node."""

    counts: Counter[str]

    @property
    def elsewhere(self) -> Elsewhere | None:
        """The other nodes; None if there are none."""

    def get(self, key: bytes) -> Client | None:
        """Returns the client with this key; None if it is not connected."""

    def leave(self, client: Client) -> None:
        """Removes a client."""


class Revocations:
    """The revoked keys of each endpoint. An endpoint can revoke only enrolments of its own."""

    def __init__(self, registry: Clients) -> None:
        self._registry = registry
        self._by: dict[bytes, dict[bytes, None]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by.values()))

    def tell(self, client: Client, said: Revocation) -> None:
        """Takes the revocations of a listed client, for enrolments that it has made itself."""
        if not client.listed:
            self._registry.counts["dropped: revocation"] += 1
            return
        news = self._take(client.key, said)
        for key in news:
            self.expel(client.key, key)
        if self._registry.elsewhere is not None:
            self._registry.elsewhere.revoked(client.key, news)

    def expel(self, by: bytes, key: bytes) -> None:
        """Ends a client whose enrolment is void, unless the client is listed itself."""
        client = self._registry.get(key)
        if client is not None and client.enrolled_by == by and not client.listed:
            self._registry.leave(client)
            self._registry.counts["ended: revoked"] += 1
            client.finish(CLOSE_FORBIDDEN, "its enrolment is revoked")

    def _take(self, by: bytes, said: Revocation) -> list[bytes]:
        """Returns the keys that are new, or all keys after a reset.

        Beyond :data:`~socks_tunnel.protocol.rendezvous_revoked.REVOKED_MAX` keys, the oldest
        ones are forgotten. Each endpoint has a table of its own.
        """
        before = self._by.get(by, {})
        keys = {} if said.reset else dict(before)
        for key in said.lifted:
            keys.pop(key, None)
        keys |= dict.fromkeys(said.keys)
        for key in list(keys)[: max(0, len(keys) - REVOKED_MAX)]:
            del keys[key]
        self._by[by] = keys
        if not keys:
            del self._by[by]
        return [key for key in keys if said.reset or key not in before]

    def has(self, by: bytes | None, key: bytes) -> bool:
        """Returns whether the enrolment of a key by this endpoint is void."""
        return by is not None and key in self._by.get(by, ())

    def forget(self, by: bytes) -> None:
        """Forgets the revocations of an endpoint."""
        self._by.pop(by, None)

    def keep(self, endpoints: set[bytes]) -> None:
        """Forgets the revocations of all endpoints but these."""
        for by in self._by.keys() - endpoints:
            del self._by[by]
