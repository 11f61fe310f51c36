"""Resolves names to addresses. It never blocks the event loop, and no peer delays another.

::

    asker --+                      +-- /etc/hosts
    asker --+-- one look-up a name +-- name servers, A, AAAA (c-ares; its cache keeps to the TTL)
    asker --+                      +-- LDAP, mDNS, sssd ...  (getaddrinfo, in a few threads)
                                       in the order of nsswitch.conf

* Names are absolute: the name that the policy has judged is the one that is looked up. The caller
  deals with search lists.
* Askers of the same name share one look-up, which ends when the last of them has left.
* Each peer has a share of the look-ups under way, so that its dead names delay nobody else.
* A failure that may pass (time-out, SERVFAIL, no descriptors) is a soft one. It never counts as
  "there is no such name", and is remembered for at most :data:`SOFT_SECONDS`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.addresses import IPAddress
from socks_tunnel_workers.targets import hostsfile, nsswitch
from socks_tunnel_workers.targets.failures import Failure, ResolveError
from socks_tunnel_workers.targets.shares import Share, Shares
from socks_tunnel_workers.targets.sources import UNKNOWN_TTL, Resolved, Sources

__all__ = ["UNKNOWN_TTL", "Failure", "ResolveError", "Resolved", "Resolver"]

logger = logging.getLogger(__name__)

QUESTIONS_MAX: Final = 32_768
"""Questions under way in one worker, also those whose askers have left. A name that is looked up in
DNS counts as three: the look-up itself, and one question for each address family."""

QUESTIONS_PER_PEER_MAX: Final = 8192
"""Of these, questions for the flows of one peer: 2,730 names. A further one fails at once."""

SOFT_SECONDS: Final = 2.0
"""Seconds for which a soft failure is remembered (RFC 2308 section 7 allows 300)."""

SOFT_MAX: Final = 4096
"""Names whose soft failure is remembered. The oldest is forgotten first."""

_REMEMBERED: Final = frozenset({Failure.TIMEOUT, Failure.SERVER})


class _Lookup:
    """One look-up under way, and its askers."""

    __slots__ = ("askers", "future", "started", "task")

    def __init__(self, future: asyncio.Future[Resolved], started: float) -> None:
        self.future = future
        self.started = started
        self.askers = 0
        self.task: asyncio.Task[Resolved | ResolveError] | None = None


class Resolver:
    """The resolver of one worker. Must be used on one event loop.

    `warn` is :meth:`~socks_tunnel_workers.services.Notices.warn`. `servers` and later parameters
    are those of :class:`Sources`.
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
        self._shares = Shares(each=QUESTIONS_PER_PEER_MAX, total=QUESTIONS_MAX)
        self.sources = Sources(
            self._shares,
            self._warn,
            servers=servers,
            timeout=timeout,
            nsswitch_conf=nsswitch_conf,
            hosts_file=hosts_file,
        )
        self._lookups: dict[str, _Lookup] = {}
        self._soft: OrderedDict[str, tuple[float, ResolveError]] = OrderedDict()

    async def resolve(self, name: str, *, seconds: float, peer: str = "") -> Resolved:
        """Returns the addresses of a canonical name, which is taken as absolute.

        `seconds` is the longest wait, and `peer` the one whose share of look-ups is used. Raises
        :class:`ResolveError`.
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
        started = self._loop.time()
        failure: Failure | None = None
        try:
            async with asyncio.timeout(seconds):
                return list(await self.sources.names(address, peer))
        except TimeoutError:
            failure = Failure.TIMEOUT
            raise ResolveError(
                f"{address} was not resolved within {seconds:g} s", failure
            ) from None
        except ResolveError as error:
            failure = error.failure
            raise
        finally:
            self._observe(self._loop.time() - started, failure)

    # --- one look-up ----------------------------------------------------------------------------

    def _begin(self, name: str, peer: str) -> _Lookup:
        remembered = self._soft.get(name)
        if remembered is not None:
            until, error = remembered
            if self._loop.time() < until:
                raise ResolveError(str(error), error.failure)
            del self._soft[name]
        self._check_share(peer)
        lookup = _Lookup(self._loop.create_future(), self._loop.time())
        self._lookups[name] = lookup
        lookup.task = spawn(f"look up {name}", self._look_up(name, peer))
        lookup.task.add_done_callback(partial(self._ended, name, lookup, self._shares.take(peer)))
        return lookup

    def _check_share(self, peer: str) -> None:
        shares = self._shares
        if shares.full(peer):
            held = shares.held(peer)
            self._warn(
                "lookups",
                "%d questions about names are under way, %d of them for %s; refusing more",
                len(shares),
                held,
                peer,
            )
            self._observe(0.0, Failure.TOO_MANY)
            raise ResolveError(f"{held} questions about names are under way", Failure.TOO_MANY)

    async def _look_up(self, name: str, peer: str) -> Resolved | ResolveError:
        try:
            return await self.sources.addresses(name, peer)
        except ResolveError as error:
            return error

    def _ended(
        self,
        name: str,
        lookup: _Lookup,
        share: Share,
        task: asyncio.Task[Resolved | ResolveError],
    ) -> None:
        """Passes the answer on. Also called for a task that was cancelled before it ran."""
        lookup.task = None
        self._forget(name, lookup)
        share.end()
        failure: Failure | None = None
        if task.cancelled():
            failure = Failure.ABANDONED
            lookup.future.cancel()
        else:
            # The task has logged a bug. It ends the wait like any other failure.
            bug = task.exception()
            result = ResolveError(f"{name}: {bug!r}", Failure.BUG) if bug else task.result()
            if isinstance(result, ResolveError):
                failure = result.failure
                if failure in _REMEMBERED:
                    self._remember(name, result)
                lookup.future.set_exception(result)
                lookup.future.exception()  # without askers, asyncio must not log it as unretrieved
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

    def _observe(self, seconds: float, failure: Failure | None) -> None:
        self._metrics.dns_seconds.observe(seconds)
        if failure is not None:
            self._metrics.dns_failures_total.labels(failure.value).inc()

    def close(self) -> None:
        """Cancels the look-ups under way, and does not wait for threads or servers."""
        for lookup in list(self._lookups.values()):
            if lookup.task is not None:
                lookup.task.cancel()
        self.sources.close()
