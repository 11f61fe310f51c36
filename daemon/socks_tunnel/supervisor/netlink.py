"""Learns from the kernel that this host's addresses or default routes have changed.

:class:`NetlinkDecoder` is sans-IO: it makes sentences of the kernel's datagrams.
:class:`PathWatcher` is the socket around it. These are the parts of a notification (netlink(7),
rtnetlink(7)), in the byte order of the machine::

    nlmsghdr    [LENGTH:4] [TYPE:2] [FLAGS:2] [SEQUENCE:4] [PORT:4]    LENGTH includes this header
    ifaddrmsg   [FAMILY:1] [PREFIX:1] [FLAGS:1] [SCOPE:1] [INDEX:4]
    rtmsg       [FAMILY:1] [DST:1] [SRC:1] [TOS:1]
                [TABLE:1] [PROTOCOL:1] [SCOPE:1] [TYPE:1] [FLAGS:4]    DST: bits, 0 for a default
    rtattr      [LENGTH:2] [TYPE:2] [PAYLOAD], LENGTH without the padding to 4 bytes that follows

The kernel repeats notifications, for instance when a router has prolonged the lifetime of an IPv6
address. So both lists are read at the start, and only a difference to them is a change.
"""

import asyncio
import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final

_log = logging.getLogger(__name__)

SETTLE_SECONDS: Final = 0.1
"""Seconds for which changes are collected, because one address causes several notifications."""

INTERVAL: Final = 1.0
"""Least seconds between two calls of a watcher's owner."""

NAMED_MAX: Final = 4
"""Changes that one call names. It only counts further ones."""

KNOWN_MAX: Final = 4096
"""Addresses and default routes that are remembered. Further ones count as a change each time."""

DATAGRAMS_PER_TURN: Final = 64
"""Datagrams of the kernel that are read in one turn of the event loop."""

