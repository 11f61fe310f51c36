"""Dialling and answering with real peer connections on loopback; workers are fakes."""

import asyncio
import time
from dataclasses import replace
from datetime import datetime

import pytest

from integration.links_world import World, linked, until
from socks_tunnel.peer.link import Link
from socks_tunnel.protocol.ipc import Attach, Detach, NewFlows, SessionEnded, SessionOpened
from socks_tunnel.protocol.messages import CloseConnection, Data, OpenConnection
from socks_tunnel.signaling.carrier import SignalingError
from socks_tunnel.signaling.direct import DirectClient
from socks_tunnel.signaling.envelope import new_body, seal
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.supervisor import answerer, links

pytestmark = pytest.mark.usefixtures("soon_again")


# --- up and down --------------------------------------------------------------------------------


async def test_a_gateway_finds_its_endpoint_and_messages_flow(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gateway, endpoint = await linked(world)
    (told,) = gateway.worker.told(Attach)
    assert told == Attach(
        window=262_144,
        max_data=65_529,
        idle_udp=300,
        features=["udp", "bind", "resume", "resolve"],
        credit=told.credit,
        resume=True,
    )
    assert gateway.worker.told(SessionOpened) == [SessionOpened("office")]
    ((at_gateway, session),) = gateway.router.sessions.items()
    ((_, far),) = endpoint.router.sessions.items()
    assert far.key == session.key
    await until(lambda: gateway.worker.told(NewFlows)[-1] == NewFlows([[[at_gateway], []]], [[]]))
    opening, data = OpenConnection(2, "example.com", 80).encode(), Data(2, bytes(60_000)).encode()
    gateway.routes.from_worker(at_gateway, [memoryview(opening)])
    gateway.routes.from_worker(at_gateway, [memoryview(data)])
    await until(lambda: len(endpoint.worker.messages) == 2)
    ((at_endpoint, first), (_, second)) = endpoint.worker.messages
    assert (first, second) == (opening, data)
    await until(lambda: session.link is not None and session.link.credit.outstanding == 0)
    close = CloseConnection(2, 5).encode()
    endpoint.routes.from_worker(at_endpoint, [memoryview(close)])
    await until(lambda: gateway.worker.messages)
    assert gateway.worker.messages == [(at_gateway, close)]
    row = gateway.row("office")
    assert row["state"] == "up"
    assert row["remote_software"].startswith("socks-tunnel/")
    assert row["path"].startswith("127.0.0.1 port ")
    assert row["since"].endswith("+00:00")
    assert gateway.metric("links", state="up") == 1
    assert gateway.metric("link_paths", kind="host", family="ipv4") == 1
    assert gateway.metric("link_paths", kind="relay", family="ipv4") == 0
    assert (row["path_kind"], row["path_family"]) == ("host", "ipv4")
    assert gateway.metric("link_events_total", outcome="up") == 1
    await until(lambda: gateway.metric("link_rtt_seconds_count") > 0)
    assert "link office is up: socks-tunnel/" in caplog.text
    assert "link laptop is up: socks-tunnel/" in caplog.text


async def test_stopping_a_gateway_says_goodbye(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gateway, endpoint = await linked(world)
    await gateway.manager.stop("the peer is shutting down")
    await until(lambda: not endpoint.up)
    await until(lambda: gateway.worker.told(SessionEnded))
    assert gateway.worker.told(SessionEnded) == [SessionEnded("the peer is shutting down")]
    await until(lambda: endpoint.row("laptop")["state"] == "down")
    await until(lambda: endpoint.metric("links", state="down") == 1)
    assert endpoint.metric("signaling_rejected_total", reason="replayed") == 0
    assert "rejected" not in caplog.text


@pytest.mark.parametrize("lost", [False, True])
async def test_a_goodbye_ends_the_session_for_nobody_will_resume_it(
    world: World, lost: bool
) -> None:
    gateway, endpoint = await linked(world)
    opening = OpenConnection(2, "example.com", 80).encode()
    ((number, _),) = gateway.router.sessions.items()
    await until(lambda: gateway.router.target == number)
    gateway.routes.from_worker(number, [memoryview(opening)])
    await until(lambda: endpoint.router.flows == 1)
    if lost:  # the link ends first, and the session waits for another
        gateway.manager.goaway()  # which dials no more
        (link,) = gateway.up
        await gateway.up[0].link.close("a test")
        await until(lambda: not endpoint.up)
        assert len(endpoint.router.detached) == 1
        body = new_body(
            "bye",
            world.key("laptop"),
            endpoint.identity.public,
            session=link.session,
            now=time.time(),
        )
        client = DirectClient(f"unix:{world.directory}/office.sock")
        await client.bye("/gone", seal(world.key("laptop"), body))
    else:
        await gateway.manager.stop("the peer is shutting down")
    await until(lambda: not endpoint.router.sessions)


async def test_a_lost_link_is_dialled_again_and_the_worker_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gateway, endpoint = await linked(world)
    opening = OpenConnection(2, "example.com", 80).encode()
    ((number, session),) = gateway.router.sessions.items()
    await until(lambda: gateway.router.target == number)
    gateway.routes.from_worker(number, [memoryview(opening)])
    await until(lambda: endpoint.router.flows == 1)
    assert gateway.row("office")["waiting_flows"] == 0
    assert gateway.row("office")["waiting_since"] is None
    await endpoint.up[0].close("a test")
    await until(lambda: session.detached_at is not None)
    for side, peer in ((gateway, "office"), (endpoint, "laptop")):
        (row,) = side.manager.rows({peer: 700, "another": 5})
        assert row["waiting_flows"] == 1
        assert row["waiting_held"] == 700
        assert 30 <= row["waiting_left"] <= 60
        assert abs(datetime.fromisoformat(row["waiting_since"]).timestamp() - time.time()) < 30
    await until(lambda: len(gateway.worker.told(Attach)) == 2)
    (row,) = gateway.manager.rows({"office": 700})  # the link came back meanwhile
    assert row["waiting_flows"] == row["waiting_held"] == 0
    assert row["waiting_since"] is row["waiting_left"] is None
    assert list(gateway.router.sessions.values()) == [session]
    assert len(gateway.worker.told(Detach)) == 1
    what = "link office is down: the peer closed the connection; 1 flows wait for the next link"
    assert what in caplog.text
    assert "dialling office again in " in caplog.text


async def test_an_endpoint_that_is_not_there_is_tried_again_until_it_is(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, endpoint = world.gateway(), world.endpoint()
    await gateway.manager.start()
    await until(lambda: gateway.metric("link_events_total", outcome="failed") >= 2)
    told = [r.getMessage() for r in caplog.records if "cannot reach office: " in r.getMessage()]
    assert len([text for text in told if "trying again in" in text]) == 1, "the same is said once"
    row = gateway.row("office")
    assert row["state"] in {"down", "connecting"}
    await until(lambda: "cannot be reached" in gateway.detail("office"))
    await endpoint.manager.start()
    await until(lambda: gateway.up)


async def test_peers_have_the_rank_of_their_place_in_the_configuration(world: World) -> None:
    offices = [world.endpoint(name) for name in ("first", "second")]
    gateway = world.gateway("laptop", "first", "second")
    for side in (*offices, gateway):
        await side.manager.start()
    await until(lambda: len(gateway.up) == 2)
    ranks = {session.peer: session.rank for session in gateway.router.sessions.values()}
    assert ranks == {"first": 0, "second": 1}


# --- many at one endpoint -----------------------------------------------------------------------


async def test_an_endpoint_serves_several_gateways(world: World) -> None:
    endpoint = world.endpoint("office", "laptop", "tablet")
    gateways = [world.gateway(name) for name in ("laptop", "tablet")]
    for side in (endpoint, *gateways):
        await side.manager.start()
    await until(lambda: len(endpoint.up) == 2)
    assert {told.peer for told in endpoint.worker.told(SessionOpened)} == {"laptop", "tablet"}
    await gateways[0].manager.stop("enough")
    await until(lambda: len(endpoint.up) == 1)
    assert endpoint.row("tablet")["state"] == "up"


async def test_a_newer_link_of_a_peer_replaces_the_older_one(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first, endpoint = await linked(world)
    (old,) = endpoint.up
    second = world.gateway()  # the same identity: restarted, and the old link not noticed dead
    await second.manager.start()
    await until(lambda: old.ended.done() and second.up)
    assert old.ended.result() == "replaced by a newer link of the same peer"
    assert "link laptop: a newer link replaces the older one" in caplog.text
    await until(lambda: len(endpoint.up) == 1)
    await first.manager.stop("enough")


async def test_links_that_are_coming_up_are_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = world.endpoint("office", "laptop", "tablet")
    await endpoint.manager.start()
    client = DirectClient(f"unix:{world.directory}/office.sock")

    async def offer(name: str) -> None:
        side = world.gateway(name)
        link = side.manager.new_link(side.manager.peers["office"], bytes(16))
        body = new_body(
            "offer",
            world.key(name),
            world.key("office").public,
            session=bytes(16),
            now=time.time(),
            sdp=await link.link.create_offer(),
        )
        try:
            await client.offer(seal(world.key(name), body), 60)
        finally:
            await link.close("never mind")

    for _ in range(answerer.HANDSHAKES_PER_PEER + 2):
        await offer("laptop")
    await until(lambda: len(endpoint.manager.links) == answerer.HANDSHAKES_PER_PEER)
    assert "did not come up: the peer has dialled again" in caplog.text
    monkeypatch.setattr(answerer, "HANDSHAKES_MAX", answerer.HANDSHAKES_PER_PEER)
    with pytest.raises(SignalingError, match="refused"):
        await offer("tablet")
    assert "refused an offer of tablet: 2 links are coming up" in caplog.text


# --- refusals -----------------------------------------------------------------------------------


async def test_a_stranger_is_rejected_and_the_log_says_why(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint, stranger = world.endpoint("office", "tablet"), world.gateway()
    await endpoint.manager.start()
    await stranger.manager.start()
    await until(lambda: "cannot reach office" in caplog.text)
    assert "rejected an offer from local: no configured peer has the public key" in caplog.text
    assert endpoint.metric("signaling_rejected_total", reason="unknown-peer") >= 1
    assert endpoint.manager.links == []


async def test_strangers_cannot_fill_the_log(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(links, "REJECTIONS_LOGGED", 3)
    endpoint = world.endpoint()
    await endpoint.manager.start()
    client = DirectClient(f"unix:{world.directory}/office.sock")
    for _ in range(6):
        with pytest.raises(SignalingError):
            await client.offer(b"junk", 60)
    assert caplog.text.count("rejected an offer") == 3
    assert caplog.text.count("further rejections within 10 s are only counted") == 1
    assert endpoint.metric("signaling_rejected_total", reason="malformed") == 6


async def test_an_impostor_s_answer_is_rejected(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = world.gateway("laptop", "office", "branch")
    impostor = world.endpoint("branch")
    await impostor.manager.start()
    (world.directory / "office.sock").symlink_to(world.directory / "branch.sock")
    await gateway.manager.start()
    # The offer to the office is not addressed to the branch, which therefore refuses it.
    await until(lambda: "which is not ours" in caplog.text)
    await until(lambda: len(gateway.up) == 1)
    assert gateway.row("branch")["state"] == "up"


async def test_an_offer_that_cannot_be_used_is_refused(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = world.endpoint()
    await endpoint.manager.start()
    key, client = world.key("laptop"), DirectClient(f"unix:{world.directory}/office.sock")
    body = new_body(
        "offer",
        key,
        endpoint.identity.public,
        session=bytes(16),
        now=time.time(),
        sdp="v=0\r\nnonsense",
    )
    with pytest.raises(SignalingError, match="refused"):
        await client.offer(seal(key, body), 60)
    assert "link laptop did not come up: the peer's SDP cannot be used" in caplog.text
    assert endpoint.manager.links == []


async def test_a_goodbye_needs_a_signature_and_ends_one_link(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, endpoint = await linked(world)
    (link,) = endpoint.up
    client = DirectClient(f"unix:{world.directory}/office.sock")

    def bye(name: str, session: bytes) -> bytes:
        key = world.key(name)
        body = new_body("bye", key, endpoint.identity.public, session=session, now=time.time())
        return seal(key, body)

    with pytest.raises(SignalingError):
        await client.bye(f"/{link.session_id}", bye("stranger", link.session))
    assert "rejected a goodbye from local" in caplog.text
    await client.bye(f"/{link.session_id}", bye("laptop", bytes(16)))
    await client.bye("/another", bye("laptop", link.session))
    assert endpoint.up == [link]
    await client.bye(f"/{link.session_id}", bye("laptop", link.session))
    await until(lambda: link.ended.done())
    assert link.ended.result() == "the peer said goodbye"
    await gateway.manager.stop("enough")


# --- drain, abuse, reload -----------------------------------------------------------------------


@pytest.mark.parametrize("who", ["gateway", "endpoint"])
async def test_goaway_lets_nothing_new_in_and_keeps_what_is_there(world: World, who: str) -> None:
    gateway, endpoint = await linked(world)
    leaving, other = (gateway, endpoint) if who == "gateway" else (endpoint, gateway)
    leaving.manager.goaway()
    await until(lambda: [link.attached and link.attached.accepts for link in other.up] == [False])
    assert len(gateway.up) == len(endpoint.up) == 1
    if who == "endpoint":
        newcomer = world.gateway()
        await newcomer.manager.start()
        await until(lambda: "refused the offer" in newcomer.detail("office"))
        assert endpoint.metric("link_events_total", outcome="up") == 1
    else:
        await endpoint.up[0].close("a test")
        await until(lambda: not gateway.up)
        await until(lambda: not gateway.manager.links)


async def test_a_link_that_the_router_wants_no_more_of_is_closed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, endpoint = await linked(world)
    (link,) = endpoint.up
    assert link.attached is not None
    endpoint.abuse(link.attached, "the peer ignores its windows")
    await until(lambda: link.ended.done())
    assert "closing link laptop: the peer ignores its windows" in caplog.text
    await until(lambda: len(gateway.worker.told(SessionEnded)) == 1)


async def test_a_reload_ends_what_leads_nowhere_and_dials_what_is_new(world: World) -> None:
    offices = [world.endpoint(name) for name in ("first", "second")]
    gateway = world.gateway("laptop", "first")
    for side in (*offices, gateway):
        await side.manager.start()
    await until(lambda: gateway.up)
    unchanged = gateway.up[0]
    gateway.manager.apply(world.config("gateway", "first", "second"))
    await until(lambda: len(gateway.up) == 2)
    assert unchanged in gateway.up
    gateway.manager.apply(world.config("gateway", "second"))
    await until(lambda: [a.peer.name for a in gateway.up] == ["second"])
    assert unchanged.ended.result() == "the peer was removed from the configuration"
    assert [row["peer"] for row in gateway.manager.status()] == ["second"]
    world.keys["second"] = PrivateIdentity.generate()
    gateway.manager.apply(world.config("gateway", "second"))
    await until(lambda: gateway.worker.told(SessionEnded)[1:])
    assert "another key" in gateway.worker.told(SessionEnded)[1].reason


async def test_an_endpoint_s_reload_ends_links_of_peers_that_are_gone(world: World) -> None:
    gateway, endpoint = await linked(world)
    (link,) = endpoint.up
    endpoint.manager.apply(world.config("endpoint", "laptop", "tablet"))
    await asyncio.sleep(0)
    assert endpoint.up == [link]
    endpoint.manager.apply(world.config("endpoint", "tablet"))
    await until(lambda: not endpoint.up)
    await until(lambda: "refused the offer" in gateway.detail("office"))
    assert endpoint.metric("signaling_rejected_total", reason="unknown-peer") >= 1


async def test_a_peer_s_weight_is_shown_and_a_reload_changes_it(world: World) -> None:
    _, endpoint = await linked(world)
    (link,) = endpoint.up
    assert link.attached is not None
    assert endpoint.row("laptop")["weight"] == link.attached.weight == 1
    config = world.config("endpoint", "laptop", "tablet")
    peers = tuple(replace(peer, weight=7) for peer in config.peers)
    endpoint.manager.apply(replace(config, peers=peers))
    assert endpoint.up == [link]
    assert endpoint.row("laptop")["weight"] == link.attached.weight == 7
    assert endpoint.row("tablet")["weight"] == 7, "which has no link"


# --- bugs ---------------------------------------------------------------------------------------


async def test_a_bug_in_dialling_is_logged_and_no_reason_to_give_up(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint, gateway = world.endpoint(), world.gateway()
    await endpoint.manager.start()
    real, calls = Link.create_offer, 0

    async def failing(self: Link) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyError("oops")
        return await real(self)

    monkeypatch.setattr(Link, "create_offer", failing)
    await gateway.manager.start()
    await until(lambda: gateway.up)
    assert "dialling office failed; trying again in" in caplog.text
    assert "KeyError" in caplog.text


async def test_stopping_while_dialling_ends_soon(world: World) -> None:
    gateway = world.gateway()
    asked, over, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def never_answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await over.wait()
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with await asyncio.start_unix_server(never_answer, world.directory / "office.sock"):
        await gateway.manager.start()
        await asked.wait()
        assert len(gateway.manager.links) == 1
        async with asyncio.timeout(13):  # the offer alone would have 15 s
            await gateway.manager.stop("enough")
        assert gateway.manager.links == []
        over.set()
        await closed.wait()


async def test_a_bug_at_the_end_of_a_link_is_not_the_end_of_dialling(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, endpoint = await linked(world)
    (before,) = gateway.up
    failed: list[str] = []

    def fails(attached: object, reason: str) -> int:
        failed.append(reason)
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(gateway.manager.attachments, "detach", fails)
        await endpoint.up[0].close("the test wants another")
        await until(lambda: failed)
    await until(lambda: gateway.up and gateway.up != [before])
