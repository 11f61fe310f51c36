"""`[[routes]]` of a gateway: the table, and the checks of all of them together."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator

from socks_tunnel.config.basics import (
    Destination,
    PeerName,
    PolicyRuleList,
    Seconds,
    Table,
)
from socks_tunnel.protocol.routes import PEERS_MAX


class Route(Table):
    """`[[routes]]`: hosts and ports, and the peers that they are reached through."""

    name: Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")] = ""
    """Its name in logs and metrics; empty: its number, as `routes[0]`."""
    hosts: PolicyRuleList = "*"
    """As in a policy; `*`: every name and every address."""
    ports: PolicyRuleList = "*"
    peers: tuple[PeerName, ...] = Field(max_length=PEERS_MAX)
    """Names of `[[peers]]`."""
    policy: Literal["first", "least-loaded", "nearest"] = "first"
    """How the peer of a new flow is chosen among those that work."""
    failures: Annotated[int, Field(ge=0, le=64, strict=True)] = 3
    """Dials or probes that fail in a row until a peer is passed over; 0: never."""
    recover_after: Seconds = 10
    """Seconds for which a peer must work again before it is preferred again."""
    probe: Destination | None = None
    """A host and port that each peer has to reach. None: only the dials of clients are counted."""
    probe_interval: Annotated[int, Field(ge=1, le=3600, strict=True)] = 5

    @field_validator("peers", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("peers")
    @classmethod
    def _at_least_one(cls, peers: tuple[str, ...]) -> tuple[str, ...]:
        if not peers:
            raise ValueError("must not be empty")
        if len(set(peers)) < len(peers):
            raise ValueError("names a peer twice")
        return peers
