"""Calls `getaddrinfo` in a few threads, for sources that only the C library can ask.

A call cannot be cancelled, and one that waits for a dead server holds its thread for many seconds.
So there are few threads, a peer gets at most half of them, and the peers take turns. The threads
are daemons: the process ends without waiting for them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import threading
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Final

from socks_tunnel.protocol.addresses import IPAddress, parse_ip

THREADS: Final = 16
"""Calls of `getaddrinfo` that may be under way at once in one worker."""

THREADS_PER_PEER: Final = THREADS // 2
"""Of these, calls for the flows of one peer."""

WAITING_PER_PEER_MAX: Final = 1024
"""Questions of one peer that may wait for a thread. A further one is refused."""


class TooManyError(Exception):
    """The peer has :data:`WAITING_PER_PEER_MAX` questions waiting."""


@dataclass(eq=False, slots=True)
class _Question:
    name: str
    peer: str
    future: asyncio.Future[list[IPAddress]]
    cancelled: bool = field(default=False)


def lookup(name: str) -> list[IPAddress]:
    """Returns the addresses of a name from the C library. Blocks.

    Raises :class:`socket.gaierror`.
    """
    addresses: dict[IPAddress, None] = {}
    for _, _, _, _, sockaddr in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
        text = str(sockaddr[0])
        # parse_ip refuses the zone of a link-local address (fe80::1%eth0). Only a rule that names
        # the address can allow it, and a rule cannot name a zone.
        addresses.setdefault(parse_ip(text) or ipaddress.ip_address(text.partition("%")[0]))
    return list(addresses)


class SystemLookups:
    """The threads, and the questions that wait for one. Must be used on one event loop.

    `threads` is the number of threads, and `threads_per_peer` of how many one peer may use.
    """

    def __init__(self, *, threads: int = THREADS, threads_per_peer: int = THREADS_PER_PEER) -> None:
        self._loop = asyncio.get_running_loop()
        self._threads_max = threads
        self._per_peer = threads_per_peer
        self._work: SimpleQueue[_Question | None] = SimpleQueue()
        self._threads = 0
        self._busy: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[_Question]] = OrderedDict()
        self._closed = False
        # The C library would try the search list of resolv.conf on every name (RFC 1535). Only this
        # variable of the environment prevents that (resolv.conf(5)).
        os.environ["LOCALDOMAIN"] = "."

    async def ask(self, name: str, peer: str) -> list[IPAddress]:
        """Returns the addresses of a name.

        Raises :class:`socket.gaierror` or :class:`OSError` as `getaddrinfo` does, RuntimeError if
        no thread can be started, and :class:`TooManyError`. If it is cancelled, a question that
        waits is removed; a call that has begun goes on in its thread, and counts until it ends.
        """
        waiting = self._waiting.setdefault(peer, deque())
        if len(waiting) >= WAITING_PER_PEER_MAX:
            raise TooManyError(f"{len(waiting)} name look-ups of {peer} wait for a thread")
        question = _Question(name, peer, self._loop.create_future())
        waiting.append(question)
        try:
            self._start()
            return await question.future
        finally:
            question.cancelled = True
            if peer in self._waiting and question in self._waiting[peer]:
                self._waiting[peer].remove(question)

    def _start(self) -> None:
        """Gives waiting questions to free threads, one peer after the other."""
        for peer in list(self._waiting):
            if self._busy.total() >= self._threads_max:
                return
            questions = self._waiting[peer]
            if questions and self._busy[peer] < self._per_peer:
                if self._threads <= self._busy.total():
                    self._start_thread()
                if self._threads <= self._busy.total():
                    return
                self._busy[peer] += 1
                self._work.put(questions.popleft())
            if questions:
                self._waiting.move_to_end(peer)
            else:
                del self._waiting[peer]

    def _start_thread(self) -> None:
        """Starts one more thread. Raises RuntimeError if that fails and there are no others."""
        thread = threading.Thread(target=self._serve, name="resolver", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
        else:
            self._threads += 1

    def _serve(self) -> None:
        """Answers questions until None comes. Runs in a thread."""
        while (question := self._work.get()) is not None:
            result: list[IPAddress] = []
            error: Exception | None = None
            try:
                result = lookup(question.name)
            except Exception as caught:  # noqa: BLE001 - it is passed to the asker
                error = caught
            try:
                self._loop.call_soon_threadsafe(self._answered, question, result, error)
            except RuntimeError:  # the event loop is closed: there are no askers any more
                return

    def _answered(
        self, question: _Question, result: list[IPAddress], error: Exception | None
    ) -> None:
        self._busy[question.peer] -= 1
        if not self._busy[question.peer]:
            del self._busy[question.peer]
        if not question.future.done():
            if error is None:
                question.future.set_result(result)
            else:
                question.future.set_exception(error)
        if not self._closed:
            self._start()

    def close(self) -> None:
        """Ends the idle threads. The others end with the process."""
        self._closed = True
        for _ in range(self._threads):
            self._work.put(None)
