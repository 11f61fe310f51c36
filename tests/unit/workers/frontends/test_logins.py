"""Whose password is checked next, and who is never kept waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from socks_tunnel_workers.frontends.identity import Client
from socks_tunnel_workers.frontends.logins import (
    THREADS,
    WAITING_PER_ACCOUNT,
    WRONG_REMEMBERED,
    Logins,
    Verdict,
)


class Threads(Executor):
    """Threads that check nothing until the test lets them."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Future[bool], Callable[..., bool], tuple[str, str]]] = []
        self.broken = False

    def submit(self, job: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        if self.broken:
            raise RuntimeError("can't start new thread")
        future: Future[bool] = Future()
        self.jobs.append((future, job, (args[0], args[1])))
        return future

    @property
    def names(self) -> list[str]:
        return [name for _, _, (name, _) in self.jobs]

    async def finish(self) -> str:
        """Finish the check that began first, and let the loop hear of it."""
        future, job, arguments = self.jobs.pop(0)
        try:
            future.set_result(job(*arguments))
        except ValueError as error:
            future.set_exception(error)
        for _ in range(3):
            await asyncio.sleep(0)
        return arguments[0]


class Passwords:
    """The password of everybody is their name."""

    def __init__(self) -> None:
        self.right: set[tuple[str, str]] = set()
        self.checks = 0
        self.bug = False

    def remembers(self, name: str, password: str) -> bool:
        return (name, password) in self.right

    def check(self, name: str, password: str) -> bool:
        self.checks += 1
        if self.bug:
            raise ValueError("scrypt")
        if name == password:
            self.right.add((name, password))
        return name == password


class Desk:
    """The logins of a worker, and what their clients were told."""

    def __init__(self) -> None:
        self.threads = Threads()
        self.passwords: Passwords | None = Passwords()
        self.warnings: list[str] = []
        self.told: list[tuple[str, Verdict]] = []
        self.logins = Logins(
            asyncio.get_running_loop(), self.threads, lambda: self.passwords, self.warn
        )

    def warn(self, kind: str, message: str, *args: object) -> None:
        self.warnings.append(f"{kind}: {message % args}")

    def offer(self, name: str, password: str = "", *, account: str = "192.0.2.1") -> Any:
        return self.logins.check(
            Client(f"{account}:1", account),
            name,
            password or name,
            lambda verdict: self.told.append((name, verdict)),
        )


@pytest.fixture
async def desk() -> Desk:
    return Desk()


async def test_a_login_is_checked_once_and_known_from_then_on(desk: Desk) -> None:
    desk.offer("joe")
    assert desk.told == []
    await desk.threads.finish()
    assert desk.told == [("joe", Verdict.RIGHT)]

    desk.offer("joe")

    assert desk.told == [("joe", Verdict.RIGHT)] * 2
    assert desk.threads.jobs == []


async def test_a_wrong_login_costs_a_check_once_and_says_who_it_was(desk: Desk) -> None:
    for _ in range(3):
        desk.offer("joe", "guess")
        if desk.threads.jobs:
            await desk.threads.finish()
    assert desk.told == [("joe", Verdict.WRONG)] * 3
    assert desk.passwords is not None
    assert desk.passwords.checks == 1
    assert set(desk.warnings) == {
        "wrong-password: client 192.0.2.1:1 offered a wrong user name or password"
    }


async def test_other_users_are_another_matter(desk: Desk) -> None:
    desk.offer("joe", "guess")
    await desk.threads.finish()
    desk.passwords = Passwords()
    desk.offer("joe", "guess")
    assert desk.threads.names == ["joe"]
    desk.passwords = None
    desk.offer("ana")
    assert desk.told[-1] == ("ana", Verdict.WRONG)


async def test_a_crowd_of_one_address_keeps_another_waiting_for_one_check(desk: Desk) -> None:
    for number in range(1000):
        desk.offer("joe", f"guess {number}")
    assert desk.threads.names == ["joe"], "one at a time for an account"

    desk.offer("ana", account="192.0.2.2")

    assert desk.threads.names == ["joe", "ana"]
    desk.offer("eve", account="192.0.2.3")
    await desk.threads.finish()
    assert "eve" in desk.threads.names, "next in turn, before the crowd's own"


async def test_a_crowd_about_one_name_keeps_other_names_waiting_for_little(desk: Desk) -> None:
    for number in range(1000):
        desk.offer("joe", f"guess {number}")

    desk.offer("ana")

    finished = [await desk.threads.finish() for _ in range(2)]
    assert finished == ["joe", "joe"]
    assert await desk.threads.finish() == "ana"


async def test_who_cannot_wait_is_told_so_at_once(desk: Desk) -> None:
    for number in range(WAITING_PER_ACCOUNT + 5):
        desk.offer(f"user {number}", "guess")
    assert desk.logins.waiting == WAITING_PER_ACCOUNT
    assert [verdict for _, verdict in desk.told] == [Verdict.BUSY] * 4
    assert desk.told[0][0] == f"user {WAITING_PER_ACCOUNT + 1}", "the last ones, not the first"
    assert desk.warnings[0] == (
        "logins: 16 logins from 192.0.2.1 wait for their password check; refusing more"
    )


async def test_an_ipv6_host_is_its_64(desk: Desk) -> None:
    desk.offer("a", account="2001:db8::1")
    desk.offer("b", account="2001:db8::2:1")
    assert desk.threads.names == ["a"]
    desk.offer("c", account="2001:db8:0:1::1")
    assert desk.threads.names == ["a", "c"]


async def test_no_more_checks_at_once_than_threads(desk: Desk) -> None:
    for number in range(THREADS + 3):
        desk.offer(f"user {number}", account=f"192.0.2.{number}")
    assert len(desk.threads.jobs) == THREADS
    order = [await desk.threads.finish() for _ in range(THREADS + 3)]
    assert order == [f"user {number}" for number in range(THREADS + 3)]
    assert desk.logins.waiting == 0


async def test_a_client_that_leaves_takes_its_login_along(desk: Desk) -> None:
    first = desk.offer("joe", "1")
    second = desk.offer("joe", "2")
    third = desk.offer("joe", "3")

    second.end()
    first.end()
    first.end()

    assert desk.logins.waiting == 1
    await desk.threads.finish()
    assert desk.told == []
    await desk.threads.finish()
    assert desk.told == [("joe", Verdict.WRONG)]
    third.end()
    assert desk.threads.jobs == []


async def test_no_thread_is_an_answer(desk: Desk) -> None:
    desk.threads.broken = True
    desk.offer("joe")
    assert desk.told == [("joe", Verdict.BUSY)]
    assert desk.warnings == [
        "login-thread: no thread to check a password; refusing the login: can't start new thread"
    ]
    desk.threads.broken = False
    desk.offer("joe")
    await desk.threads.finish()
    assert desk.told[-1] == ("joe", Verdict.RIGHT)


async def test_a_check_that_fails_is_an_answer(desk: Desk) -> None:
    assert desk.passwords is not None
    desk.passwords.bug = True
    desk.offer("joe")
    await desk.threads.finish()
    assert desk.told == [("joe", Verdict.BUSY)]


async def test_wrong_logins_are_remembered_within_a_bound(desk: Desk) -> None:
    for number in range(WRONG_REMEMBERED + 1):
        desk.offer("joe", f"guess {number}")
        await desk.threads.finish()
    desk.offer("joe", "guess 0")
    assert len(desk.threads.jobs) == 1, "the oldest was forgotten"
    desk.offer("joe", f"guess {WRONG_REMEMBERED}")
    assert len(desk.threads.jobs) == 1
