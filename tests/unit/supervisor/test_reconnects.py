"""Links that come up in place of another, by what was wrong with that one."""

from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.supervisor import reconnects
from socks_tunnel.supervisor.reconnects import Reconnects


def counts(metrics: Metrics) -> dict[str, float]:
    series = metrics.link_reconnects_total.series.items()
    return {labels[0]: value.value for labels, value in series}


def test_the_first_link_of_a_peer_is_no_reconnect() -> None:
    metrics = Metrics()
    Reconnects(metrics).up("office", None)
    assert counts(metrics) == {}


def test_a_link_counts_for_what_ended_the_one_before() -> None:
    metrics = Metrics()
    each = Reconnects(metrics)
    each.lost("office", "path-lost")
    each.lost("office", "silence")
    each.up("laptop", None)
    each.up("office", None)
    each.up("office", None)
    assert counts(metrics) == {"silence": 1}


def test_a_link_beside_another_counts_for_what_was_wrong_with_that() -> None:
    metrics = Metrics()
    each = Reconnects(metrics)
    each.lost("office", "silence")
    each.up("office", "network-changed")
    each.up("office", None)
    assert counts(metrics) == {"network-changed": 1}


def test_so_many_peers_are_remembered() -> None:
    metrics = Metrics()
    each = Reconnects(metrics)
    for number in range(reconnects.REMEMBERED_MAX + 1):
        each.lost(f"p{number}", "silence")
    each.up("p0", None)
    assert counts(metrics) == {}
    each.up("p1", None)
    assert counts(metrics) == {"silence": 1}