_DATAGRAM_MAX: Final = 65_536
_GROUPS: Final = 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE."""

_HEADER: Final = struct.Struct("=IHHII")
_ADDRESS: Final = struct.Struct("=BBBBI")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")

_ERROR, _DONE = 2, 3
_NEW_ADDRESS, _DEL_ADDRESS, _GET_ADDRESS = 20, 21, 22
_NEW_ROUTE, _DEL_ROUTE, _GET_ROUTE = 24, 25, 26
_REQUEST, _DUMP = 0x1, 0x300

_SCOPE_LINK: Final = 253
_TENTATIVE: Final = 0x40
_TABLE_MAIN: Final = 254
_UNICAST: Final = 1
_CLONED: Final = 0x200

_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 4, 5, 6


_ADDRESS_CHANGES: Final = ("its host has a new address", "its host has lost its address")


def only_addresses(why: str) -> bool:
    """Returns whether a sentence is about addresses only, and not about default routes."""
    return why.startswith(_ADDRESS_CHANGES)


def joined(changes: Iterable[str]) -> str:
    """Returns several changes as the end of one sentence, those of default routes first.

    A change that came more than once is named once.
    """
    told = sorted(dict.fromkeys(changes), key=only_addresses)
    named, more = told[:NAMED_MAX], len(told) - NAMED_MAX
    if more > 0:
        named.append("and one more change" if more == 1 else f"and {more} more changes")
    return "; ".join(named)


def source_towards(remote: tuple[str, int]) -> str | None:
    """Returns the local address from which the kernel would send there now; None if it cannot.

    Nothing is sent.
    """
    family = socket.AF_INET6 if ":" in remote[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(remote)
        except OSError:
            return None
        address: str = sock.getsockname()[0]
        return address


class NetlinkDecoder:
    """Knows the addresses and default routes of the host, and reports changes.

    Its owner sends what :meth:`request` returns, at the start and after each datagram.
    """

    def __init__(self) -> None:
        self._known: set[tuple[object, ...]] = set()
        self._reading = [_GET_ADDRESS, _GET_ROUTE]
        """Lists that have not been read. Before their end, nothing counts as a change."""
        self._asked = False

    @property
    def settled(self) -> bool:
        """Whether both lists have been read, so that differences count as changes."""
        return not self._reading

    def request(self) -> bytes | None:
        """Returns the next request to the kernel, once; None if there is none at the moment."""
        if not self._reading or self._asked:
            return None
        self._asked = True
        # An rtgenmsg: the family, of which 0 is all. Padded to 4 bytes.
        return _HEADER.pack(_HEADER.size + 4, self._reading[0], _REQUEST | _DUMP, 1, 0) + bytes(4)

    def lost(self) -> list[str]:
        """Notifications were lost (ENOBUFS): reads both lists again. Returns what to say."""
        self._known.clear()
        self._reading = [_GET_ADDRESS, _GET_ROUTE]
        self._asked = False
        return ["its host's addresses or routes have changed"]

    def receive(self, datagram: bytes) -> list[str]:
        """Takes a datagram of the kernel; returns what has changed, each the end of a sentence."""
        changes: list[str] = []
        for kind, body in _messages(datagram):
            if kind in (_DONE, _ERROR):
                if self._asked:
                    del self._reading[0]
                    self._asked = False
            elif kind in (_NEW_ADDRESS, _DEL_ADDRESS):
                changes += self._address(body, new=kind == _NEW_ADDRESS)
            elif kind in (_NEW_ROUTE, _DEL_ROUTE):
                changes += self._route(body, new=kind == _NEW_ROUTE)
        return changes

    def _address(self, body: bytes, *, new: bool) -> Iterator[str]:
        if len(body) < _ADDRESS.size:
            return
        _, _, flags, scope, index = _ADDRESS.unpack_from(body)
        attributes = _attributes(body[_ADDRESS.size :])
        raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
        # No peer can be reached from link-local and host addresses. A tentative address cannot be
        # used yet, and the kernel reports it again when it can (RFC 4862 section 5.4).
        if raw is None or len(raw) not in (4, 16) or scope >= _SCOPE_LINK:
            return
        if new and flags & _TENTATIVE:
            return
        address = ipaddress.ip_address(raw)
        if self._differs(("address", raw, index), new=new):
            yield f"{_ADDRESS_CHANGES[0 if new else 1]}, {address}"

    def _route(self, body: bytes, *, new: bool) -> Iterator[str]:
        if len(body) < _ROUTE.size:
            return
        family, destination, _, _, table, _, _, kind, flags = _ROUTE.unpack_from(body)
        if destination or table != _TABLE_MAIN or kind != _UNICAST or flags & _CLONED:
            return
        attributes = _attributes(body[_ROUTE.size :])
        parts = (attributes.get(part) for part in (_RTA_GATEWAY, _RTA_OIF, _RTA_PRIORITY))
        if self._differs(("route", family, *parts), new=new):
            yield f"its host has {'a new' if new else 'lost its'} default route"

    def _differs(self, what: tuple[object, ...], *, new: bool) -> bool:
        """Remembers an address or route, or forgets it; returns whether that is a change."""
        known = what in self._known
        if not new:
            self._known.discard(what)
            return known and self.settled
        if not known and len(self._known) < KNOWN_MAX:
            self._known.add(what)
        return not known and self.settled


def _messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(datagram):
        length, kind, _, _, _ = _HEADER.unpack_from(datagram, at)
        if length < _HEADER.size or at + length > len(datagram):
            return
        yield kind, datagram[at + _HEADER.size : at + length]
        at += length + 3 & ~3


def _attributes(body: bytes) -> dict[int, bytes]:
    found = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size or at + length > len(body):
            break
        found[kind] = body[at + _ATTRIBUTE.size : at + length]
        at += length + 3 & ~3
    return found


class PathWatcher:
    """Calls `on_change` with the end of a sentence when addresses or default routes have changed.

    It is called at most once in :data:`INTERVAL` seconds. Several changes are joined by
    :func:`joined`.
    """

    def __init__(self, on_change: Callable[[str], None]) -> None:
        self._on_change = on_change
        self._decoder = NetlinkDecoder()
        self._sock: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._changes: dict[str, None] = {}
        """Changes for the next call, in order, each once; at most :data:`KNOWN_MAX`."""
        self._told_at = float("-inf")

    def start(self) -> None:
        """Begins to listen. If that is not allowed, logs it: links then notice by themselves."""
        try:
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            try:
                sock.setblocking(False)
                sock.bind((0, _GROUPS))
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            _log.info(
                "the kernel does not report changes of addresses and routes: %s; "
                "lost links are noticed later",
                error,
            )
            return
        self._sock = sock
        asyncio.get_running_loop().add_reader(sock, self._readable)
        self._ask()

    def stop(self) -> None:
        """Stops listening."""
        sock, self._sock = self._sock, None
        if sock is not None:
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()
        if self._timer is not None:
            self._timer.cancel()

    def _ask(self) -> None:
        question = self._decoder.request()
        if question is not None and self._sock is not None:
            try:
                self._sock.send(question)
            except OSError as error:
                _log.info("the kernel cannot be asked for addresses and routes: %s", error)
                self.stop()

    def _readable(self) -> None:
        sock = self._sock
        assert sock is not None
        changes: list[str] = []
        for _ in range(DATAGRAMS_PER_TURN):
            try:
                datagram, (port, _) = sock.recvfrom(_DATAGRAM_MAX)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    _log.warning(
                        "the kernel no longer reports changes of addresses and routes: %s; "
                        "lost links are noticed later",
                        error,
                    )
                    self.stop()
                    return
                changes += self._decoder.lost()
            else:
                if port == 0:  # netlink(7): 0 is the kernel; other processes may send anything
                    changes += self._decoder.receive(datagram)
        self._ask()
        if changes:
            for change in changes:
                if len(self._changes) < KNOWN_MAX:
                    self._changes[change] = None
            if self._timer is None:
                loop = asyncio.get_running_loop()
                wait = max(SETTLE_SECONDS, self._told_at + INTERVAL - loop.time())
                self._timer = loop.call_later(wait, self._tell)

    def _tell(self) -> None:
        self._timer = None
        changes, self._changes = self._changes, {}
        self._told_at = asyncio.get_running_loop().time()
        self._on_change(joined(changes))
