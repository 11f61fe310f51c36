"""The model of `socks-tunnel top`: answers and the time go in, rows come out."""

from typing import Any

import pytest

from socks_tunnel.top import model as top_model
from socks_tunnel.top.model import Model


def flow(conn_id: int, seconds: float, up: int = 0, down: int = 0, **fields: Any) -> dict[str, Any]:
    return {
        "peer": "office",
        "conn_id": conn_id,
        "kind": "tcp",
        "command": "connect",
        "client": "127.0.0.1:50284",
        "destination": "wiki.corp:443",
        "state": "open",
        "seconds": seconds,
        "up": up,
        "down": down,
        "worker": 0,
        **fields,
    }


def worker(index: int = 0, pid: int = 100, **fields: Any) -> dict[str, Any]:
    return {
        "index": index,
        "pid": pid,
        "state": "running",
        "restarts": 0,
        "flows_tcp": 0,
        "flows_udp": 0,
        "bytes_up": 0,
        "bytes_down": 0,
        "buffered": 0,
        **fields,
    }


def status(
    *workers: dict[str, Any], pid: int = 1, links: Any = (), **counters: int
) -> dict[str, Any]:
    names = ("flows_tcp", "flows_udp", "bytes_up", "bytes_down", "buffered")
    return {
        "instance": "laptop",
        "role": "gateway",
        "version": "0.1.0",
        "pid": pid,
        "uptime": 6.2,
        "state": "ready",
        "listen": ["127.0.0.1:1080"],
        "metrics": None,
        "links": list(links),
        "workers": list(workers),
        "counters": {name: sum(w[name] for w in workers) for name in names} | counters,
    }


def rates(model: Model) -> dict[int, tuple[float | None, float | None]]:
    return {row.conn_id: (row.up_rate, row.down_rate) for row in model.flows(100)[0]}


def order(model: Model, limit: int = 100) -> list[int]:
    return [row.conn_id for row in model.flows(limit)[0]]


def test_nothing_is_known_before_the_first_sample() -> None:
    model = Model()
    assert model.summary is None
    assert model.flows(10) == ([], 0)


def test_a_rate_is_what_two_samples_differ_in_over_the_flows_own_time() -> None:
    model = Model()
    model.sample(10.0, status(), [flow(1, 5.0, 1000, 50_000)])
    assert rates(model) == {1: (None, None)}
    # The second answer was half a second under way; the worker's clock tells the truth.
    model.sample(11.5, status(), [flow(1, 6.0, 1500, 90_000)])
    assert rates(model) == {1: (500.0, 40_000.0)}
    model.sample(12.5, status(), [flow(1, 7.0, 1500, 90_000)])
    assert rates(model) == {1: (0.0, 0.0)}


def test_a_flow_that_began_since_the_last_sample_has_a_rate_at_once() -> None:
    model = Model()
    model.sample(10.0, status(), [])
    model.sample(12.0, status(), [flow(1, 0.001, 100, 4000), flow(2, 2.5, 100, 4000)])
    assert rates(model) == {1: (50.0, 2000.0), 2: (None, None)}


def test_without_a_sample_before_there_is_no_rate() -> None:
    model = Model()
    model.sample(10.0, status(), [flow(1, 0.001, 100, 4000)])
    assert rates(model) == {1: (None, None)}


def test_a_flow_that_was_not_among_the_first_for_a_while_is_measured_over_that_while() -> None:
    model = Model()
    model.sample(10.0, status(), [flow(1, 5.0, 0, 0), flow(2, 5.0)])
    model.sample(11.0, status(), [flow(2, 6.0)])
    model.sample(12.0, status(), [flow(1, 7.0, 100, 200)])
    assert rates(model) == {1: (50.0, 100.0)}


@pytest.mark.parametrize("again", [flow(1, 2.0, 10, 10), flow(1, 5.0, 900, 900)])
def test_another_flow_of_the_same_number_is_another_flow(again: dict[str, Any]) -> None:
    model = Model()
    model.sample(10.0, status(), [flow(1, 5.0, 900, 900)])
    model.sample(11.0, status(), [again])
    assert rates(model) == {1: (None, None)}


