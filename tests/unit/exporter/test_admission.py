"""Who may read a page: programs, browsers that are ours, and no page of another site."""

import pytest

from socks_tunnel.exporter.admission import FORBIDDEN, MISDIRECTED, judge


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:9464",
        "127.0.0.1",
        "[::1]:9464",
        "[fe80::1]",
        "192.0.2.1:80",
        "localhost:9464",
        "LOCALHOST",
        "localhost.:9464",
        "gw1.corp:9464",
        "GW1.Corp.",
    ],
)
def test_addresses_and_names_of_ours_are_answered(host: str) -> None:
    assert judge({"host": host}, {"gw1.corp"}) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:9464",
        "gw1.corp.evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "[::1].evil.example",
        "[evil]:9464",
        "127.1",
        "0x7f.1",
        "",
        ":9464",
        "xn--",
    ],
)
def test_a_name_that_was_made_to_point_here_is_refused(host: str) -> None:
    refusal = judge({"host": host}, {"gw1.corp"})
    assert refusal is not None
    assert refusal.status == MISDIRECTED
    assert "metrics.hosts" in refusal.sentence


def test_a_long_name_is_cut_in_the_answer() -> None:
    refusal = judge({"host": "a" * 8000})
    assert refusal is not None
    assert len(refusal.sentence) < 300


def test_a_program_says_neither_origin_nor_site() -> None:
    assert judge({}) is None  # HTTP/1.0
    assert judge({"host": "127.0.0.1:9464"}) is None


@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything"])
def test_a_page_of_another_site_reads_nothing(site: str) -> None:
    headers = {"host": "127.0.0.1:9464", "sec-fetch-site": site}
    for mode, destination in (("cors", "empty"), ("no-cors", "image"), ("navigate", "iframe")):
        asked = {**headers, "sec-fetch-mode": mode, "sec-fetch-dest": destination}
        for linkable in (False, True):
            refusal = judge(asked, linkable=linkable)
            assert refusal is not None
            assert refusal.status == FORBIDDEN


def test_a_link_of_another_site_may_lead_to_a_page_for_people_and_to_no_other() -> None:
    followed = {
        "host": "127.0.0.1:9464",
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "navigate",
        "sec-fetch-dest": "document",
    }
    assert judge(followed, linkable=True) is None
    assert judge(followed) is not None


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_our_own_page_and_the_address_bar_read_all(site: str) -> None:
    assert judge({"host": "127.0.0.1:9464", "sec-fetch-site": site}) is None


def test_an_origin_must_be_ours() -> None:
    headers = {"host": "127.0.0.1:9464"}
    assert judge({**headers, "origin": "http://127.0.0.1:9464"}) is None
    for other in ("http://127.0.0.1:80", "https://127.0.0.1:9464", "null", "http://evil.example"):
        refusal = judge({**headers, "origin": other})
        assert refusal is not None
        assert refusal.status == FORBIDDEN
