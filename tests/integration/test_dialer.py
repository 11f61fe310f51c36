"""Happy Eyeballs: the order of attempts, the winner, the true reply, and nothing left open."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import warnings
from collections.abc import Callable

import pytest

from socks_tunnel.protocol.addresses import IPAddress
from socks_tunnel.protocol.errors import Reply
from socks_tunnel_workers.sockets import Liveness
from socks_tunnel_workers.targets import dialer
from socks_tunnel_workers.targets.dialer import ATTEMPTS_MAX, DialError, dial


def ips(*texts: str) -> list[IPAddress]:
    return [ipaddress.ip_address(text) for text in texts]


class Attempts:
    """Stands in for the kernel: each address answers as it is told to."""

    def __init__(self, outcomes: dict[str, float | OSError]) -> None:
        self.outcomes = outcomes
        self.started: list[str] = []
        self.sockets: list[socket.socket] = []

    async def __call__(self, address: IPAddress, port: int, liveness: Liveness) -> socket.socket:
        self.started.append(str(address))
        outcome = self.outcomes[str(address)]
        if isinstance(outcome, OSError):
            raise outcome
        await asyncio.sleep(outcome)
        self.sockets.append(socket.socket())
        return self.sockets[-1]


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float | OSError]], Attempts]:
    def make(outcomes: dict[str, float | OSError]) -> Attempts:
        stand_in = Attempts(outcomes)
        monkeypatch.setattr(dialer, "_attempt", stand_in)
        monkeypatch.setattr(dialer, "ATTEMPT_DELAY", 0.02)
        return stand_in

    return make


async def test_a_silent_address_does_not_hold_up_the_next(
    attempts: Callable[[dict[str, float | OSError]], Attempts],
) -> None:
    stand_in = attempts({"2001:db8::1": 3600, "192.0.2.1": 0})
    sock = await dial(ips("2001:db8::1", "192.0.2.1"), 80, seconds=60)
    assert stand_in.started == ["2001:db8::1", "192.0.2.1"]
    assert stand_in.sockets == [sock]
    sock.close()


async def test_a_refusal_starts_the_next_at_once(
    attempts: Callable[[dict[str, float | OSError]], Attempts], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = attempts({"2001:db8::1": ConnectionRefusedError(111, "no"), "192.0.2.1": 0})
    monkeypatch.setattr(dialer, "ATTEMPT_DELAY", 3600)
    async with asyncio.timeout(60):
        (await dial(ips("2001:db8::1", "192.0.2.1"), 80, seconds=4000)).close()
    assert len(stand_in.started) == 2


@pytest.mark.parametrize(
    ("errors", "reply"),
    [
        ([errno.ENETUNREACH, errno.ECONNREFUSED], Reply.CONNECTION_REFUSED),
        ([errno.ENETUNREACH, errno.EHOSTUNREACH], Reply.HOST_UNREACHABLE),
        ([errno.ENETUNREACH, errno.ENETUNREACH], Reply.NETWORK_UNREACHABLE),
        ([errno.EHOSTUNREACH, errno.ETIMEDOUT], Reply.TTL_EXPIRED),
        ([errno.EPERM, errno.ENETUNREACH], Reply.NOT_ALLOWED),
        ([errno.EMFILE, errno.ECONNREFUSED], Reply.GENERAL_FAILURE),
        ([errno.ECONNREFUSED, errno.ENOBUFS], Reply.GENERAL_FAILURE),
    ],
)
async def test_the_most_telling_error_becomes_the_reply(
    attempts: Callable[[dict[str, float | OSError]], Attempts], errors: list[int], reply: Reply
) -> None:
    attempts({"2001:db8::1": OSError(errors[0], "a"), "192.0.2.1": OSError(errors[1], "b")})
    with pytest.raises(DialError) as caught:
        await dial(ips("2001:db8::1", "192.0.2.1"), 80, seconds=60)
    assert caught.value.reply is reply
    assert caught.value.shortage is (reply is Reply.GENERAL_FAILURE)


async def test_time_is_bounded_over_all_attempts(
    attempts: Callable[[dict[str, float | OSError]], Attempts],
) -> None:
    attempts({"2001:db8::1": 60, "192.0.2.1": 60})
    loop = asyncio.get_running_loop()
    start = loop.time()
    with pytest.raises(DialError, match=r"no answer within 0\.2 s") as caught:
        await dial(ips("2001:db8::1", "192.0.2.1"), 80, seconds=0.2)
    assert caught.value.reply is Reply.TTL_EXPIRED
    assert loop.time() - start >= 0.2


async def test_a_late_winner_is_closed(
    attempts: Callable[[dict[str, float | OSError]], Attempts],
) -> None:
    stand_in = attempts({"2001:db8::1": 0.03, "192.0.2.1": 0.01})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        winner = await dial(ips("2001:db8::1", "192.0.2.1"), 80, seconds=60)
        await asyncio.sleep(0.05)
    open_sockets = [s for s in stand_in.sockets if s.fileno() >= 0]
    assert open_sockets == [winner]
    winner.close()


async def test_attempts_are_bounded(
    attempts: Callable[[dict[str, float | OSError]], Attempts],
) -> None:
    addresses = [f"192.0.2.{n}" for n in range(1, 100)]
    stand_in = attempts(dict.fromkeys(addresses, ConnectionRefusedError(111, "no")))
    with pytest.raises(DialError):
        await dial(ips(*addresses), 80, seconds=60)
    assert len(stand_in.started) == ATTEMPTS_MAX


async def test_a_real_connection_is_ready_for_relaying() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        sock = await dial(ips("127.0.0.1"), port, seconds=60, liveness=Liveness(7, 9))
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 15
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 9000
        assert not sock.getblocking()
        sock.close()
        sock = await dial(ips("127.0.0.1"), port, seconds=60, liveness=Liveness(0, 0))
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        sock.close()


@pytest.mark.parametrize(("source", "reply"), [(True, 1), (False, 3)])
async def test_no_port_left_is_told_from_no_address(
    monkeypatch: pytest.MonkeyPatch, source: bool, reply: int
) -> None:
    async def refuse(sock: socket.socket, address: tuple[str, int], *, where: str) -> None:
        raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

    monkeypatch.setattr(dialer, "connect_to", refuse)
    monkeypatch.setattr(dialer, "source_address", lambda address: address if source else None)
    with pytest.raises(DialError) as caught:
        await dial(ips("192.0.2.1"), 80, seconds=60)
    assert caught.value.reply == reply
    assert caught.value.shortage is source


async def test_nothing_to_dial() -> None:
    with pytest.raises(DialError) as caught:
        await dial([], 80, seconds=1)
    assert caught.value.reply is Reply.HOST_UNREACHABLE
