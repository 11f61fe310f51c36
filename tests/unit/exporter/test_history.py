"""The last quarter of an hour, from samples and a clock of the test's own."""

from socks_tunnel.exporter import history as module
from socks_tunnel.exporter.history import History, Sums, add_up
from socks_tunnel.ops.multiprocess import Sample


def counted(up: float, down: float, *, flows: float = 0, links: float = 0) -> Sums:
    def sample(metric: str, name: str, value: float, *labels: str) -> Sample:
        return Sample(f"socks_tunnel_{metric}", f"socks_tunnel_{name}", labels, value)

    samples = [
        sample("bytes", "bytes_total", up, "direction", "up", "kind", "tcp"),
        sample("bytes", "bytes_total", down / 2, "direction", "down", "kind", "tcp"),
        sample("bytes", "bytes_total", down / 2, "direction", "down", "kind", "udp"),
        sample("flows_active", "flows_active", flows, "kind", "tcp"),
        sample("links", "links", links, "state", "up"),
        sample("links", "links", 7, "state", "down"),
        sample("policy_decisions", "policy_decisions_total", 3, "verdict", "denied"),
        sample("policy_decisions", "policy_decisions_total", 0, "verdict", "allowed"),
        sample("requests", "requests_total", 1, "command", "connect", "reply", "succeeded"),
        sample("requests", "requests_total", 2, "command", "bind", "reply", "succeeded"),
    ]
    return add_up(samples)


def test_rates_are_of_two_points() -> None:
    history = History()
    history.take(counted(100, 200, flows=3, links=1), 10.0, 1000.0)
    history.take(counted(600, 1200, flows=4, links=1), 15.0, 1005.0)
    last, points = history.since(0)
    assert last == 2
    assert [point.as_row() for point in points] == [
        [1000.0, None, None, 3, 1],
        [1005.0, 100.0, 200.0, 4, 1],
    ]


def test_only_what_came_since_is_told_again() -> None:
    history = History()
    assert history.since(0) == (0, [])
    for number in range(3):
        history.take(counted(number, 0), number, number)
    last, points = history.since(2)
    assert (last, [point.number for point in points]) == (3, [3])
    assert history.since(last) == (3, [])


def test_counters_that_fall_give_no_rate() -> None:
    history = History()
    for moment, up in enumerate((100.0, 5.0, 10.0)):
        history.take(counted(up, 0), float(moment), float(moment))
    assert [point.up for point in history.since(0)[1]] == [None, None, 5.0]


def test_so_many_points_are_kept() -> None:
    history = History()
    for moment in range(module.POINTS + 10):
        history.take(counted(0, 0), float(moment), float(moment))
    _, points = history.since(0)
    assert len(points) == module.POINTS
    assert points[0].number == 11
    assert module.POINTS * module.PERIOD == 900


def test_totals_are_added_up_and_zeros_left_out() -> None:
    history = History()
    history.take(counted(0, 0), 0.0, 0.0)
    assert history.totals["decisions"] == {"denied": 3}
    assert history.totals["replies"] == {"succeeded": 3}
    assert history.totals["dropped"] == {}
