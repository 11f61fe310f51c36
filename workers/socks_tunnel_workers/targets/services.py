"""The services that the endpoint's flows use: the policy in force, the decision, warnings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from socks_tunnel.protocol.policies import PolicySet
from socks_tunnel.protocol.policy import Policy
from socks_tunnel.protocol.settings import TargetSettings, WorkerSettings
from socks_tunnel_workers.targets.access import Access


class Settings(Protocol):
    """The configuration in force. A reload replaces the contents."""

    @property
    def config(self) -> WorkerSettings:
        """The configuration in force."""

    @property
    def policies(self) -> PolicySet:
        """The policies in force."""


@dataclass(frozen=True, slots=True)
class TargetServices:
    """The services. `warn` is :meth:`~socks_tunnel_workers.services.Notices.warn`."""

    settings: Settings
    access: Access
    warn: Callable[..., None]

    @property
    def config(self) -> TargetSettings:
        """`[targets]` of the configuration in force."""
        return self.settings.config.targets

    def policy(self, peer: str) -> Policy:
        """Returns the policy in force for a peer's flows."""
        policy = self.settings.policies.for_peer(peer)
        assert policy is not None, "build_policies gives every peer of an endpoint a policy"
        return policy
