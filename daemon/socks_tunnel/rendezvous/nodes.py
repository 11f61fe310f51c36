"""Makes a node one of several: its registry, what it says to the others, and Redis between them."""

import asyncio
import logging

from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.protocol.bounded import Malformed
from socks_tunnel.rendezvous.federation import Federation, Hall
from socks_tunnel.rendezvous.redis_bus import RedisBus
from socks_tunnel.rendezvous.registry import Registry

_log = logging.getLogger(__name__)


def join_others(url: str, registry: Registry, hall: Hall, bugs: BugLog) -> RedisBus:
    """Returns the bus of a node, not started. What comes over it goes to registry and relay."""
    bus = RedisBus(url)
    federation = Federation(bus.node, registry, hall, bus)
    registry.elsewhere = federation

    def receive(message: bytes) -> None:
        try:
            federation.receive(message, asyncio.get_running_loop().time())
        except Malformed as error:
            registry.counts["protocol: nodes"] += 1
            _log.warning("a message of another node: %s", error)
        except Exception as error:  # noqa: BLE001 - one message's end, told and counted
            registry.counts["bugs"] += 1
            bugs.tell(_log, "a message of another node hit a bug", error)

    bus.on_message = receive
    bus.on_resync, bus.on_lost = federation.resync, federation.lost
    bus.on_stolen = registry.replaced
    bus.keys = lambda: [client.key for client in registry.clients()]
    bus.counts = registry.counts
    return bus
