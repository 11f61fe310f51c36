"""Which modules may be compiled, and whether they are.

They are ordinary Python, and also run uncompiled. `packaging/tools/compile.py`, which reads the
list here, compiles copies of them with mypyc; an extension module that stands beside its source is
what Python imports. docs/adr/0028 says why these modules were chosen, and what that gains.
"""

import importlib.util
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from typing import Final

MODULES: Final = (
    "socks_tunnel.ipc.incoming",
    "socks_tunnel.ipc.outgoing",
    "socks_tunnel.peer.channels",
    "socks_tunnel.peer.fast.bbr",
    "socks_tunnel.peer.fast.budget",
    "socks_tunnel.peer.fast.congestion",
    "socks_tunnel.peer.fast.controllers",
    "socks_tunnel.peer.fast.cubic",
    "socks_tunnel.peer.fast.datapath",
    "socks_tunnel.peer.fast.exchange",
    "socks_tunnel.peer.fast.forwarding",
    "socks_tunnel.peer.fast.limits",
    "socks_tunnel.peer.fast.outstanding",
    "socks_tunnel.peer.fast.pacer",
    "socks_tunnel.peer.fast.packing",
    "socks_tunnel.peer.fast.pmtu",
    "socks_tunnel.peer.fast.probing",
    "socks_tunnel.peer.fast.ranges",
    "socks_tunnel.peer.fast.rate",
    "socks_tunnel.peer.fast.reassembly",
    "socks_tunnel.peer.fast.receiver",
    "socks_tunnel.peer.fast.recordpath",
    "socks_tunnel.peer.fast.records",
    "socks_tunnel.peer.fast.recovery",
    "socks_tunnel.peer.fast.reduction",
    "socks_tunnel.peer.fast.reordering",
    "socks_tunnel.peer.fast.rtt",
    "socks_tunnel.peer.fast.sender",
    "socks_tunnel.peer.fast.stall",
    "socks_tunnel.peer.fast.standing",
    "socks_tunnel.peer.fast.streams",
    "socks_tunnel.peer.fast.transport",
    "socks_tunnel.peer.fast.udp",
    "socks_tunnel.peer.fast.urgent",
    "socks_tunnel.peer.fast.wayback",
    "socks_tunnel.peer.fast.wire",
    "socks_tunnel.peer.link",
    "socks_tunnel.peer.over_aiortc",
    "socks_tunnel.peer.plain.transport",
    "socks_tunnel.protocol.byte_queue",
    "socks_tunnel.protocol.flow",
    "socks_tunnel.protocol.frames",
    "socks_tunnel.protocol.keepalive",
    "socks_tunnel.protocol.link",
    "socks_tunnel.protocol.lone",
    "socks_tunnel.protocol.scheduler",
    "socks_tunnel.protocol.session",
    "socks_tunnel.protocol.streams",
    "socks_tunnel.supervisor.credit",
    "socks_tunnel.supervisor.routing",
    "socks_tunnel.supervisor.turns",
    "socks_tunnel.supervisor.worker_messages",
    "socks_tunnel_workers.frontends.forward",
    "socks_tunnel_workers.frontends.resolving",
    "socks_tunnel_workers.relay.client_socket",
    "socks_tunnel_workers.relay.probe",
    "socks_tunnel_workers.relay.routed_udp",
    "socks_tunnel_workers.relay.session",
    "socks_tunnel_workers.relay.tcp",
    "socks_tunnel_workers.relay.udp",
    "socks_tunnel_workers.services",
    "socks_tunnel_workers.targets.tcp",
    "socks_tunnel_workers.targets.udp",
)
"""The modules that each message passes. Classes that derive from a class of aiortc cannot be
compiled, so their modules are not listed.

A slice object is no index of bytes in compiled code, which raises a TypeError: write its bounds.

A name in the body of a class must not be given to another one (`abort = close`): mypyc looks it up
among the module's globals whenever an instance is made, and leaves the KeyError pending. Which call
then fails with a SystemError, or whether any does, depends on the hash seed of the process."""


def is_compiled(name: str) -> bool:
    """Returns whether a module is an extension module.

    If it is not loaded, the file is looked at.
    """
    module = sys.modules.get(name)
    spec = importlib.util.find_spec(name) if module is None else module.__spec__
    origin = None if spec is None else spec.origin
    return origin is not None and origin.endswith(tuple(EXTENSION_SUFFIXES))


def compiled_state() -> str:
    """Returns a few words for `socks-tunnel version`."""
    count = sum(map(is_compiled, MODULES))
    if not count:
        return "pure Python"
    if count < len(MODULES):
        return f"only {count} of {len(MODULES)} modules are compiled"
    return f"compiled ({count} modules)"
