"""Whatever the rendezvous service counts is exported, under labels that are known from the start."""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import socks_tunnel
from socks_tunnel.ops.exposition import written
from socks_tunnel.rendezvous import redis_bus, registry, relay
from socks_tunnel.rendezvous.figures import Figures

ROOMS = Path(socks_tunnel.__file__).parent


@dataclass
class Node:
    """What a service has counted."""

    counts: Counter[str] = field(default_factory=Counter)
    door_counts: Counter[str] = field(default_factory=Counter)
    clients: int = 0
    channels: int = 0
    redis_is_up: bool | None = None


def scraped(figures: Figures, node: Node) -> dict[tuple[str, ...], float]:
    """The samples of a node's own metrics, without the beginning of their names."""
    text = written(figures.exported(node), "text").decode()
    return {
        (
            sample.name.removeprefix("socks_tunnel_rendezvous_"),
            *sample.labels.values(),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("socks_tunnel_rendezvous_")
    }


def test_all_that_is_known_is_there_from_zero() -> None:
    samples = scraped(Figures(), Node())
    assert set(samples.values()) == {0}
    for sample in (
        ("clients",),
        ("relay_dropped_total", "late"),
        ("refused_total", "not-listed"),
        ("connections_refused_total", "flood"),
        ("parcels_dropped_total", "client-gone"),
        ("protocol_errors_total", "proof"),
    ):
        assert sample in samples


def test_what_is_counted_moves_the_metric_of_its_kind() -> None:
    node, figures = Node(clients=3, channels=2), Figures()
    node.counts.update(
        {
            "joined": 5,
            "guests": 2,
            "replaced": 1,
            "passed": 9,
            "refused: not listed": 4,
            "refused: outbox": 1,
            "ended: outbox": 2,
            "not passed: rate": 6,
            "dropped: sender gone too": 1,
            "protocol: out-of-turn": 1,
            "relayed datagrams": 100,
            "relayed bytes": 120_000,
            "relay dropped: late": 7,
            "bugs": 1,
        }
    )
    node.door_counts["unproved"] = 8
    assert {sample: value for sample, value in scraped(figures, node).items() if value} == {
        ("clients",): 3,
        ("relayed_connections",): 2,
        ("joins_total", "client"): 5,
        ("joins_total", "guest"): 2,
        ("replaced_total",): 1,
        ("parcels_total",): 9,
        ("refused_total", "not-listed"): 4,
        ("refused_total", "outbox"): 3,
        ("parcels_dropped_total", "rate"): 6,
        ("parcels_dropped_total", "sender-gone-too"): 1,
        ("protocol_errors_total", "out-of-turn"): 1,
        ("relay_datagrams_total",): 100,
        ("relay_bytes_total",): 120_000,
        ("relay_dropped_total", "late"): 7,
        ("bugs_total",): 1,
        ("connections_refused_total", "unproved"): 8,
    }
    node.counts["relay dropped: late"] += 1
    assert scraped(figures, node)["relay_dropped_total", "late"] == 8


def test_redis_has_metrics_only_where_there_is_one() -> None:
    assert ("redis_up",) not in scraped(Figures(), Node())
    node = Node(Counter({"redis: dropped": 3, "from other nodes": 2}), redis_is_up=True)
    samples = scraped(Figures(), node)
    assert samples["redis_up",] == 1
    assert samples["redis_dropped_total",] == 3
    assert samples["node_messages_total",] == 2
    node.redis_is_up = False
    assert scraped(Figures(), node)["redis_up",] == 0


def words(place: Path) -> Iterator[tuple[str, str]]:
    """The words under which a module counts, each with what is known of it: `whole` or `prefix`."""
    for node in ast.walk(ast.parse(place.read_text("utf-8"))):
        if not isinstance(node, ast.Subscript) or not ast.unparse(node.value).endswith("counts"):
            continue
        either = node.slice
        for word in (either.body, either.orelse) if isinstance(either, ast.IfExp) else (either,):
            text = word.values[0] if isinstance(word, ast.JoinedStr) else word
            assert isinstance(text, ast.Constant), f"{place}: {ast.unparse(node)}"
            yield str(text.value), "whole" if text is word else "prefix"


@pytest.mark.parametrize("place", sorted((ROOMS / "rendezvous").glob("*.py")), ids=lambda p: p.stem)
def test_each_word_of_the_sources_has_a_metric(place: Path) -> None:
    known = scraped(Figures(), Node(redis_is_up=True))
    figures = Figures()
    for word, of in words(place):
        node = Node(redis_is_up=True)
        counts = node.door_counts if place.stem == "limits" else node.counts
        counts[word if of == "whole" else f"{word}rate"] += 1
        changed = {sample for sample, value in scraped(figures, node).items() if value}
        figures = Figures()
        moved = changed - {("redis_up",)}
        assert len(moved) == 1, (word, moved)
        if of == "whole":
            assert moved <= set(known), f"{word!r} is not there from 0"


def test_the_sources_are_where_the_words_were_looked_for() -> None:
    modules = (registry, relay, redis_bus)
    found = {word for module in modules for word, _ in words(Path(str(module.__file__)))}
    assert {"passed", "relayed bytes", "redis: dropped", "not passed: "} <= found
