"""Changes of the host's addresses that do not concern a link: it is asked, and no other is dialled."""

import pytest

from integration.links_world import World, until
from integration.test_supervisor_takeover import manager, with_slow_carrier
from socks_tunnel.supervisor import gateway_links
from socks_tunnel.supervisor.netlink import source_towards


async def test_an_address_of_a_container_costs_a_question_and_no_second_link(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gateway, _, carrier = await with_slow_carrier(world)
    (link,) = gateway.up
    path = link.link.transport.path
    assert path is not None
    assert source_towards(path.remote) == path.local[0]
    pinged_at = link.link.protocol.keepalive._pinged_at
    manager(gateway).host_changed("its host has a new address, 172.17.0.1")
    keepalive = link.link.protocol.keepalive
    assert keepalive._pinged_at > pinged_at
    assert not link.in_doubt
    await until(lambda: keepalive._asked_at is None)  # the PONG has come
    assert not link.in_doubt
    assert gateway.up == [link]
    assert carrier.asked == 1
    assert "link office: its host has a new address, 172.17.0.1; the peer is asked" in caplog.text


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("192.0.2.7", "its host has a new address, 192.0.2.7"),
        (None, "its host has lost its address, 192.0.2.7"),
        ("as before", "its host has a new default route"),
    ],
)
async def test_a_link_that_is_concerned_is_doubted_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch, source: str | None, why: str
) -> None:
    gateway, _, carrier = await with_slow_carrier(world)
    (link,) = gateway.up
    if source != "as before":
        monkeypatch.setattr(gateway_links, "source_towards", lambda _: source)
    manager(gateway).host_changed(why)
    assert link.in_doubt
    await until(lambda: carrier.asked == 2)
    await until(lambda: gateway.up and gateway.up[0] is not link)


def test_where_nothing_leads_there_is_no_source() -> None:
    assert source_towards(("127.0.0.1", 9)) == "127.0.0.1"
    assert source_towards(("255.255.255.255", 9)) is None
