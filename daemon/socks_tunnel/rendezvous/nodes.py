"""Connects a node with the other nodes of its service through Redis."""

import asyncio
import logging
from typing import Final

from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.protocol.bounded import Malformed, clip
from socks_tunnel.rendezvous.federation import Federation, Hall
from socks_tunnel.rendezvous.redis_bus import RedisBus
from socks_tunnel.rendezvous.registry import Registry

_log = logging.getLogger(__name__)

TOLD_MAX: Final = 64
"""Number of sentences about messages of other nodes that are logged, each once. A node of another
version may send many messages of one kind."""


def join_others(url: str, registry: Registry, hall: Hall, bugs: BugLog) -> RedisBus:
    """Returns the bus of a node, not started. Its messages go to the registry and the relay."""
    bus = RedisBus(url)
    federation = Federation(bus.node, registry, hall, bus)
    registry.elsewhere = federation
    told: set[str] = set()

    def receive(message: bytes) -> None:
        try:
            unknown = federation.receive(message, asyncio.get_running_loop().time())
        except Malformed as error:
            drop(f"a message of another node: {clip(error)}")
        except Exception as error:  # noqa: BLE001 - only this message is lost, and it is logged and counted
            registry.counts["bugs"] += 1
            bugs.tell(_log, "a message of another node hit a bug", error)
        else:
            if unknown is not None:
                drop(f"another node sends a kind of message that is not known: {clip(unknown)}")

    def drop(why: str) -> None:
        registry.counts["protocol: nodes"] += 1
        if why not in told and len(told) < TOLD_MAX:
            told.add(why)
            _log.warning("%s; dropped: do all nodes have the same version?", why)

    bus.on_message = receive
    bus.on_resync, bus.on_lost = federation.resync, federation.lost
    bus.on_stolen = registry.replaced
    bus.keys = lambda: [client.key for client in registry.clients()]
    bus.counts = registry.counts
    return bus
