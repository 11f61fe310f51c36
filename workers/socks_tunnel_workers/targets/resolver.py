"""Names to addresses, by the system's own resolver, without ever blocking the event loop.

`getaddrinfo` is asked, in threads of our own: it is the only resolver that honours everything the
administrator configured (nsswitch.conf, resolv.conf with its options and search list, hosts, mDNS,
systemd-resolved, LDAP). Look-ups of the same name that overlap share one question.
"""

import asyncio
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor

from socks_tunnel.protocol.addresses import IPAddress, parse_ip
from socks_tunnel.protocol.errors import Reply

THREADS = 32
"""Look-ups that can be under way at once in one worker; further ones wait for a thread."""

PENDING_MAX = 1024
"""Different names that can be asked for or wait at once; beyond it a look-up fails at once."""


class ResolveError(Exception):
    """The name could not be resolved; `reply` is what the SOCKS client is told."""

    def __init__(self, message: str, reply: Reply) -> None:
        super().__init__(message)
        self.reply = reply


def _lookup(name: str) -> list[IPAddress]:
    """Ask the system (in a thread). The order is the system's (RFC 6724)."""
    addresses: dict[IPAddress, None] = {}
    for _, _, _, _, sockaddr in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
        address = parse_ip(str(sockaddr[0]))
        # A link-local answer has a zone (fe80::1%eth0) that parse_ip refuses: it is forbidden
        # unless a rule names it, and such a rule cannot name a zone.
        if address is None:
            address = ipaddress.ip_address(str(sockaddr[0]).partition("%")[0])
        addresses.setdefault(address)
    return list(addresses)


class Resolver:
    """The resolver of one worker."""

    def __init__(self, *, threads: int = THREADS, pending_max: int = PENDING_MAX) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="resolver")
        self._pending_max = pending_max
        self._pending: dict[str, asyncio.Future[list[IPAddress]]] = {}

    async def resolve(self, name: str, *, seconds: float) -> list[IPAddress]:
        """Give the addresses of `name`, in the system's order, without duplicates.

        Raises :class:`ResolveError`: the name does not exist (reply 0x04), the servers did not
        answer in `seconds` (0x06), or too many look-ups are under way (0x01).
        """
        future = self._pending.get(name)
        if future is None:
            if len(self._pending) >= self._pending_max:
                raise ResolveError(
                    f"{len(self._pending)} name look-ups are under way", Reply.GENERAL_FAILURE
                )
            loop = asyncio.get_running_loop()
            future = loop.run_in_executor(self._executor, _lookup, name)
            self._pending[name] = future
            future.add_done_callback(lambda done: self._finished(name, done))
        try:
            # The look-up itself goes on for whoever else waits for it.
            async with asyncio.timeout(seconds):
                return await asyncio.shield(future)
        except TimeoutError:
            raise ResolveError(
                f"{name} was not resolved within {seconds:g} s", Reply.TTL_EXPIRED
            ) from None
        except socket.gaierror as error:
            raise ResolveError(
                f"{name} cannot be resolved: {error.strerror}", Reply.HOST_UNREACHABLE
            ) from None
        except (OSError, UnicodeError) as error:
            raise ResolveError(
                f"{name} cannot be resolved: {error}", Reply.HOST_UNREACHABLE
            ) from None

    def _finished(self, name: str, future: "asyncio.Future[list[IPAddress]]") -> None:
        self._pending.pop(name, None)
        if not future.cancelled():
            # Whoever waits gets the error; if nobody does any more, it was nobody's.
            future.exception()

    def close(self) -> None:
        """Give up what is under way; threads that still wait for an answer are left to end."""
        self._executor.shutdown(wait=False, cancel_futures=True)
