"""Figures of transports become counters of the instance."""

from socks_tunnel.ops.labels import TRANSPORT_DROPS
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.peer.transport import TransportStats
from socks_tunnel.supervisor.transport_meter import LOOKS_MAX, TransportMeter


class Link:
    def __init__(self, **figures: float) -> None:
        self.stats = TransportStats(**figures)  # type: ignore[arg-type]
        self.looks = 0

    def now(self, **figures: float) -> None:
        self.stats = TransportStats(**figures)  # type: ignore[arg-type]


def test_counters_go_on_from_link_to_link_and_gauges_end_with_theirs() -> None:
    metrics = Metrics()
    meter = TransportMeter(metrics)
    one, two = Link(retransmissions=5, cwnd=1000, outstanding=10, rtt=0.02), Link(cwnd=500)
    meter.look([one, two])
    assert metrics.transport_retransmissions_total.value == 5
    assert metrics.transport_cwnd_bytes.value == 1500
    assert metrics.transport_outstanding_bytes.value == 10
    one.now(retransmissions=8, cwnd=2000, sacks_sent=4, sacks_received=3, timeouts=1)
    meter.look([one, two])
    assert metrics.transport_retransmissions_total.value == 8
    assert metrics.transport_sacks_total.labels("sent").value == 4
    assert metrics.transport_sacks_total.labels("received").value == 3
    assert metrics.transport_timeouts_total.value == 1
    one.now(retransmissions=9, packets_sent=7, packets_received=6, bytes_sent=70, bytes_received=60)
    meter.ended(one)  # what came since the last look is not lost
    meter.look([two])
    assert metrics.transport_retransmissions_total.value == 9
    assert metrics.transport_packets_total.labels("sent").value == 7
    assert metrics.transport_packets_total.labels("received").value == 6
    assert metrics.transport_bytes_total.labels("sent").value == 70
    assert metrics.transport_bytes_total.labels("received").value == 60
    assert metrics.transport_cwnd_bytes.value == 500


def test_round_trips_are_observed_where_they_are_known() -> None:
    metrics = Metrics()
    meter = TransportMeter(metrics)
    meter.look([Link(rtt=0.02, rtt_variation=0.003), Link()])
    assert sum(metrics.transport_rtt_seconds.alone.counts) == 1
    assert sum(metrics.transport_rtt_variation_seconds.alone.counts) == 1


def test_a_transport_that_forgets_its_figures_takes_nothing_back() -> None:
    metrics = Metrics()
    meter = TransportMeter(metrics)
    link = Link(retransmissions=5)
    meter.look([link])
    link.now()
    meter.ended(link)
    assert metrics.transport_retransmissions_total.value == 5


def test_what_transports_drop_is_counted_by_reason() -> None:
    metrics = Metrics()
    meter = TransportMeter(metrics)
    link = Link()
    dropped = metrics.transport_dropped_total
    link.stats = TransportStats(
        datagrams_dropped=2, dropped={"socket-full": 3, "unauthentic": 4, "window": 1}
    )
    meter.look([link])
    meter.look([link])
    link.stats = TransportStats(datagrams_dropped=2, dropped={"socket-full": 5})
    meter.ended(link)
    assert {reason: value.value for (reason,), value in dropped.series.items()} == {
        **dict.fromkeys(TRANSPORT_DROPS, 0),
        "too-long": 2,
        "socket-full": 5,
        "unauthentic": 4,
        "window": 1,
    }


def test_thousands_of_links_are_looked_at_in_turn() -> None:
    metrics = Metrics()
    meter = TransportMeter(metrics)
    links = [Link(retransmissions=1) for _ in range(2 * LOOKS_MAX + 50)]
    meter.look(links)
    assert metrics.transport_retransmissions_total.value == LOOKS_MAX
    meter.look(links)
    meter.look(links)
    assert metrics.transport_retransmissions_total.value == len(links)


def test_a_link_that_ends_before_the_first_look_is_counted() -> None:
    metrics = Metrics()
    TransportMeter(metrics).ended(Link(retransmissions=2))
    assert metrics.transport_retransmissions_total.value == 2
