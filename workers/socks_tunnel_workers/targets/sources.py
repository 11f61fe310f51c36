"""Looks names up in /etc/hosts, at name servers, and in sources that only the C library can ask."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import pycares

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.addresses import IPAddress
from socks_tunnel_workers.sockets import is_shortage
from socks_tunnel_workers.targets import hostsfile, nsswitch, ordering
from socks_tunnel_workers.targets.cares import Answer, Cares
from socks_tunnel_workers.targets.failures import Failure, ResolveError, shortage
from socks_tunnel_workers.targets.nsswitch import Source
from socks_tunnel_workers.targets.shares import Share, Shares
from socks_tunnel_workers.targets.system import SystemLookups, TooManyError

logger = logging.getLogger(__name__)

RESOLUTION_DELAY: Final = 0.05
"""Seconds that an answer for IPv4 waits for the one for IPv6 (RFC 8305 section 3)."""

FALLBACK_DELAY: Final = 1.0
"""Seconds that an answer for IPv6 waits for the one for IPv4. Without IPv4 there would be nothing
to fall back on if the IPv6 addresses cannot be reached."""

INCOMPLETE_TTL: Final = 5
"""Longest TTL in seconds of an answer that lacks one address family."""

UNKNOWN_TTL: Final = 60
"""TTL in seconds of answers from sources that give none: /etc/hosts, LDAP, mDNS."""

CACHED_MAX: Final = 16_384
"""Answers in the cache of c-ares. At this number, a new channel begins with an empty cache."""

CHECK_SECONDS: Final = 5.0
"""Seconds between two looks at resolv.conf, nsswitch.conf and hosts for changes, while names are
looked up."""

_NOWHERE: Final = (".onion", ".invalid")
"""Domains that no name server may be asked for (RFC 7686 section 2, RFC 6761 section 6.4)."""

_RESOLV_CONF: Final = Path("/etc/resolv.conf")


@dataclass(frozen=True, slots=True)
class Resolved:
    """The addresses of a name in the order of RFC 6724, and their TTL in seconds."""

    addresses: tuple[IPAddress, ...]
    ttl: int


class Sources:
    """The sources of one worker, with the present settings of this host.

    For tests, `servers` replaces the name servers of resolv.conf (`host` or `host:port`), and
    `timeout` their time-out in seconds. Each question counts in `shares` until its source has
    finished, also if its asker has left.
    """

    def __init__(
        self,
        shares: Shares,
        warn: Callable[..., None],
        *,
        servers: list[str] | None = None,
        timeout: float | None = None,
        nsswitch_conf: Path = nsswitch.PATH,
        hosts_file: Path = hostsfile.PATH,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._shares = shares
        self._warn = warn
        self.servers = servers
        self.timeout = timeout
        self._nsswitch_conf = nsswitch_conf
        self._hosts_file = hosts_file
        self._hosts = hostsfile.Hosts()
        self._hosts_read: object = None
        self._hosts_task: asyncio.Task[None] | None = None
        self._plan = nsswitch.DEFAULT
        self._cares: Cares | None = None
        self._retired: list[Cares] = []
        self._system: SystemLookups | None = None
        self._files: tuple[object, ...] = ()
        self._checked = -CHECK_SECONDS
        self._closed = False

    async def addresses(self, name: str, peer: str) -> Resolved:
        """Returns the addresses of a name, from the first source that has it.

        Raises :class:`ResolveError`.
        """
        cares = self._channel()
        if name.endswith(_NOWHERE):
            raise ResolveError(f"{name} does not exist", Failure.ABSENT)
        for source in self._plan.steps(name):
            if source is Source.FILES:
                await self._read_hosts()
                found = self._hosts.addresses(name)
                resolved = Resolved(found, UNKNOWN_TTL) if found else None
            elif source is Source.DNS:
                resolved = await self._ask_dns(cares, name, peer)
            else:
                resolved = await self._ask_system(name, peer)
            if resolved is not None:
                ordered = ordering.sort(resolved.addresses, ordering.source_address)
                return Resolved(tuple(ordered), resolved.ttl)
        raise ResolveError(f"{name} does not exist, or has no address", Failure.ABSENT)

    async def names(self, address: IPAddress, peer: str) -> tuple[str, ...]:
        """Returns the names of an address from /etc/hosts, or else from DNS.

        Raises :class:`ResolveError`.
        """
        cares = self._channel()
        await self._read_hosts()
        names = self._hosts.names(address)
        if not names:
            question = self._loop.create_future()
            cares.reverse(address, partial(_answered, question, self._shares.take(peer)))
            answer: Answer = await question
            if answer.status is not None:
                self._fail(str(address), answer)
            names = answer.names
        return names

    # --- settings of this host ------------------------------------------------------------------

    def _channel(self) -> Cares:
        """Returns c-ares, with the settings that this host has now."""
        if self._closed:
            raise ResolveError("this worker is shutting down", Failure.RESOURCES)
        now = self._loop.time()
        try:
            if self._cares is not None and self._cares.sent >= CACHED_MAX:
                self._cares.retire()
                self._retired = [cares for cares in self._retired if not cares.closed]
                self._retired.append(self._cares)
                self._cares = None
            if self._cares is None:
                self._cares = Cares(servers=self.servers, timeout=self.timeout)
            if now - self._checked >= CHECK_SECONDS:
                self._checked = now
                self._reread(self._cares)
        except (OSError, RuntimeError, pycares.AresError) as error:
            # A descriptor to read a file or a thread is missing, which may pass.
            self._warn("resolver", "cannot start to look names up: %s", error)
            raise ResolveError(f"no name can be looked up: {error}", Failure.RESOURCES) from error
        return self._cares

    def _reread(self, cares: Cares) -> None:
        paths = (_RESOLV_CONF, self._nsswitch_conf, self._hosts_file)
        files = tuple(_fingerprint(path) for path in paths)
        if files == self._files:
            return
        self._plan = nsswitch.read(self._nsswitch_conf)
        if self._files:
            logger.info(
                "%s, %s or %s has changed: reading them again for the look-up of names", *paths
            )
            if self.servers is None and files[0] != self._files[0]:
                cares.reread()
        self._files = files

    async def _read_hosts(self) -> None:
        """Reads the hosts file if it has changed. All look-ups share one reading of the file.

        Raises :class:`ResolveError` if the file was never read.
        """
        if self._hosts_task is None and self._hosts_read != self._files:
            self._hosts_task = spawn("read the hosts file", self._reading_hosts(self._files))
            self._hosts_task.add_done_callback(self._hosts_done)
        if self._hosts_task is not None:
            await asyncio.shield(self._hosts_task)
        if self._hosts_read is None:
            raise ResolveError(f"{self._hosts_file} cannot be read", Failure.RESOURCES)

    async def _reading_hosts(self, version: object) -> None:
        hosts = hostsfile.Hosts()
        try:
            for _ in hostsfile.reading(self._hosts_file, hosts):
                await asyncio.sleep(0)
        except OSError as error:
            self._warn("resolver", "cannot read %s: %s", self._hosts_file, error)
            if is_shortage(error):
                return  # the next look-up tries again
        self._hosts, self._hosts_read = hosts, version

    def _hosts_done(self, _task: asyncio.Task[None]) -> None:
        self._hosts_task = None

    # --- one source ------------------------------------------------------------------------------

    async def _ask_system(self, name: str, peer: str) -> Resolved | None:
        if self._system is None:
            self._system = SystemLookups()
        try:
            found = await self._system.ask(name, peer)
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
                return None
            self._raise_shortage(name)
            failure = Failure.TIMEOUT if error.errno == socket.EAI_AGAIN else Failure.SERVER
            raise ResolveError(f"{name} cannot be resolved: {error.strerror}", failure) from None
        except UnicodeError:
            return None
        except TooManyError as error:
            raise ResolveError(str(error), Failure.TOO_MANY) from None
        except (OSError, RuntimeError) as error:
            self._warn("resolver", "cannot look names up by the C library: %s", error)
            raise ResolveError(f"{name} cannot be resolved: {error}", Failure.RESOURCES) from None
        return Resolved(tuple(found), UNKNOWN_TTL) if found else None

    async def _ask_dns(self, cares: Cares, name: str, peer: str) -> Resolved | None:
        """Asks the name servers for both address families at once. None if the name is absent."""
        ipv4 = self._query(cares, name, socket.AF_INET, peer)
        ipv6 = self._query(cares, name, socket.AF_INET6, peer)
        done, pending = await asyncio.wait({ipv4, ipv6}, return_when=asyncio.FIRST_COMPLETED)
        if pending:
            first = next(iter(done))
            patience: float | None = None
            if first.result().addresses:
                patience = RESOLUTION_DELAY if first is ipv4 else FALLBACK_DELAY
            done |= (await asyncio.wait(pending, timeout=patience))[0]
        answers = [question.result() for question in (ipv6, ipv4) if question in done]
        addresses = tuple(address for answer in answers for address in answer.addresses)
        if addresses:
            ttl = min(answer.ttl for answer in answers if answer.addresses)
            complete = len(answers) == 2 and all(a.addresses or a.absent for a in answers)
            return Resolved(addresses, ttl if complete else min(ttl, INCOMPLETE_TTL))
        failed = next((answer for answer in answers if not answer.absent), None)
        if failed is not None:
            self._fail(name, failed)
        return None

    def _query(self, cares: Cares, name: str, family: int, peer: str) -> asyncio.Future[Answer]:
        question: asyncio.Future[Answer] = self._loop.create_future()
        cares.query(name, family, partial(_answered, question, self._shares.take(peer)))
        return question

    def _fail(self, name: str, answer: Answer) -> NoReturn:
        """Raises the :class:`ResolveError` for an answer without addresses or names."""
        if answer.absent:
            raise ResolveError(f"{name} does not exist, or has no address", Failure.ABSENT)
        self._raise_shortage(name)
        failure = Failure.TIMEOUT if answer.timed_out else Failure.SERVER
        raise ResolveError(f"{name} cannot be resolved: {answer.problem}", failure)

    def _raise_shortage(self, name: str) -> None:
        error = shortage()
        if error is not None:
            self._warn("resource", "cannot look names up: %s", error)
            raise ResolveError(f"{name} cannot be resolved: {error}", Failure.RESOURCES)

    def close(self) -> None:
        """Ends the questions under way, and does not wait for threads or servers."""
        self._closed = True
        for cares in (*self._retired, *filter(None, [self._cares])):
            cares.close()
        if self._system is not None:
            self._system.close()


def _answered(question: asyncio.Future[Answer], share: Share, answer: Answer) -> None:
    share.end()
    if not question.done():
        question.set_result(answer)


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    """Returns a value that differs when the file has changed; None if there is no such file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - one system call, on the event loop
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
