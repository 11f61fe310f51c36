"""What `socks-tunnel top` draws, at sizes of terminals that there are."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from socks_tunnel.top.model import Model, RouteRow
from socks_tunnel.top.screen import age, count, picture

LINK = {"peer": "office", "state": "up", "rtt_ms": 12.41, "flows": 9, "path": "192.0.2.20 port 1"}


def worker(index: int, **fields: Any) -> dict[str, Any]:
    row = {"index": index, "pid": 100 + index, "state": "running", "restarts": 0, "buffered": 0}
    return row | dict.fromkeys(("flows_tcp", "flows_udp", "bytes_up", "bytes_down"), 0) | fields


def flow(number: int, up: int) -> dict[str, Any]:
    return {
        "peer": "office",
        "conn_id": number,
        "kind": "tcp",
        "client": "127.0.0.1:50284",
        "destination": f"host-{number:05}.internal.corp:443",
        "state": "open",
        "seconds": 5.0,
        "up": up,
        "down": 0,
        "worker": 0,
    }


def full(flows: int = 9, links: int = 1, workers: int = 2, sent: int | None = None) -> Model:
    model = Model()
    model.sample(
        0.0,
        {
            "instance": "laptop",
            "role": "gateway",
            "version": "0.1.0",
            "pid": 1,
            "uptime": 6.2,
            "state": "ready",
            "listen": ["127.0.0.1:1080", "unix:/run/socks-tunnel/laptop/socks.sock"],
            "links": [LINK] * links,
            "workers": [worker(index) for index in range(workers)],
            "counters": {"flows_tcp": flows, "flows_udp": 0, "bytes_up": 1, "bytes_down": 2},
        },
        [flow(number, 10**7 - number) for number in range(flows if sent is None else sent)],
    )
    return model


def drawn(model: Model, width: int = 80, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    with console.capture() as captured:
        console.print(picture(model, width, height))
    return captured.get().splitlines()


def test_everything_is_on_a_small_screen() -> None:
    lines = drawn(full())
    assert lines[0].startswith("gateway laptop  ready  up 6.2s  127.0.0.1:1080 unix:/run/")
    assert lines[1].startswith("9 TCP flows, 0 UDP associations  up 1B  down 2B")
    assert re.match(r"link +state +rtt ms +flows +queue", lines[2])
    assert re.match(r"office +up +12\.4 +9 +0 +192\.0\.2\.20 port 1", lines[3])
    assert re.match(r"worker +pid +state +restarts", lines[4])
    assert re.match(r" +0 +100 +running +0 +0 +0 +- +-", lines[5])
    assert re.match(r"kind +client +destination +age +up B/s +down B/s +total", lines[7])
    assert re.match(r"tcp +127\.0\.0\.1:50284 +host-00000\.\S+ +5\.0s +- +- +10\.0M", lines[8])
    assert "host-00008" in lines[16]
    assert lines[-1].startswith("q quit   s sort, now by bytes/s")
    assert len(lines) == 24


def test_routes_are_there_if_there_are_any_and_those_that_are_passed_over_come_first() -> None:
    model = full()
    assert not any(line.startswith("route ") for line in drawn(model))
    model.routes = [
        RouteRow("branch", "office", "preferred", ""),
        RouteRow("branch", "office-b", "passed over", "its link is down"),
        *(RouteRow("more", f"peer-{number}", "preferred", "") for number in range(50)),
    ]
    lines = drawn(model)
    at = next(index for index, line in enumerate(lines) if line.startswith("route "))
    assert re.match(r"branch +office-b +passed over +its link is down", lines[at + 1])
    assert re.match(r"branch +office +preferred", lines[at + 2])
    assert any("more peers of routes" in line for line in lines)
    assert len(lines) == 24
    assert any(line.startswith("tcp ") for line in lines)


def test_a_wide_screen_has_the_peer_and_the_state_too() -> None:
    lines = drawn(full(), width=140)
    assert re.match(r"peer +kind +client +destination +state +age", lines[7])
    assert "host-00000.internal.corp:443" in lines[8]


def test_flows_that_do_not_fit_are_counted() -> None:
    lines = drawn(full(flows=4321, sent=250))
    shown = [line for line in lines if "host-" in line]
    assert lines[-2].startswith(f"… {4321 - len(shown):,} more flows")
    assert len(shown) == 14
    assert len(drawn(full(flows=15))) == 24
    assert any("host-00014" in line for line in drawn(full(flows=15))), "the last that fits"
    assert drawn(full(flows=16))[-2].startswith("… 2 more flows")


def test_links_and_workers_that_do_not_fit_are_counted_and_the_bad_ones_shown() -> None:
    model = full(links=50, workers=16)
    model.links[30] = model.links[30].__class__("lab", "down", None, 0, 0, "Connection refused")
    model.workers[9] = model.workers[9].__class__(9, 0, "waiting", 3, 0, 0, None, None)
    lines = drawn(model)
    assert re.match(r"lab +down +- .*Connection refused", lines[3])
    assert any(line.startswith("… 45 more links") for line in lines)
    assert any(re.match(r" +9 +- +waiting +3", line) for line in lines)
    assert any(re.match(r"… \d+ more workers", line) for line in lines)
    assert any("host-" in line for line in lines)


@pytest.mark.parametrize("width", [1, 20, 40, 80, 99, 100, 300])
@pytest.mark.parametrize("height", [1, 2, 3, 5, 8, 10, 24, 60])
def test_no_size_breaks_it(width: int, height: int) -> None:
    for model in (Model(), full(), full(flows=5000, sent=250, links=40, workers=40)):
        lines = drawn(model, width, height)
        assert all(len(line) <= width for line in lines)
        if height >= 10:
            assert len(lines) <= height


def test_a_lost_instance_is_named_as_such() -> None:
    model = full()
    model.lost("Connection refused")
    assert "no answer: Connection refused; trying again" in drawn(model)[0]


def test_text_of_others_is_no_markup_and_moves_no_cursor() -> None:
    model = full(flows=1)
    model._flows[0] = type(model._flows[0])(
        "[red]", 1, "tcp", "[bold]x", "\x1b[2Jy", "open", 1.0, 0, 0, None, None, 0
    )
    text = "\n".join(drawn(model, width=140))
    assert "[bold]x" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.4, "0"),
        (999, "999"),
        (999.6, "1.00k"),
        (1234, "1.23k"),
        (12_345, "12.3k"),
        (99_949, "99.9k"),
        (99_950, "100k"),
        (999_499, "999k"),
        (999_500, "1.00M"),
        (45_600_000, "45.6M"),
        (10**12, "1.00T"),
        (999 * 10**15, "999P"),
    ],
)
def test_numbers(number: float | None, text: str) -> None:
    assert count(number) == text
    assert len(text) <= 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (9.94, "9.9s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (60, "1:00"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (86_399, "23:59:59"),
        (86_400, "1d00h"),
        (400 * 86_400, "400d00h"),
    ],
)
def test_ages(seconds: float, text: str) -> None:
    assert age(seconds) == text
