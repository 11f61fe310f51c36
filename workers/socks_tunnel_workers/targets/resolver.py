"""Names to addresses. The event loop is never blocked, and no peer holds up another.

::

    asker --+                      +-- /etc/hosts
    asker --+-- one look-up a name +-- name servers, A, AAAA (c-ares; its cache keeps to the TTL)
    asker --+                      +-- LDAP, mDNS, sssd ...  (getaddrinfo, in a few threads)
                                       in the order of nsswitch.conf

* Names are absolute: what the policy has judged is what is asked. Search lists are the caller's.
* Askers of the same name share one look-up. It ends with the last of them.
* Each peer has its share of the look-ups under way, so that its dead names hold up nobody else.
* What may pass (time-out, SERVFAIL, no descriptors) is a soft failure: it is never taken for "there
  is no such name", and remembered for :data:`SOFT_SECONDS` at most.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Final

import pycares

from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.addresses import IPAddress
from socks_tunnel.protocol.errors import Reply
from socks_tunnel_workers.sockets import is_shortage
from socks_tunnel_workers.targets import hostsfile, nsswitch, ordering
from socks_tunnel_workers.targets.cares import Answer, Cares
from socks_tunnel_workers.targets.nsswitch import Source
from socks_tunnel_workers.targets.system import SystemLookups, TooManyError

logger = logging.getLogger(__name__)

QUESTIONS_MAX: Final = 32_768
"""Questions under way in one worker, with those that nobody waits for any more. A name that is
looked up in DNS is three: the look-up itself, and one question for each family."""

QUESTIONS_PER_PEER_MAX: Final = 8192
"""Of these, questions for the flows of one peer: 2,730 names. A further one fails at once."""

SOFT_SECONDS: Final = 2.0
"""How long a soft failure is the answer for whoever asks next (RFC 2308 section 7 allows 300)."""

SOFT_MAX: Final = 4096
"""Names whose soft failure is remembered; the oldest is forgotten first."""

RESOLUTION_DELAY: Final = 0.05
"""Seconds that an answer for IPv4 waits for the one for IPv6 (RFC 8305 section 3)."""

FALLBACK_DELAY: Final = 1.0
"""Seconds that an answer for IPv6 waits for the one for IPv4. Without that one there is nothing to
fall back on where IPv6 leads nowhere."""

INCOMPLETE_TTL: Final = 5
"""Seconds for which an answer holds that lacks one family."""

UNKNOWN_TTL: Final = 60
"""Seconds for which an answer holds that has no TTL: /etc/hosts, LDAP, mDNS."""

CACHED_MAX: Final = 16_384
"""Answers that c-ares keeps at most; then a new channel begins with an empty cache."""

CHECK_SECONDS: Final = 5.0
"""How often resolv.conf, nsswitch.conf and hosts are looked at for changes, if names are asked."""

_NOWHERE: Final = (".onion", ".invalid")
"""Names that no name server is to be asked for (RFC 7686 section 2, RFC 6761 section 6.4)."""

_RESOLV_CONF: Final = Path("/etc/resolv.conf")


class Failure(Enum):
    """Why a name has no addresses. The values are the labels of `dns_failures_total`."""

    ABSENT = "absent"
    """The sources say that there is no such name, or that it has no address."""
    TIMEOUT = "timeout"
    """Nobody answered in time."""
    SERVER = "server"
    """The name servers answered with an error, or could not be reached."""
    RESOURCES = "resources"
    """This host lacks descriptors, memory or threads."""
    TOO_MANY = "too-many"
    """As many look-ups are under way as there may be."""
    ABANDONED = "abandoned"
    """Whoever asked has left, or ran out of time, before there was an answer."""
    BUG = "bug"
    """A fault of this program, with a traceback in the log."""


_REPLIES: Final = {
    Failure.ABSENT: Reply.HOST_UNREACHABLE,
    Failure.TIMEOUT: Reply.TTL_EXPIRED,
    Failure.SERVER: Reply.HOST_UNREACHABLE,
    Failure.RESOURCES: Reply.GENERAL_FAILURE,
    Failure.TOO_MANY: Reply.GENERAL_FAILURE,
    Failure.ABANDONED: Reply.GENERAL_FAILURE,
    Failure.BUG: Reply.GENERAL_FAILURE,
}

_REMEMBERED: Final = frozenset({Failure.TIMEOUT, Failure.SERVER})


class ResolveError(Exception):
    """The name could not be resolved; `failure` says why, `reply` is what the client is told."""

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure
        self.reply = _REPLIES[failure]

    @property
    def soft(self) -> bool:
        """Whether the same question may have another answer in a moment."""
        return self.failure is not Failure.ABSENT


@dataclass(frozen=True, slots=True)
class Resolved:
    """The addresses of a name, in the order of RFC 6724, and the seconds for which they hold."""

    addresses: tuple[IPAddress, ...]
    ttl: int


class _Lookup:
    """One question that is under way, for everybody who waits for its answer."""

    __slots__ = ("askers", "future", "peer", "started", "task")

    def __init__(self, peer: str, future: asyncio.Future[Resolved], started: float) -> None:
        self.peer = peer
        self.future = future
        self.started = started
        self.askers = 0
        self.task: asyncio.Task[Resolved | ResolveError] | None = None


def shortage() -> OSError | None:
    """Returns why no socket can be had at this moment, or None if one can.

    c-ares reports a socket that it could not open as a refused connection.
    """
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()
    except OSError as error:
        if is_shortage(error):
            return error
    return None


class Resolver:
    """The resolver of one worker. Must be used on one event loop.

    `warn` logs a sentence for the operator, at most one of a kind in a while.
    """

    def __init__(
        self,
        *,
        warn: Callable[..., None] | None = None,
        metrics: Metrics | None = None,
        servers: list[str] | None = None,
        timeout: float | None = None,
        nsswitch_conf: Path = nsswitch.PATH,
        hosts_file: Path = hostsfile.PATH,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._warn = warn or (lambda _kind, message, *args: logger.warning(message, *args))
        self._metrics = metrics or Metrics()
        self._servers = servers
        self._timeout = timeout
        self._nsswitch_conf = nsswitch_conf
        self._hosts_file = hosts_file
        self._hosts = hostsfile.Hosts()
        self._hosts_read: object = None
        self._hosts_task: asyncio.Task[None] | None = None
        self._plan = nsswitch.DEFAULT
        self._cares: Cares | None = None
        self._retired: list[Cares] = []
        self._system: SystemLookups | None = None
        self._lookups: dict[str, _Lookup] = {}
        self._held: Counter[str] = Counter()
        self._soft: OrderedDict[str, tuple[float, ResolveError]] = OrderedDict()
        self._files: tuple[object, ...] = ()
        self._checked = -CHECK_SECONDS
        self._closed = False

    # --- questions ------------------------------------------------------------------------------

    async def resolve(self, name: str, *, seconds: float, peer: str = "") -> Resolved:
        """Returns the addresses of a canonical name, which is taken as absolute.

        `peer` is whose share of the look-ups is used. Raises :class:`ResolveError`.
        """
        lookup = self._lookups.get(name) or self._begin(name, peer)
        lookup.askers += 1
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(lookup.future)
        except TimeoutError:
            raise ResolveError(
                f"{name} was not resolved within {seconds:g} s", Failure.TIMEOUT
            ) from None
        finally:
            lookup.askers -= 1
            if not lookup.askers and lookup.task is not None:
                self._forget(name, lookup)
                lookup.task.cancel()

    async def reverse(self, address: IPAddress, *, seconds: float, peer: str = "") -> list[str]:
        """Returns the names of an address. Raises :class:`ResolveError`."""
        self._check_share(peer)
        cares = self._channels()
        started = self._loop.time()
        failure: Failure | None = None
        try:
            async with asyncio.timeout(seconds):
                await self._read_hosts()
                names = self._hosts.names(address)
                if not names:
                    question = self._question(peer)
                    cares.reverse(address, partial(self._answered, question, peer))
                    answer = await question
                    if answer.status is not None:
                        raise self._error(str(address), answer)
                    names = answer.names
        except TimeoutError:
            failure = Failure.TIMEOUT
            raise ResolveError(
                f"{address} was not resolved within {seconds:g} s", failure
            ) from None
        except ResolveError as error:
            failure = error.failure
            raise
        else:
            return list(names)
        finally:
            self._observe(self._loop.time() - started, failure)

    def _begin(self, name: str, peer: str) -> _Lookup:
        remembered = self._soft.get(name)
        if remembered is not None:
            until, error = remembered
            if self._loop.time() < until:
                raise ResolveError(str(error), error.failure)
            del self._soft[name]
        self._check_share(peer)
        self._channels()
        lookup = _Lookup(peer, self._loop.create_future(), self._loop.time())
        self._lookups[name] = lookup
        self._held[peer] += 1
        lookup.task = spawn(f"look up {name}", self._look_up(name, peer))
        lookup.task.add_done_callback(partial(self._ended, name, lookup))
        return lookup

    def _check_share(self, peer: str) -> None:
        held = self._held[peer]
        if held >= QUESTIONS_PER_PEER_MAX or self._held.total() >= QUESTIONS_MAX:
            self._warn(
                "lookups",
                "%d questions about names are under way, %d of them for %s; refusing more",
                self._held.total(),
                held,
                peer,
            )
            self._observe(0.0, Failure.TOO_MANY)
            raise ResolveError(f"{held} questions about names are under way", Failure.TOO_MANY)

    def _channels(self) -> Cares:
        """Returns c-ares, with the settings that this host has now."""
        if self._closed:
            raise ResolveError("this worker ends", Failure.RESOURCES)
        now = self._loop.time()
        try:
            if self._cares is not None and self._cares.sent >= CACHED_MAX:
                self._cares.retire()
                self._retired = [cares for cares in self._retired if not cares.closed]
                self._retired.append(self._cares)
                self._cares = None
            if self._cares is None:
                self._cares = Cares(servers=self._servers, timeout=self._timeout)
            if now - self._checked >= CHECK_SECONDS:
                self._checked = now
                self._reread(self._cares)
        except (OSError, RuntimeError, pycares.AresError) as error:
            # No descriptor to read a file with, no thread: this passes.
            self._warn("resolver", "cannot look names up: %s", error)
            self._observe(0.0, Failure.RESOURCES)
            raise ResolveError(f"no name can be looked up: {error}", Failure.RESOURCES) from error
        return self._cares

    def _reread(self, cares: Cares) -> None:
        paths = (_RESOLV_CONF, self._nsswitch_conf, self._hosts_file)
        files = tuple(_fingerprint(path) for path in paths)
        if files == self._files:
            return
        self._plan = nsswitch.read(self._nsswitch_conf)
        if self._files:
            logger.info("resolv.conf, nsswitch.conf or hosts has changed: reading them again")
            self._soft.clear()
            if self._servers is None and files[0] != self._files[0]:
                cares.reread()
        self._files = files

    async def _read_hosts(self) -> None:
        """Reads /etc/hosts, if it has changed since; whoever comes meanwhile waits for the same."""
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
                return  # read it again for the next look-up
        self._hosts, self._hosts_read = hosts, version

    def _hosts_done(self, _task: asyncio.Task[None]) -> None:
        self._hosts_task = None

    # --- one look-up ----------------------------------------------------------------------------

    async def _look_up(self, name: str, peer: str) -> Resolved | ResolveError:
        try:
            return await self._ask(name, peer)
        except ResolveError as error:
            return error

    def _ended(
        self, name: str, lookup: _Lookup, task: asyncio.Task[Resolved | ResolveError]
    ) -> None:
        """Hands the answer on. Called also for a task that was cancelled before it ran at all."""
        lookup.task = None
        self._forget(name, lookup)
        self._release(lookup.peer)
        failure: Failure | None = None
        if task.cancelled():
            failure = Failure.ABANDONED
            lookup.future.cancel()
        else:
            # A bug of ours, which the task has logged, ends the wait like anything else.
            bug = task.exception()
            result = ResolveError(f"{name}: {bug!r}", Failure.BUG) if bug else task.result()
            if isinstance(result, ResolveError):
                failure = result.failure
                if failure in _REMEMBERED:
                    self._remember(name, result)
                lookup.future.set_exception(result)
                lookup.future.exception()  # whoever waits gets it; it is nobody's if nobody does
            else:
                lookup.future.set_result(result)
        self._observe(self._loop.time() - lookup.started, failure)

    def _forget(self, name: str, lookup: _Lookup) -> None:
        """Lets nobody join this look-up any more."""
        if self._lookups.get(name) is lookup:
            del self._lookups[name]

    def _remember(self, name: str, error: ResolveError) -> None:
        self._soft[name] = (self._loop.time() + SOFT_SECONDS, error)
        if len(self._soft) > SOFT_MAX:
            self._soft.popitem(last=False)

    def _release(self, peer: str) -> None:
        self._held[peer] -= 1
        if not self._held[peer]:
            del self._held[peer]

    async def _ask(self, name: str, peer: str) -> Resolved:
        """Asks one source after the other (nsswitch.conf)."""
        assert self._cares is not None
        if name.endswith(_NOWHERE):
            raise ResolveError(f"{name} does not exist", Failure.ABSENT)
        for source in self._plan.steps(name):
            if source is Source.FILES:
                await self._read_hosts()
                found = self._hosts.addresses(name)
                resolved = Resolved(found, UNKNOWN_TTL) if found else None
            elif source is Source.DNS:
                resolved = await self._ask_dns(self._cares, name, peer)
            else:
                resolved = await self._ask_system(name, peer)
            if resolved is not None:
                return self._sorted(resolved)
        raise ResolveError(f"{name} does not exist, or has no address", Failure.ABSENT)

    def _sorted(self, resolved: Resolved) -> Resolved:
        addresses = ordering.sort(resolved.addresses, ordering.source_address)
        return Resolved(tuple(addresses), resolved.ttl)

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
            self._warn("resolver", "cannot look names up: %s", error)
            raise ResolveError(f"{name} cannot be resolved: {error}", Failure.RESOURCES) from None
        return Resolved(tuple(found), UNKNOWN_TTL) if found else None

    async def _ask_dns(self, cares: Cares, name: str, peer: str) -> Resolved | None:
        """Asks the name servers for both families at once."""
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
            raise self._error(name, failed)
        return None

    def _query(self, cares: Cares, name: str, family: int, peer: str) -> asyncio.Future[Answer]:
        """Asks one question. It counts until c-ares is done with it, asker or no asker."""
        question = self._question(peer)
        cares.query(name, family, partial(self._answered, question, peer))
        return question

    def _question(self, peer: str) -> asyncio.Future[Answer]:
        self._held[peer] += 1
        return self._loop.create_future()

    def _answered(self, question: asyncio.Future[Answer], peer: str, answer: Answer) -> None:
        self._release(peer)
        if not question.done():
            question.set_result(answer)

    def _error(self, name: str, answer: Answer) -> ResolveError:
        if answer.absent:
            return ResolveError(f"{name} does not exist, or has no address", Failure.ABSENT)
        self._raise_shortage(name)
        failure = Failure.TIMEOUT if answer.timed_out else Failure.SERVER
        return ResolveError(f"{name} cannot be resolved: {answer.problem}", failure)

    def _raise_shortage(self, name: str) -> None:
        error = shortage()
        if error is not None:
            self._warn("resource", "cannot look names up: %s", error)
            raise ResolveError(f"{name} cannot be resolved: {error}", Failure.RESOURCES)

    def _observe(self, seconds: float, failure: Failure | None) -> None:
        self._metrics.dns_seconds.observe(seconds)
        if failure is not None:
            self._metrics.dns_failures_total.labels(failure.value).inc()

    def close(self) -> None:
        """Gives up what is under way. Nobody waits for a thread or a server."""
        self._closed = True
        for lookup in list(self._lookups.values()):
            if lookup.task is not None:
                lookup.task.cancel()
        for cares in (*self._retired, *filter(None, [self._cares])):
            cares.close()
        if self._system is not None:
            self._system.close()


def _fingerprint(path: Path) -> tuple[int, int, int] | None:
    """Returns what changes when a file does; None if there is no such file."""
    try:
        status = os.stat(path)  # noqa: PTH116 - one system call, on the event loop
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
