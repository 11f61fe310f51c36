"""`getaddrinfo` in a few threads: for the sources of names that only the C library can ask.

A call cannot be cancelled, and one that waits for a dead server holds its thread for many seconds.
So the threads are few, a peer gets at most half of them, and the peers' questions wait in turn. The
threads are daemons: the end of the process does not wait for them.
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
"""Calls of `getaddrinfo` that can be under way at once in one worker."""

THREADS_PER_PEER: Final = THREADS // 2
"""Of these, calls for the flows of one peer."""

WAITING_PER_PEER_MAX: Final = 1024
"""Questions of one peer that wait for a thread; a further one is refused."""


class TooManyError(Exception):
    """The peer has as many questions waiting as it may."""


@dataclass(eq=False, slots=True)
class _Question:
    name: str
    peer: str
    future: asyncio.Future[list[IPAddress]]
    cancelled: bool = field(default=False)


def lookup(name: str) -> list[IPAddress]:
    """Returns what the C library knows of a name. Blocks; raises :class:`socket.gaierror`."""
    addresses: dict[IPAddress, None] = {}
    for _, _, _, _, sockaddr in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM):
        text = str(sockaddr[0])
        # A link-local answer has a zone (fe80::1%eth0) that parse_ip refuses: it is forbidden
        # unless a rule names it, and such a rule cannot name a zone.
        addresses.setdefault(parse_ip(text) or ipaddress.ip_address(text.partition("%")[0]))
    return list(addresses)


class SystemLookups:
    """The threads, and the questions that wait for one. Must be used on one event loop."""

    def __init__(self, *, threads: int = THREADS, threads_per_peer: int = THREADS_PER_PEER) -> None:
        self._loop = asyncio.get_running_loop()
        self._threads_max = threads
        self._per_peer = threads_per_peer
        self._work: SimpleQueue[_Question | None] = SimpleQueue()
        self._threads = 0
        self._busy: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[_Question]] = OrderedDict()
        self._closed = False
        # The C library would try the search list of resolv.conf on every name (RFC 1535); the
        # environment is its only way to be told not to (resolv.conf(5)).
        os.environ["LOCALDOMAIN"] = "."

    async def ask(self, name: str, peer: str) -> list[IPAddress]:
        """Returns the addresses of a name.

        Raises :class:`socket.gaierror` or :class:`OSError` as `getaddrinfo` does, RuntimeError if
        no thread can be started, :class:`TooManyError`. Being cancelled takes the question back;
        a call that has begun goes on in its thread, and counts until it ends.
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
        """Gives waiting questions to threads, a peer after the other."""
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
        """Starts one thread more. Raises RuntimeError if there is none at all to wait for."""
        thread = threading.Thread(target=self._serve, name="resolver", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
        else:
            self._threads += 1

    def _serve(self) -> None:
        """Runs in a thread: answers questions until there are no more to come."""
        while (question := self._work.get()) is not None:
            result: list[IPAddress] = []
            error: Exception | None = None
            try:
                result = lookup(question.name)
            except Exception as caught:  # noqa: BLE001 - it is handed to whoever asked
                error = caught
            try:
                self._loop.call_soon_threadsafe(self._answered, question, result, error)
            except RuntimeError:  # the loop is closed: nobody asks any more
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
        """Ends the threads that are idle; the others end with the process."""
        self._closed = True
        for _ in range(self._threads):
            self._work.put(None)
