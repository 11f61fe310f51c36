"""Asks name servers by c-ares on the event loop, without a thread for each question.

The channel reports its sockets (`sock_state_cb`), the loop watches them, and one timer drives the
retransmissions. c-ares itself deals with resolv.conf and its options, servers that do not answer,
and truncated answers (TCP). It caches answers by the records' TTL, and names that do not exist by
the time in the SOA record (RFC 2308 section 5).

Names are absolute: c-ares uses no search list and no HOSTALIASES (RFC 1535).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

import pycares

from socks_tunnel.protocol.addresses import IPAddress, canonical_host
from socks_tunnel_workers.targets import answers

logger = logging.getLogger(__name__)

_FLAGS: Final = pycares.ARES_FLAG_NOSEARCH | pycares.ARES_FLAG_NOALIASES | pycares.ARES_FLAG_EDNS

TIMER_MIN: Final = 0.001
"""Shortest time of the timer in seconds. c-ares rounds its time-outs down to whole milliseconds,
and with 0 the event loop would spin."""

RECORDS_PER_QUESTION: Final = 8
"""Records of an answer that take about as much memory in the cache as the rest of a question."""

ALIASES_MAX: Final = 16
"""CNAME records that are followed within one answer."""

ABSENT: Final = frozenset({pycares.errno.ARES_ENOTFOUND, pycares.errno.ARES_ENODATA})
"""The errors that say that there is no address. Others may pass (RFC 2308 section 7)."""

_TIMED_OUT: Final = frozenset({pycares.errno.ARES_ETIMEOUT})

_TYPES: Final = {
    socket.AF_INET: pycares.QUERY_TYPE_A,
    socket.AF_INET6: pycares.QUERY_TYPE_AAAA,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one question.

    `status` is None or the error number of c-ares; with an error, `addresses` and `names` are
    empty. `ttl` is in seconds.
    """

    addresses: tuple[IPAddress, ...] = ()
    names: tuple[str, ...] = ()
    ttl: int = 0
    status: int | None = None

    @property
    def absent(self) -> bool:
        """Whether the name servers say that there is nothing."""
        return self.status in ABSENT

    @property
    def timed_out(self) -> bool:
        """Whether no server answered in time."""
        return self.status in _TIMED_OUT

    @property
    def problem(self) -> str:
        """The text of c-ares for the error, "" if there is none."""
        return "" if self.status is None else str(pycares.errno.strerror(self.status)).lower()


Answered = Callable[[Answer], None]


def answer_of(name: str, result: pycares.DNSResult | None, status: int | None) -> Answer:
    """Returns the answer from the arguments of a callback of c-ares.

    Only records of `name` count, or of the name that its CNAME records lead to. Other records of
    the answer are ignored, because a server may put anything there.
    """
    if status is not None or result is None:
        return Answer(status=pycares.errno.ARES_EBADRESP if status is None else status)
    aliases = {
        _folded(r.name): r for r in result.answer if isinstance(r.data, pycares.CNAMERecordData)
    }
    owner, ttls = _folded(name), []
    for _ in range(ALIASES_MAX):
        alias = aliases.get(owner)
        if alias is None:
            break
        assert isinstance(alias.data, pycares.CNAMERecordData)
        ttls.append(alias.ttl)
        owner = _folded(alias.data.cname)
    addresses: dict[IPAddress, None] = {}
    names: dict[str, None] = {}
    for record in result.answer:
        if _folded(record.name) != owner:
            continue
        match record.data:
            case pycares.ARecordData(addr=address) | pycares.AAAARecordData(addr=address):
                addresses[ip_address(address)] = None
            case pycares.PTRRecordData(dname=target):
                try:
                    names[canonical_host(target)] = None
                except ValueError:
                    continue  # no flow could have such a name as its destination
            case _:
                continue
        ttls.append(record.ttl)
    if not addresses and not names:
        return Answer(status=pycares.errno.ARES_ENODATA)
    # The answer holds as long as its shortest TTL (RFC 2181 section 5.2).
    return Answer(tuple(addresses), tuple(names), min(ttls))


def _folded(name: str) -> str:
    return name.lower().removesuffix(".")


