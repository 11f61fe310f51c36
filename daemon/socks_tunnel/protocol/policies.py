"""From the policy tables of a configuration to policies that decide, one for each peer."""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from socks_tunnel.protocol.policy import Policy
from socks_tunnel.protocol.rules import Rules


class RuleTable(Protocol):
    """The rules of one policy, as they were written."""

    @property
    def allowed_hosts(self) -> Rules:
        """Hosts that are allowed."""

    @property
    def allowed_ports(self) -> Rules:
        """Ports that are allowed."""

    @property
    def denied_hosts(self) -> Rules:
        """Hosts that are not, whatever is allowed."""

    @property
    def denied_ports(self) -> Rules:
        """Ports that are not, whatever is allowed."""


class PolicyOfPeer(Protocol):
    """A peer, and the name of its policy."""

    @property
    def name(self) -> str:
        """The peer."""

    @property
    def policy(self) -> str | None:
        """None: the default policy."""


class PolicyTables(Protocol):
    """What policies are made of: a loaded configuration, or a worker's settings."""

    @property
    def role(self) -> str:
        """`gateway` or `endpoint`."""

    @property
    def policy(self) -> RuleTable | None:
        """The default policy."""

    @property
    def policies(self) -> Mapping[str, RuleTable]:
        """Policies by name."""

    @property
    def peers(self) -> Sequence[PolicyOfPeer]:
        """The peers."""


class PolicySet:
    """The policies of one configuration."""

    def __init__(
        self,
        *,
        default: Policy | None,
        by_peer: Mapping[str, Policy],
        unknown_peer: Policy | None,
    ) -> None:
        self.default: Final = default
        """For peers that name no policy. None, on a gateway without one: all is allowed here."""
        self._by_peer = by_peer
        self._unknown_peer = unknown_peer

    def for_peer(self, name: str) -> Policy | None:
        """Returns the policy for the flows of a peer; None: all is allowed.

        On an endpoint, a peer that the configuration does not name is allowed nothing.
        """
        return self._by_peer.get(name, self._unknown_peer)


def build_policies(config: PolicyTables) -> PolicySet:
    """Returns all policies of a configuration.

    An endpoint without a `[policy]` table allows nothing; a gateway without one leaves everything
    to the endpoint.
    """
    nothing = Policy.parse(allowed_hosts=(), allowed_ports=())
    if config.role == "gateway":
        default = parse_policy(config.policy) if config.policy else None
        return PolicySet(default=default, by_peer={}, unknown_peer=default)
    endpoint_default = parse_policy(config.policy) if config.policy else nothing
    named = {name: parse_policy(rules) for name, rules in config.policies.items()}
    by_peer = {
        peer.name: endpoint_default if peer.policy is None else named[peer.policy]
        for peer in config.peers
    }
    return PolicySet(default=endpoint_default, by_peer=by_peer, unknown_peer=nothing)


def parse_policy(rules: RuleTable) -> Policy:
    """Returns the policy of one table.

    Raises :class:`socks_tunnel.protocol.policy.PolicyError` with every rule that cannot be parsed.
    """
    return Policy.parse(
        allowed_hosts=rules.allowed_hosts,
        allowed_ports=rules.allowed_ports,
        denied_hosts=rules.denied_hosts,
        denied_ports=rules.denied_ports,
    )
