"""How links end over real connections: in order, by the path, by the peer, or never begun."""

import asyncio
import contextlib
import gc
import re
from collections.abc import Callable

import aioice.ice
import pytest
import uvloop

from integration.link_pair import (
    JumpingClock,
    RawEndpoint,
    ice_of,
    over_aiortc,
    pc_of,
    silence,
    site,
)
from socks_tunnel.peer import TransportError
from socks_tunnel.peer.plain import connection as connection_module
from socks_tunnel.protocol.errors import LocalProtocolError
from socks_tunnel.protocol.messages import (
    Data,
)

pytestmark = pytest.mark.usefixtures("path")


# --- ends -------------------------------------------------------------------------------------


async def test_a_link_that_was_never_started_can_be_closed() -> None:
    async with site() as here:
        gateway, seen = here.gateway()
        await gateway.close("no need")
        await gateway.close("again")
        assert seen.calls == ["down"]
        assert seen.reason == "no need"
        with pytest.raises(TransportError):
            await gateway.create_offer()


async def test_a_link_can_be_closed_while_it_is_set_up() -> None:
    async with site() as here:
        gateway, seen = here.gateway()
        offering = asyncio.ensure_future(gateway.create_offer())
        await asyncio.sleep(0)
        await gateway.close("changed my mind")
        with pytest.raises(TransportError):
            await offering
        assert seen.calls == ["down"]

        gateway, seen = here.gateway()
        endpoint, at_endpoint = here.endpoint()
        answer = await endpoint.accept_offer(await gateway.create_offer())
        await gateway.accept_answer(answer)
        await gateway.close("changed my mind")
        await endpoint.close("me too")
        assert seen.calls == at_endpoint.calls == ["down"]


async def test_calls_out_of_order_are_our_bug() -> None:
    async with site() as here:
        gateway, _, endpoint, _ = await here.pair()
        for call in (gateway.accept_answer("v=0"), gateway.create_offer()):
            with pytest.raises(LocalProtocolError):
                await call
        with pytest.raises(LocalProtocolError):
            await endpoint.accept_offer("v=0")
        with pytest.raises(LocalProtocolError):
            await endpoint.create_offer()


async def test_no_answer_in_time_ends_the_link() -> None:
    async with site() as here:
        clock = JumpingClock()
        gateway, seen = here.gateway(connect_timeout=60, clock=clock)
        await gateway.create_offer()
        clock.jump(59)
        await asyncio.sleep(0)
        assert seen.reason is None
        clock.jump(1)
        assert await seen.down() == "not connected within 60 s: no answer came"


async def test_a_peer_without_a_path_ends_the_link() -> None:
    async with site() as here:
        clock = JumpingClock()
        gateway, seen = here.gateway(connect_timeout=60, clock=clock)
        endpoint, _ = here.endpoint()
        answer = await endpoint.accept_offer(await gateway.create_offer())
        await endpoint.close("gone before it began")
        await gateway.accept_answer(answer)
        clock.jump(60)
        assert re.fullmatch(
            r"not connected within 60 s: no ICE candidate pair has answered \(ours: host 127\.0\.0\.1 "
            r"port [0-9]+; the peer's: host 127\.0\.0\.1 port [0-9]+\)",
            await seen.down(),
        )


async def test_no_path_is_said_with_the_candidates_that_were_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aioice.stun.RETRY_MAX", 1)
    monkeypatch.setattr("aioice.stun.RETRY_RTO", 0.05)
    async with site() as here:
        gateway, seen = here.gateway()
        endpoint, _ = here.endpoint()
        answer = await endpoint.accept_offer(await gateway.create_offer())
        await endpoint.close("gone before it began")
        await gateway.accept_answer(answer)
        assert re.fullmatch(
            r"no path to the peer works \(ours: host 127\.0\.0\.1 port [0-9]+; "
            r"the peer's: host 127\.0\.0\.1 port [0-9]+\)",
            await seen.down(),
        )


async def test_a_lost_path_ends_the_link() -> None:
    """As aioice does it when nothing answers its consent checks (RFC 7675) any more."""
    async with site() as here:
        gateway, seen, _, _ = await here.pair()
        await ice_of(gateway).close()
        assert await seen.down() == "the path to the peer is lost (ICE consent expired)"


async def test_a_peer_without_hello_ends_the_link() -> None:
    async with site() as here:
        clock = JumpingClock()
        gateway, seen = here.gateway(connect_timeout=60, clock=clock)
        await RawEndpoint(here, gateway).connect()
        clock.jump(60)
        assert await seen.down() == "not connected within 60 s: the peer has sent no HELLO"


