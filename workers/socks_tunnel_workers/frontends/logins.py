"""Checks passwords. A client that guesses passwords delays only itself.

A check is slow by design (scrypt: about 0.1 s of a core, 32 MiB), so it runs in a thread, and there
are few of these threads. The order of the checks is::

    account 1   name a: login, login, login …        one login at a time for each account,
                name b: login                        its names in turn;
    account 2   name a: login                        the accounts in turn

So a thousand clients of one address wait for each other, and the first login of somebody else waits
for one check at most. A login that was checked before has its verdict at once, right or wrong. When
a client leaves, its login is not checked any more.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor
from enum import Enum, auto
from ipaddress import IPv6Address
from typing import Final, Protocol, TypeAlias

from socks_tunnel.protocol.addresses import parse_ip
from socks_tunnel_workers.frontends.identity import Client

logger = logging.getLogger(__name__)

THREADS: Final = 2
"""Checks that run at once in one worker."""

WAITING_PER_ACCOUNT: Final = 16
"""Logins of one account that may wait. Each waits for about 0.1 s for each login before it."""

WRONG_REMEMBERED: Final = 4096
"""Wrong logins that are remembered, so that trying one again takes no check."""


class Checker(Protocol):
    """Knows the passwords (see :class:`socks_tunnel.config.users.PasswordChecker`)."""

    def remembers(self, name: str, password: str) -> bool:
        """Returns at once whether this login was found right before."""

    def check(self, name: str, password: str) -> bool:
        """Returns whether this login is right. Slow; called in a thread."""


class Verdict(Enum):
    """The outcome of a login."""

    RIGHT = auto()
    WRONG = auto()
    BUSY = auto()
    """It was not checked: too many logins wait, or no thread can be started."""


Answer: TypeAlias = Callable[[Verdict], None]


class Login:
    """One login that waits for its verdict. Call :meth:`end` when its client has left."""

    __slots__ = ("_logins", "account", "answer", "checker", "client", "name", "password")

    def __init__(
        self, logins: Logins, client: Client, name: str, password: str, answer: Answer
    ) -> None:
        self._logins = logins
        self.client = client
        self.account = _account(client.account)
        self.name = name
        self.password = password
        self.answer: Answer | None = answer
        self.checker: Checker | None = None

    def end(self) -> None:
        """Forgets the login without a verdict. Harmless after the verdict."""
        if self.answer is not None:
            self.answer = None
            self._logins.forget(self)

    def tell(self, verdict: Verdict) -> None:
        """Gives the verdict, once."""
        answer, self.answer = self.answer, None
        if answer is not None:
            answer(verdict)


class Logins:
    """The logins of one worker.

    `checker` returns what knows the passwords now, or None after a reload that removed all users.
    `warn` is :meth:`~socks_tunnel_workers.services.Notices.warn`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        executor: Executor,
        checker: Callable[[], Checker | None],
        warn: Callable[..., None],
    ) -> None:
        self._loop = loop
        self._executor = executor
        self._checker = checker
        self._warn = warn
        self._waiting: OrderedDict[str, OrderedDict[str, deque[Login]]] = OrderedDict()
        self._running: dict[str, Login] = {}
        self._secret = os.urandom(32)
        self._wrong: OrderedDict[bytes, None] = OrderedDict()
        self._wrong_of: Checker | None = None

    @property
    def waiting(self) -> int:
        """How many logins wait for their turn."""
        return sum(len(queue) for names in self._waiting.values() for queue in names.values())

    def check(self, client: Client, name: str, password: str, answer: Answer) -> Login:
        """Checks a login. `answer` is called once with the verdict, perhaps before this returns."""
        login = Login(self, client, name, password, answer)
        checker = self._checker()
        if checker is None:  # a reload removed all users since the client was asked to log in
            self._refused(login)
        elif checker.remembers(name, password):
            login.tell(Verdict.RIGHT)
        elif self._is_known_wrong(checker, login):
            self._refused(login)
        else:
            login.checker = checker
            self._queue(login)
            self._start()
        return login

    def forget(self, login: Login) -> None:
        """Takes a login out of the queue. A check that is running goes on, and is ignored."""
        names = self._waiting.get(login.account, OrderedDict())
        queue = names.get(login.name)
        if queue is not None and login in queue:
            queue.remove(login)
            self._drop_empty(login.account, login.name)

    # --- the queue ------------------------------------------------------------------------------

    def _queue(self, login: Login) -> None:
        names = self._waiting.setdefault(login.account, OrderedDict())
        names.setdefault(login.name, deque()).append(login)
        if sum(map(len, names.values())) > WAITING_PER_ACCOUNT:
            # The name with most logins loses its newest one. So guesses about one name do not keep
            # other names of the same address out. Among equals, the last name loses.
            longest = max(reversed(names.values()), key=len)
            surplus = longest.pop()
            self._drop_empty(surplus.account, surplus.name)
            self._warn(
                "logins",
                "%d logins from %s wait for their password check; refusing more",
                WAITING_PER_ACCOUNT,
                surplus.account,
            )
            surplus.tell(Verdict.BUSY)

    def _drop_empty(self, account: str, name: str) -> None:
        names = self._waiting[account]
        if not names[name]:
            del names[name]
        if not names:
            del self._waiting[account]

    def _next(self) -> Login | None:
        """Returns the login whose turn it is, taken out of the queue."""
        for account, names in self._waiting.items():
            if account not in self._running:
                name, queue = next(iter(names.items()))
                login = queue.popleft()
                names.move_to_end(name)
                self._drop_empty(account, name)
                return login
        return None

    # --- checking -------------------------------------------------------------------------------

    def _start(self) -> None:
        while len(self._running) < THREADS:
            login = self._next()
            if login is None:
                return
            checker = login.checker
            assert checker is not None
            try:
                future = self._executor.submit(checker.check, login.name, login.password)
            except RuntimeError as error:  # "can't start new thread"
                self._warn(
                    "login-thread", "no thread to check a password; refusing the login: %s", error
                )
                login.tell(Verdict.BUSY)
                continue
            self._running[login.account] = login
            asyncio.wrap_future(future, loop=self._loop).add_done_callback(
                lambda done, login=login: self._checked(login, done)  # type: ignore[misc]  # mypy cannot infer a lambda's default
            )

    def _checked(self, login: Login, done: asyncio.Future[bool]) -> None:
        self._running.pop(login.account, None)
        if login.account in self._waiting:  # it had its turn: the other accounts come first now
            self._waiting.move_to_end(login.account)
        if not done.cancelled():
            error = done.exception()
            if error is not None:
                self._warn("login-check", "a password check failed; refusing the login: %r", error)
                login.tell(Verdict.BUSY)
            elif done.result():
                login.tell(Verdict.RIGHT)
            else:
                assert login.checker is not None
                self._remember_wrong(login.checker, login)
                self._refused(login)
        self._start()

    def _refused(self, login: Login) -> None:
        self._warn(
            "wrong-password",
            "client %s offered a wrong user name or password",
            login.client.name,
        )
        login.tell(Verdict.WRONG)

    # --- wrong ones -----------------------------------------------------------------------------

    def _fingerprint(self, login: Login) -> bytes:
        text = f"{len(login.name)}:{login.name}:{login.password}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, key=self._secret, digest_size=16).digest()

    def _is_known_wrong(self, checker: Checker, login: Login) -> bool:
        if checker is not self._wrong_of:  # after a reload, a wrong password may be right
            self._wrong_of = checker
            self._wrong.clear()
        return self._fingerprint(login) in self._wrong

    def _remember_wrong(self, checker: Checker, login: Login) -> None:
        if checker is self._wrong_of:
            self._wrong[self._fingerprint(login)] = None
            if len(self._wrong) > WRONG_REMEMBERED:
                self._wrong.popitem(last=False)


def _account(text: str) -> str:
    """Returns the account for limits of logins.

    For IPv6 it is the /64, because a host can use any address of it.
    """
    address = parse_ip(text)
    if not isinstance(address, IPv6Address):
        return text
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"