class Cares:
    """A channel of c-ares. Must be used on one event loop.

    For tests, `servers` replaces those of resolv.conf (`host` or `host:port`), and `timeout` its
    time-out in seconds. The option of c-ares that chooses between files and servers (`lookups`) is
    not used, because pycares 5.2 passes freed memory to it.
    """

    def __init__(self, *, servers: list[str] | None = None, timeout: float | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._watched: dict[int, tuple[bool, bool]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._retired = False
        self._under_way = 0
        self.sent = 0
        """Questions that were not answered at once by the cache, which has no limit of its own.
        Each :data:`RECORDS_PER_QUESTION` records of their answers count as one more question."""
        answers.install()
        self._channel = pycares.Channel(
            flags=_FLAGS, sock_state_cb=self._watch, servers=servers, timeout=timeout
        )

    # --- questions ------------------------------------------------------------------------------

    def query(self, name: str, family: int, answered: Answered) -> None:
        """Asks for the addresses of one family.

        `answered` is called once, perhaps before this returns; never after :meth:`close`.
        """
        self._query(name, _TYPES[socket.AddressFamily(family)], answered)

    def reverse(self, address: IPAddress, answered: Answered) -> None:
        """Asks for the names of an address (RFC 1035 section 3.5)."""
        self._query(address.reverse_pointer, pycares.QUERY_TYPE_PTR, answered)

    def _query(self, name: str, kind: int, answered: Answered) -> None:
        pending = True
        asked = False

        def callback(result: pycares.DNSResult | None, status: int | None) -> None:
            nonlocal pending
            if pending and not self._closed:
                pending = False
                self._under_way -= 1
                if asked:
                    self.sent += getattr(result, "records", 0) // RECORDS_PER_QUESTION
                self._retire()
                answered(answer_of(name, result, status))

        self._under_way += 1
        try:
            self._channel.query(name, kind, callback=callback)
        except pycares.AresError as error:
            # c-ares has refused the question. It may have called back before.
            callback(None, error.args[0])
        asked = pending
        self.sent += pending
        self._arm()

    @property
    def closed(self) -> bool:
        """Whether the channel is closed, so that no question is answered any more."""
        return self._closed

    def retire(self) -> None:
        """Closes the channel when the last question under way has its answer."""
        self._retired = True
        self._retire()

    def _retire(self) -> None:
        if self._retired and not self._under_way:
            # c-ares may be calling this, and must not be closed from within.
            self._loop.call_soon(self.close)

    def reread(self) -> None:
        """Reads a changed resolv.conf. Questions under way are not lost.

        c-ares does this in a thread of its own. If no thread can be started, the old settings stay
        in use.
        """
        try:
            self._channel.reinit()
        except pycares.AresError as error:
            logger.warning(
                "cannot read the changed resolv.conf: %s; the old settings stay in use", error
            )

    # --- the loop -------------------------------------------------------------------------------

    def _watch(self, fd: int, readable: bool, writable: bool) -> None:
        """Watches a socket of c-ares for what c-ares waits for; called when that changes."""
        if self._closed:
            return
        old_read, old_write = self._watched.pop(fd, (False, False))
        if readable or writable:
            self._watched[fd] = (readable, writable)
        if readable and not old_read:
            self._loop.add_reader(fd, self._process, fd, pycares.ARES_SOCKET_BAD)
        elif old_read and not readable:
            self._loop.remove_reader(fd)
        if writable and not old_write:
            self._loop.add_writer(fd, self._process, pycares.ARES_SOCKET_BAD, fd)
        elif old_write and not writable:
            self._loop.remove_writer(fd)

    def _process(self, read_fd: int, write_fd: int) -> None:
        if not self._closed:
            self._channel.process_fd(read_fd, write_fd)
            self._arm()

    def _arm(self) -> None:
        """Sets the timer to the next retransmission or time-out of c-ares."""
        if self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # timeout() is also 0.0 if nothing is under way. Then there are no sockets to watch.
        seconds: float = self._channel.timeout()  # type: ignore[no-untyped-call]  # no hints
        if self._watched:
            self._timer = self._loop.call_later(max(seconds, TIMER_MIN), self._due)

    def _due(self) -> None:
        self._timer = None
        self._process(pycares.ARES_SOCKET_BAD, pycares.ARES_SOCKET_BAD)

    def close(self) -> None:
        """Ends the questions under way. No callback is called any more."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for fd, (readable, writable) in self._watched.items():
            if readable:
                self._loop.remove_reader(fd)
            if writable:
                self._loop.remove_writer(fd)
        self._watched.clear()
        self._channel.close()
