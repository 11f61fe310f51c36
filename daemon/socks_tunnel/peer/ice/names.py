"""Looks up the addresses of STUN and TURN servers. Links share one look-up of the same name."""

import asyncio
import ipaddress

from socks_tunnel.ops.lookup import lookup
from socks_tunnel.protocol.addresses import IPAddress, parse_ip

_Answer = list[IPAddress] | OSError

_running: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Task[_Answer]] = {}
"""Look-ups that are under way. Their number is bounded by :mod:`socks_tunnel.ops.lookup`."""


async def resolve(host: str) -> list[IPAddress]:
    """Returns the addresses of a host in the system's order of preference (RFC 6724).

    Raises :class:`OSError` with a sentence if there are none. If a caller is cancelled, the
    look-up goes on for the others that wait for it.
    """
    address = parse_ip(host)
    if address is not None:
        return [address]
    loop = asyncio.get_running_loop()
    key = (loop, host)
    task = _running.get(key)
    if task is None:
        task = _running[key] = loop.create_task(_look_up(host), name=f"look up {host}")
        task.add_done_callback(lambda _: _running.pop(key, None))
    answer = await asyncio.shield(task)
    if isinstance(answer, OSError):
        raise answer
    return answer


async def _look_up(host: str) -> _Answer:
    try:
        found = await lookup(host, 0)
    except OSError as error:
        return OSError(f"its name cannot be resolved: {error.strerror or error}")
    addresses = [ipaddress.ip_address(address[0].partition("%")[0]) for _, address in found]
    return list(dict.fromkeys(addresses))