def test_the_same_number_on_another_worker_or_link_is_another_flow() -> None:
    model = Model()
    model.sample(10.0, status(), [flow(1, 5.0), flow(1, 5.0, worker=1), flow(1, 5.0, peer="b")])
    model.sample(
        11.0, status(), [flow(1, 6.0, 1), flow(1, 6.0, 2, worker=1), flow(1, 6.0, 3, peer="b")]
    )
    assert [row.up_rate for row in model.flows(9)[0]] == [3.0, 2.0, 1.0]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_model, "SEEN_MAX", 3)
    model = Model()
    model.sample(10.0, status(), [flow(1, 5.0), flow(2, 5.0)])
    model.sample(11.0, status(), [flow(1, 6.0), flow(3, 6.0), flow(4, 6.0)])
    assert {conn_id for _, conn_id, _ in model._seen} == {1, 3, 4}, "2 was seen least recently"


# --- order ------------------------------------------------------------------------------------


def busy() -> Model:
    model = Model()
    model.sample(10.0, status(), [flow(n, 5.0 + n, 100 * n) for n in (1, 2, 3)])
    model.sample(
        11.0,
        status(flows_tcp=7, flows_udp=1),
        [flow(1, 7.0, 1000), flow(2, 8.0, 300), flow(3, 9.0, 301)],
    )
    return model


def test_orders() -> None:
    model = busy()
    assert model.order == "rate"
    assert order(model) == [1, 2, 3]
    model.next_order()
    assert (model.order, order(model)) == ("total", [1, 3, 2])
    model.next_order()
    assert (model.order, order(model)) == ("age", [3, 2, 1])
    model.next_order()
    assert model.order == "rate"


def test_what_does_not_fit_is_counted_with_what_was_not_sent() -> None:
    model = busy()
    assert [len(model.flows(limit)[0]) for limit in (0, 2, 3, 9)] == [0, 2, 3, 3]
    assert [model.flows(limit)[1] for limit in (-1, 0, 2, 3, 9)] == [8, 8, 6, 5, 5]
    model.sample(12.0, status(flows_tcp=0), [flow(1, 8.0)])
    assert model.flows(1)[1] == 0, "the counts are a moment older than the rows"


def test_equal_flows_keep_their_places() -> None:
    model = Model()
    for rows in ([3, 1, 2], [2, 3, 1]):
        model.sample(10.0, status(), [flow(n, 5.0, 7) for n in rows])
        for _ in range(3):
            assert order(model) == [1, 2, 3]
            model.next_order()


def test_an_unknown_rate_counts_as_none() -> None:
    model = Model()
    model.sample(10.0, status(), [flow(1, 5.0, 10**9), flow(2, 5.0)])
    model.sample(11.0, status(), [flow(2, 6.0, 1), flow(3, 9.0, 10**9)])
    assert order(model) == [2, 3]


# --- workers, links, totals -------------------------------------------------------------------


def test_workers_and_totals_have_rates() -> None:
    model = Model()
    model.sample(10.0, status(worker(0), worker(1, pid=101)), [])
    assert model.summary is not None
    assert model.summary.up_rate is None
    model.sample(
        12.0,
        status(
            worker(0, bytes_up=100, bytes_down=4000, flows_tcp=2, flows_udp=1),
            worker(1, pid=101, bytes_up=300, buffered=9),
        ),
        [],
    )
    assert [(w.up_rate, w.down_rate) for w in model.workers] == [(50.0, 2000.0), (150.0, 0.0)]
    assert [(w.flows, w.buffered) for w in model.workers] == [(3, 0), (0, 9)]
    summary = model.summary
    assert (summary.up_rate, summary.down_rate) == (200.0, 2000.0)
    assert (summary.up, summary.down, summary.flows) == (400, 4000, 3)


