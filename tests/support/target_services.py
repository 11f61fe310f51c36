"""Services of the endpoint's room for unit tests: a real policy, no resolver, no session."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from socks_tunnel.protocol.flow import Questions
from socks_tunnel.protocol.messages import decode
from socks_tunnel.protocol.policies import PolicySet
from socks_tunnel.protocol.policy import Policy
from socks_tunnel.protocol.settings import WorkerSettings
from socks_tunnel_workers.targets.access import Access
from socks_tunnel_workers.targets.resolver import Resolver
from socks_tunnel_workers.targets.services import TargetServices


@dataclass
class Settings:
    config: WorkerSettings
    policies: PolicySet


@dataclass
class Core:
    """The part of a session's core that knows the questions under way."""

    questions: Questions = field(default_factory=Questions)


class Session:
    """What a question needs of a session: a name, a number, and a way to send."""

    def __init__(self, number: int = 3, peer: str = "laptop") -> None:
        self.number = number
        self.peer = peer
        self.sent: list[Any] = []
        self.core = Core()

    def send(self, message: bytes) -> None:
        self.sent.append(decode(message))


def policies(*hosts: str) -> PolicySet:
    """Returns a set where the peer `laptop` may reach the hosts on port 80, and others nothing."""
    nothing = Policy.parse(allowed_hosts=[], allowed_ports=[])
    policy = Policy.parse(allowed_hosts=list(hosts), allowed_ports=["80"])
    return PolicySet(default=nothing, by_peer={"laptop": policy}, unknown_peer=nothing)


def services(*hosts: str) -> TargetServices:
    """Returns services with a policy for the peer `laptop`. Names cannot be looked up."""
    access = Access(cast("Resolver", None), lambda *_labels: None)
    return TargetServices(
        Settings(WorkerSettings("endpoint"), policies(*hosts)), access, lambda *_warning: None
    )
