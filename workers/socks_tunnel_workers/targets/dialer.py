"""Connects to a target: Happy Eyeballs version 2 (RFC 8305) over addresses that were checked.

asyncio's version does not fit: here every attempt's error is kept, and the one that says most
becomes the SOCKS reply.
"""

import asyncio
import errno
import itertools
import socket
from collections.abc import Sequence

from socks_tunnel.ops.connecting import connect_to
from socks_tunnel.protocol.addresses import IPAddress
from socks_tunnel.protocol.errors import Reply
from socks_tunnel_workers.sockets import DEFAULT_LIVENESS, Liveness, is_shortage, prepare_stream
from socks_tunnel_workers.targets.ordering import source_address

ATTEMPT_DELAY = 0.25
"""Seconds after which the next address is tried, besides those under way (RFC 8305 section 5)."""

ATTEMPTS_MAX = 8
"""Addresses tried for one connection. A name with hundreds of them is that of a load balancer."""

_REPLIES = {
    errno.ECONNREFUSED: Reply.CONNECTION_REFUSED,
    errno.ENETUNREACH: Reply.NETWORK_UNREACHABLE,
    errno.EADDRNOTAVAIL: Reply.NETWORK_UNREACHABLE,
    errno.EAFNOSUPPORT: Reply.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: Reply.HOST_UNREACHABLE,
    errno.EHOSTDOWN: Reply.HOST_UNREACHABLE,
    errno.ETIMEDOUT: Reply.TTL_EXPIRED,
    errno.EPERM: Reply.NOT_ALLOWED,  # the endpoint's own packet filter
    errno.EACCES: Reply.NOT_ALLOWED,
}

_TELLING = (
    Reply.CONNECTION_REFUSED,
    Reply.NOT_ALLOWED,
    Reply.TTL_EXPIRED,
    Reply.HOST_UNREACHABLE,
    Reply.NETWORK_UNREACHABLE,
    Reply.GENERAL_FAILURE,
)
"""The replies in the order of what they tell the client. A refusal says that the host exists, while
an unreachable network may only mean that this host has no IPv6."""


class DialError(Exception):
    """No address answered. `reply` is the SOCKS reply for the client.

    `shortage` says that this host is the cause: its descriptors, memory or ports are used up.
    """

    def __init__(self, message: str, reply: Reply, *, shortage: bool = False) -> None:
        super().__init__(message)
        self.reply = reply
        self.shortage = shortage


class PortsUsedUpError(OSError):
    """Every local port for connections to an address is in use."""


def interleave(addresses: Sequence[IPAddress]) -> list[IPAddress]:
    """Returns the addresses with the families in turn, that of the first address first.

    RFC 8305 section 4.
    """
    if not addresses:
        return []
    first = addresses[0].version
    preferred = [a for a in addresses if a.version == first]
    other = [a for a in addresses if a.version != first]
    pairs = itertools.zip_longest(preferred, other)
    return [a for pair in pairs for a in pair if a is not None]


async def _attempt(address: IPAddress, port: int, liveness: Liveness) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        prepare_stream(sock, liveness)
        where = f" ({address} port {port})"
        await connect_to(sock, (str(address), port), where=where)
    except OSError as error:
        sock.close()
        raise explained(error, address) from None
    except BaseException:
        sock.close()
        raise
    return sock


def explained(error: OSError, address: IPAddress) -> OSError:
    """Returns an error of connect(2), or :class:`PortsUsedUpError` if that is what it means.

    EADDRNOTAVAIL means either that no local port is left, or that no local address can reach the
    target.
    """
    if error.errno == errno.EADDRNOTAVAIL and source_address(address) is not None:
        return PortsUsedUpError(error.errno, f"no local port is left toward {address}")
    return error


def failure(errors: Sequence[BaseException]) -> DialError:
    """Returns the error for a connection of which every attempt has failed."""
    shortages = [e for e in errors if isinstance(e, OSError) and _want_of_resources(e)]
    if shortages:
        # An address that could not be tried may be reachable.
        return DialError(str(shortages[0]), Reply.GENERAL_FAILURE, shortage=True)
    replies = {
        _REPLIES.get(e.errno or 0, Reply.HOST_UNREACHABLE) for e in errors if isinstance(e, OSError)
    }
    reply = next((r for r in _TELLING if r in replies), Reply.GENERAL_FAILURE)
    return DialError("; ".join(str(e) for e in errors), reply)


def _want_of_resources(error: OSError) -> bool:
    return isinstance(error, PortsUsedUpError) or is_shortage(error)


async def dial(
    addresses: Sequence[IPAddress],
    port: int,
    *,
    seconds: float,
    liveness: Liveness = DEFAULT_LIVENESS,
) -> socket.socket:
    """Connects to the first of `addresses` that answers, within `seconds` in all.

    The socket is ready for relaying. Raises :class:`DialError`; cancelling leaves no socket behind.
    """
    targets = interleave(addresses)[:ATTEMPTS_MAX]
    if not targets:
        raise DialError("there is no address to connect to", Reply.HOST_UNREACHABLE)
    if len(targets) == 1:
        try:
            async with asyncio.timeout(seconds):
                return await _attempt(targets[0], port, liveness)
        except TimeoutError as error:
            if error.errno is None:
                raise DialError(f"no answer within {seconds:g} s", Reply.TTL_EXPIRED) from None
            raise DialError(str(error), Reply.TTL_EXPIRED) from None
        except OSError as error:
            raise failure([error]) from None
    return await _race(targets, port, seconds, liveness)


async def _race(
    targets: Sequence[IPAddress], port: int, seconds: float, liveness: Liveness
) -> socket.socket:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    waiting = list(targets)
    running: set[asyncio.Task[socket.socket]] = set()
    errors: list[BaseException] = []
    winner: socket.socket | None = None
    try:
        while waiting or running:
            if waiting:
                address = waiting.pop(0)
                attempt = _attempt(address, port, liveness)
                # Not ops.tasks.spawn, which would log a failed attempt as a fault.
                running.add(loop.create_task(attempt, name=f"dial {address}"))
            left = deadline - loop.time()
            pause = min(ATTEMPT_DELAY, left) if waiting else left
            done, running = await asyncio.wait(
                running, timeout=max(pause, 0), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception()
                if error is not None:
                    errors.append(error)
                elif winner is None:
                    winner = task.result()
                else:
                    task.result().close()
            if winner is not None:
                return winner
            if loop.time() >= deadline:
                raise DialError(f"no answer within {seconds:g} s", Reply.TTL_EXPIRED)
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_close_late_winner)
    raise failure(errors)


def _close_late_winner(task: "asyncio.Task[socket.socket]") -> None:
    """Closes the socket of an attempt that won after the race was over."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