def test_a_worker_that_was_started_again_begins_anew() -> None:
    model = Model()
    model.sample(10.0, status(worker(bytes_up=500), worker(1, pid=101)), [])
    model.sample(11.0, status(worker(pid=102, bytes_up=600), worker(1, pid=101, bytes_up=9)), [])
    assert [w.up_rate for w in model.workers] == [None, 9.0]
    assert model.summary is not None
    assert model.summary.up_rate == 9.0, "of those that are known"
    model.sample(12.0, status(worker(pid=102, bytes_up=700), worker(1, pid=101, bytes_up=9)), [])
    assert model.workers[0].up_rate == 100.0


@pytest.mark.parametrize("state", ["hanging", "waiting"])
def test_a_worker_that_does_not_answer_has_no_rate_nor_after_it(state: str) -> None:
    """Its counts are shown as 0 meanwhile, and come back all at once."""
    model = Model()
    model.sample(10.0, status(worker(bytes_up=500)), [])
    model.sample(11.0, status(worker(bytes_up=0, state=state)), [])
    assert model.workers[0].up_rate is None
    model.sample(12.0, status(worker(bytes_up=600)), [])
    assert model.workers[0].up_rate is None
    model.sample(13.0, status(worker(bytes_up=610)), [])
    assert model.workers[0].up_rate == 10.0


def test_links() -> None:
    up = {
        "peer": "office",
        "state": "up",
        "rtt_ms": 1.5,
        "flows": 3,
        "buffered": 7,
        "path": "a -> b",
    }
    down = {"peer": "lab", "state": "down", "rtt_ms": None, "path": None, "detail": "refused"}
    model = Model()
    model.sample(10.0, status(links=[up, down]), [])
    first, second = model.links
    assert (first.peer, first.rtt_ms, first.flows, first.detail) == ("office", 1.5, 3, "a -> b")
    assert (second.state, second.rtt_ms, second.flows, second.detail) == (
        "down",
        None,
        0,
        "refused",
    )


# --- an instance that goes away ---------------------------------------------------------------


def test_an_instance_that_is_lost_keeps_its_last_picture() -> None:
    model = Model()
    model.sample(10.0, status(), [flow(1, 5.0)])
    model.lost("Connection refused")
    assert model.lost_because == "Connection refused"
    assert order(model) == [1]
    model.sample(12.0, status(), [flow(1, 7.0, 10)])
    assert rates(model) == {1: (5.0, 0.0)}


def test_an_instance_that_answers_again_is_not_lost() -> None:
    model = Model()
    model.lost("Connection refused")
    model.sample(10.0, status(), [])
    assert model.lost_because is None


def test_an_instance_that_was_restarted_begins_anew() -> None:
    model = Model()
    model.sample(10.0, status(worker(bytes_up=5)), [flow(1, 5.0)])
    model.sample(12.0, status(worker(bytes_up=9), pid=2), [flow(1, 7.0, 10)])
    assert rates(model) == {1: (None, None)}
    assert model.workers[0].up_rate is None


def test_flows_that_wait_for_a_link_are_shown_with_the_time_that_they_have_left() -> None:
    row = {
        "peer": "office",
        "state": "down",
        "rtt_ms": None,
        "flows": 0,
        "buffered": 0,
        "detail": "nobody answers",
        "waiting_flows": 12,
        "waiting_since": "2026-11-22T21:28:02+00:00",
        "waiting_left": 3400,
        "waiting_held": 34816,
    }
    model = Model()
    model.sample(10.0, status(links=[row]), [flow(1, 5.0, linked=False), flow(2, 5.0, linked=True)])
    assert model.links[0].flows == 12
    waits = "for another 3400 s, with 34,816 bytes, since 21:28:02 UTC"
    assert model.links[0].detail == f"12 flows wait, {waits}; nobody answers"
    assert [row.state for row in model.flows(10)[0]] == ["no link", "open"]
    one = {**row, "waiting_flows": 1, "detail": None}
    model.sample(11.0, status(links=[one]), [])
    assert model.links[0].detail == f"1 flow waits, {waits}"