@pytest.mark.parametrize("changed", ["offer", "answer"])
def test_a_changed_fingerprint_never_comes_up(
    changed: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What the signature is there to prevent, were the signature not there."""

    def change(sdp: str) -> str:
        start = sdp.index("a=fingerprint:sha-256 ") + len("a=fingerprint:sha-256 ")
        digit = "0" if sdp[start] != "0" else "1"
        return sdp[:start] + digit + sdp[start + 1 :]

    async def check() -> None:
        async with site() as here:
            clocks = JumpingClock(), JumpingClock()
            gateway, at_gateway = here.gateway(connect_timeout=60, clock=clocks[0])
            endpoint, at_endpoint = here.endpoint(connect_timeout=60, clock=clocks[1])
            offer = await gateway.create_offer()
            answer = await endpoint.accept_offer(change(offer) if changed == "offer" else offer)
            await gateway.accept_answer(change(answer) if changed == "answer" else answer)
            deceived, other = at_endpoint, at_gateway
            if changed == "answer":
                deceived, other = other, deceived
            assert await deceived.down() == (
                "the peer's DTLS certificate does not have the fingerprint that its SDP names"
            )
            for clock in clocks:
                clock.jump(60)
            assert "not connected within" in await other.down()
            assert at_gateway.calls == at_endpoint.calls == ["down"]

    asyncio.run(check())
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("a=fingerprint", "a=nofingerprint", "no DTLS fingerprint"),
        ("m=application", "m=video", "one section"),
        ("a=mid:0", "a=mid:7", "cannot be used"),
        ("a=setup:active", "a=setup:actpass", "cannot be used"),
    ],
)
async def test_an_unusable_answer_ends_the_link(old: str, new: str, sentence: str) -> None:
    async with site() as here:
        gateway, seen = here.gateway()
        endpoint, _ = here.endpoint()
        answer = await endpoint.accept_offer(await gateway.create_offer())
        assert old in answer
        with pytest.raises(TransportError, match=sentence):
            await gateway.accept_answer(answer.replace(old, new))
        assert sentence in await seen.down()
        assert gateway.protocol.errors["sdp"] == 1


async def test_an_unusable_offer_ends_the_link() -> None:
    async with site() as here:
        endpoint, seen = here.endpoint()
        with pytest.raises(TransportError, match="v=0"):
            await endpoint.accept_offer("nonsense")
        assert "v=0" in await seen.down()


async def test_an_idle_link_is_kept_alive() -> None:
    async with site() as here:
        gateway, seen, endpoint, _ = await here.pair(ping_interval=0.05)
        await seen.until(lambda: len(seen.rtts) >= 10)
        assert gateway.state == endpoint.state == "up"
        assert gateway.protocol.keepalive.rtt == seen.rtts[-1]


async def test_a_silent_peer_is_noticed() -> None:
    async with site() as here:
        gateway, at_gateway, endpoint, _ = await here.pair(ping_interval=0.5, dead_after=3.0)

        loop = asyncio.get_running_loop()
        cut = loop.time()
        silence(endpoint)
        assert "nothing was heard from the peer for" in await at_gateway.down()
        # Measured from the last message, which is at most one PING interval before the cut.
        assert loop.time() - cut > 3.0 - 0.5 - 0.1
        assert gateway.state == "down"


async def test_a_close_that_hangs_is_cut_short(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with site() as here:
        gateway, _, endpoint, _ = await here.pair()
        pc = pc_of(gateway)
        real_close = pc.close

        async def hang() -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(pc, "close", hang)
        monkeypatch.setattr(connection_module, "CLOSE_TIMEOUT", 0.1)
        async with asyncio.timeout(60):
            await gateway.close("enough")
        assert "did not close within" in caplog.text
        for protocol in ice_of(gateway)._protocols:
            assert protocol.transport.is_closing()
        await endpoint.close("enough")
        async with asyncio.timeout(60):
            await real_close()


async def test_an_error_while_closing_is_nobodys_traceback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with site() as here:
        gateway, _, _, _ = await here.pair()
        pc = pc_of(gateway)
        real_close = pc.close

        async def fail() -> None:
            await real_close()
            raise RuntimeError("aiortc is confused")

        monkeypatch.setattr(pc, "close", fail)
        await gateway.close("enough")
    assert not [record for record in caplog.records if record.exc_info]


async def test_nothing_is_left_running() -> None:
    before = asyncio.all_tasks()
    async with site() as here:
        gateway, _, _, at_endpoint = await here.pair()
        gateway.send_many([Data(7, bytes(65_529)).encode()] * 20)
        await at_endpoint.until(lambda: len(at_endpoint.messages) == 20)
    left = asyncio.all_tasks() - before
    if left:
        await asyncio.wait(left, timeout=60)
    assert asyncio.all_tasks() - before == set()


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("turns", range(12))
def test_a_caller_that_is_cancelled_while_it_gathers_loses_no_socket(
    factory: Callable[[], asyncio.AbstractEventLoop], turns: int
) -> None:
    async def cancelled() -> None:
        async with site() as here:
            gateway, _ = here.gateway()
            offering = asyncio.create_task(gateway.create_offer())
            for _ in range(turns):
                await asyncio.sleep(0)
            offering.cancel()
            with contextlib.suppress(asyncio.CancelledError):  # with many turns, it was too late
                await offering
            await gateway.close("the caller was cancelled")
            gathering = over_aiortc(gateway)._connection._gathering
            assert gathering is None or await until_done(gathering)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(cancelled())
    gc.collect()  # a socket that was lost complains here, and warnings are errors


async def until_done(task: "asyncio.Task[None]") -> bool:
    await asyncio.wait([task], timeout=60)
    return task.done()


def test_aioice_does_not_cut_a_link_that_is_only_slow() -> None:
    assert aioice.ice.CONSENT_FAILURES > 1_000_000
