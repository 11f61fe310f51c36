"""The checks of an ICE connection in time: what is nominated, how long is waited, what is closed."""

import asyncio
import errno

import aioice
import pytest
from aioice import stun
from aioice.ice import CandidatePair

from socks_tunnel.peer.ice import connection as connection_module
from socks_tunnel.peer.ice.connection import IceConnection
from socks_tunnel.peer.ice.pairs import (
    candidate_priority,
)
from socks_tunnel.peer.ice.settings import IceSettings, candidate_addresses
from unit.peer.ice.test_connection import (
    HOST,
    RELAY,
    THEIR_HOST,
    THEIR_RELAY,
    Base,
    candidate,
    connection,
    settle,
    until_checked,
)


async def test_a_working_direct_pair_is_nominated_at_once() -> None:
    base = Base(HOST)
    made = connection(base, remote=[THEIR_HOST])
    connecting = asyncio.create_task(made.connect())
    addr = (THEIR_HOST.host, THEIR_HOST.port)
    await until_checked(base, addr)
    first = base.answer(addr, mapped=("198.51.100.5", 7))
    await until_checked(base, addr, 2)
    second = base.answer(addr)
    await connecting
    assert "USE-CANDIDATE" not in first.attributes
    assert "USE-CANDIDATE" in second.attributes
    assert first.attributes["PRIORITY"] == candidate_priority("prflx", 65_535)
    pair = made._nominated[1]
    assert made.mapped[pair] == ("198.51.100.5", 7)
    await made.close()
    assert base.closed


async def test_checks_and_nominations_are_repeated_before_stun_does_it() -> None:
    """One that is lost does not cost half a second, and a path that is back is noticed soon."""
    base = Base(HOST)
    made = connection(base, remote=[THEIR_HOST])
    connecting = asyncio.create_task(made.connect())
    addr = (THEIR_HOST.host, THEIR_HOST.port)
    for number in (1, 2):
        await until_checked(base, addr, number)
        asked = base.checks[addr][-1][0]
        base.repeated.clear()
        async with asyncio.timeout(60):
            while (asked, addr) not in base.repeated:
                base.checked.clear()
                await base.checked.wait()
        base.answer(addr)
    await connecting
    assert made._nominated[1].protocol is base
    async with asyncio.timeout(60):
        await asyncio.wait([made._repeating])
    await made.close()


async def test_a_relayed_pair_waits_for_a_direct_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "DIRECT_PATIENCE", 3600.0)
    direct, relayed = Base(HOST), Base(RELAY)
    made = connection(direct, relayed, remote=[THEIR_HOST])
    connecting = asyncio.create_task(made.connect())
    addr = (THEIR_HOST.host, THEIR_HOST.port)
    await until_checked(relayed, addr)
    relayed.answer(addr)
    await settle()
    assert len(relayed.checks[addr]) == 1  # no nomination yet
    direct.answer(addr)
    await until_checked(direct, addr, 2)
    direct.answer(addr)
    await connecting
    assert made._nominated[1].protocol is direct
    await made.close()


async def test_a_relayed_pair_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "DIRECT_PATIENCE", 0)
    direct, relayed = Base(HOST), Base(RELAY)
    made = connection(direct, relayed, remote=[THEIR_HOST])
    connecting = asyncio.create_task(made.connect())
    addr = (THEIR_HOST.host, THEIR_HOST.port)
    await until_checked(relayed, addr)
    relayed.answer(addr)
    await until_checked(relayed, addr, 2)
    relayed.answer(addr)
    await connecting
    assert made._nominated[1].protocol is relayed
    await made.close()


@pytest.mark.parametrize("controlling", [True, False])
async def test_direct_checks_are_repeated_while_a_relayed_path_waits_for_them(
    *, controlling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer's NAT may let in only what comes after its own first packet, whichever side that is."""
    monkeypatch.setattr(connection_module, "DIRECT_PATIENCE", 3600.0)
    direct, relayed = Base(HOST), Base(RELAY)
    made = connection(direct, relayed, remote=[THEIR_HOST], controlling=controlling)
    connecting = asyncio.create_task(made.connect())
    addr = (THEIR_HOST.host, THEIR_HOST.port)
    await until_checked(relayed, addr)
    await until_checked(direct, addr)
    relayed.answer(addr)
    async with asyncio.timeout(60):
        while len(direct.repeated) < 3:
            direct.checked.clear()
            await direct.checked.wait()
    assert direct.repeated == [(direct.checks[addr][0][0], addr)] * len(direct.repeated)
    assert not relayed.repeated
    direct.answer(addr)
    await settle()
    if controlling:
        await until_checked(direct, addr, 2)
        direct.answer(addr)
        await connecting
        assert made._nominated[1].protocol is direct
    await made.close()
    connecting.cancel()
    await asyncio.wait([connecting])
    assert made._patience.cancelled() or made._patience.done()


async def test_a_pause_of_the_process_does_not_use_up_the_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The event loop was held up for longer than the patience: the answers still wait in the sockets."""
    monkeypatch.setattr(connection_module, "DIRECT_PATIENCE", 30.0)
    direct, relayed = Base(HOST), Base(RELAY)
    made = connection(direct, relayed, remote=[THEIR_HOST])
    connecting = asyncio.create_task(made.connect())
    addr = (THEIR_HOST.host, THEIR_HOST.port)
    await until_checked(relayed, addr)
    relayed.answer(addr)
    await settle()
    loop = asyncio.get_running_loop()
    real, late = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: real() + late)
    late = 60.0
    await asyncio.sleep(0.05)
    await settle()
    assert len(relayed.checks[addr]) == 1  # not nominated
    direct.answer(addr)
    await until_checked(direct, addr, 2)
    direct.answer(addr)
    await connecting
    assert made._nominated[1].protocol is direct
    await made.close()


async def test_a_connection_that_may_only_be_direct_takes_no_relay_of_the_peers() -> None:
    base = Base(HOST)
    made = connection(base, remote=[THEIR_HOST, THEIR_RELAY])
    made._direct_only = True
    made._unfreeze_initial()
    assert [pair.remote_candidate for pair in made._check_list] == [THEIR_HOST]
    # The peer's checks from its relay are answered, and lead to nothing.
    made._check_list.clear()
    connecting = asyncio.create_task(made.connect())
    message = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
    message.attributes["PRIORITY"] = 1
    direct, relayed = ((c.host, c.port) for c in (THEIR_HOST, THEIR_RELAY))
    await until_checked(base, direct)
    made.check_incoming(message, relayed, base)
    await until_checked(base, relayed)
    base.answer(relayed)
    await settle()
    assert len(base.checks[relayed]) == 1
    base.checks[direct][0][1].set_exception(stun.TransactionTimeout())
    with pytest.raises(ConnectionError, match="ICE negotiation failed"):
        await connecting
    await made.close()


async def test_only_relayed_pairs_have_nothing_to_wait_for() -> None:
    relayed = Base(RELAY)
    made = connection(relayed, remote=[THEIR_RELAY])
    connecting = asyncio.create_task(made.connect())
    addr = (THEIR_RELAY.host, THEIR_RELAY.port)
    for count in (1, 2):
        await until_checked(relayed, addr, count)
        relayed.answer(addr)
    await connecting
    await made.close()


async def test_a_nomination_without_an_answer_leads_to_the_next_pair() -> None:
    one, two = Base(HOST), Base(candidate("host", "192.0.2.2", rank=1))
    made = connection(one, two, remote=[THEIR_HOST])
    connecting = asyncio.create_task(made.connect())
    addr = (THEIR_HOST.host, THEIR_HOST.port)
    await until_checked(two, addr)
    one.answer(addr)
    await until_checked(one, addr, 2)
    two.answer(addr)
    one.checks[addr][-1][1].set_exception(stun.TransactionTimeout())
    await until_checked(two, addr, 2)
    two.answer(addr)
    await connecting
    assert made._nominated[1].protocol is two
    await made.close()


async def test_a_nomination_on_a_path_that_has_vanished_is_not_waited_for_if_another_pair_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when the interface of a VPN is removed between the check and the nomination."""
    monkeypatch.setattr(connection_module, "NOMINATION_PATIENCE", 0.0)
    one, two = Base(HOST), Base(candidate("host", "192.0.2.2", rank=1))
    made = connection(one, two, remote=[THEIR_HOST])
    connecting = asyncio.create_task(made.connect())
    addr = (THEIR_HOST.host, THEIR_HOST.port)
    await until_checked(two, addr)
    one.answer(addr)
    await until_checked(one, addr, 2)
    # While no other pair works, there is nothing better to do than to wait.
    await settle()
    assert not one.checks[addr][-1][1].done()
    two.answer(addr)
    await until_checked(two, addr, 2)
    assert one.checks[addr][-1][1].cancelled()
    two.answer(addr)
    await connecting
    assert made._nominated[1].protocol is two
    await made.close()


@pytest.mark.parametrize(
    "error", [OSError(errno.EADDRNOTAVAIL, "gone"), RuntimeError("the handler is closed")]
)
async def test_a_check_that_cannot_be_sent_fails_its_pair_alone(error: Exception) -> None:
    one, two = Base(HOST), Base(candidate("host", "192.0.2.2", rank=1))
    made = connection(one, two, remote=[THEIR_HOST])
    connecting = asyncio.create_task(made.connect())
    addr = (THEIR_HOST.host, THEIR_HOST.port)
    await until_checked(one, addr)
    await until_checked(two, addr)
    one.checks[addr][0][1].set_exception(error)
    await settle()
    states = {pair.protocol: pair.state for pair in made._check_list}
    assert states[one] is CandidatePair.State.FAILED
    two.checks[addr][0][1].set_exception(error)
    with pytest.raises(ConnectionError, match="ICE negotiation failed"):
        await connecting
    await made.close()


async def test_a_check_that_cannot_be_repeated_does_not_end_the_wait_for_direct_paths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the relayed path that works would never be nominated."""
    monkeypatch.setattr(connection_module, "DIRECT_PATIENCE", 0.3)
    direct, relayed = Base(HOST), Base(RELAY)
    tried = asyncio.Event()

    def refuse(message: stun.Message, addr: tuple[str, int]) -> None:
        tried.set()
        raise RuntimeError("unable to perform operation; the handler is closed")

    monkeypatch.setattr(direct, "send_stun", refuse)
    made = connection(direct, relayed, remote=[THEIR_HOST])
    connecting = asyncio.create_task(made.connect())
    addr = (THEIR_HOST.host, THEIR_HOST.port)
    await until_checked(relayed, addr)
    await until_checked(direct, addr)
    relayed.answer(addr)
    await until_checked(relayed, addr, 2)
    assert tried.is_set()
    relayed.answer(addr)
    await connecting
    assert made._nominated[1].protocol is relayed
    await made.close()


async def test_the_controlled_side_takes_what_is_nominated() -> None:
    base = Base(HOST)
    made = connection(base, remote=[THEIR_HOST], controlling=False)
    connecting = asyncio.create_task(made.connect())
    addr = (THEIR_HOST.host, THEIR_HOST.port)
    await until_checked(base, addr)
    base.answer(addr)
    await settle()
    assert not made._nominated
    message = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
    message.attributes.update({"PRIORITY": 1, "USE-CANDIDATE": None})
    made.check_incoming(message, addr, base)
    await connecting
    assert made._nominated[1].remote_candidate is THEIR_HOST
    await made.close()


async def test_no_path_is_an_error() -> None:
    base = Base(HOST)
    made = connection(base, remote=[THEIR_HOST])
    connecting = asyncio.create_task(made.connect())
    addr = (THEIR_HOST.host, THEIR_HOST.port)
    await until_checked(base, addr)
    base.checks[addr][0][1].set_exception(stun.TransactionTimeout())
    with pytest.raises(ConnectionError, match="ICE negotiation failed"):
        await connecting
    await made.close()


async def test_sockets_beside_the_path_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "RELEASE_AFTER", 0)
    used, unused = Base(HOST), Base(RELAY)
    made = connection(used, unused, remote=[THEIR_HOST])
    made._nominated[1] = CandidatePair(used, THEIR_HOST)  # type: ignore[arg-type] # as much as is used
    used.transport.drops["socket-full"] = 2
    unused.transport.drops["socket-full"] = 3
    assert made.drops() == {"socket-full": 5}
    await made._release_unused()
    assert made.drops() == {"socket-full": 5}, "what a closed socket has dropped still counts"
    used.transport.drops["socket-full"] += 1
    assert made.drops() == {"socket-full": 6}
    assert unused.closed
    assert not used.closed
    assert made._protocols == [used]


async def test_a_process_that_was_stopped_looks_again_before_it_closes_sockets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What came meanwhile waits in the sockets, unread, on each of them."""
    monkeypatch.setattr(connection_module, "RELEASE_AFTER", 0)
    used, other = Base(HOST), Base(RELAY)
    made = connection(used, other, remote=[THEIR_HOST])
    made._nominated[1] = CandidatePair(used, THEIR_HOST)  # type: ignore[arg-type] # as much as is used
    loop = asyncio.get_running_loop()
    real_time, real_sleep = loop.time, asyncio.sleep
    stopped = 0.0
    slept: list[bool] = []

    async def sleep(delay: float) -> None:
        nonlocal stopped
        slept.append(other.closed)
        await real_sleep(delay)
        stopped = 60.0  # during the first sleep only: from then on the clock is that much ahead

    monkeypatch.setattr(loop, "time", lambda: real_time() + stopped)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    await made._release_unused()
    assert slept == [False, False]
    assert other.closed


async def test_a_connection_that_is_not_ours_is_aioices(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[object] = []

    async def gather(self: object) -> None:
        gathered.append(self)

    monkeypatch.setattr(aioice.Connection, "gather_candidates", gather)
    made = IceConnection(ice_controlling=True)
    await made.gather_candidates()
    assert gathered == [made]
    ours = IceConnection(ice_controlling=True)
    with candidate_addresses(IceSettings(addresses=["203.0.113.1"])):
        await ours.gather_candidates()
    assert gathered == [made]
    assert ours.local_candidates == []
