"""The proxy auto-config file, run by Node.js: it says what the routes themselves say."""

import json
import random
import subprocess
from collections.abc import Sequence

import pytest

from socks_tunnel.protocol import pac
from socks_tunnel.protocol.addresses import canonical_host
from socks_tunnel.protocol.routes import Route
from socks_tunnel.protocol.settings import RouteSettings
from support.corporate import need

PROXY = "SOCKS5 127.0.0.1:1080"


def route(hosts: Sequence[str], ports: Sequence[int | str] = ("*",)) -> Route:
    return Route.parse(RouteSettings("r", hosts=tuple(hosts), ports=tuple(ports)))


def run(script: str, urls: Sequence[tuple[str, str]]) -> list[str]:
    """What the function answers for each URL and host."""
    call = "asked.map(function (a) { return FindProxyForURL(a[0], a[1]); })"
    program = f"{script}\nvar asked = {json.dumps(urls)};\nconsole.log(JSON.stringify({call}));"
    done = subprocess.run(
        [need("node"), "-e", program], capture_output=True, text=True, check=True, timeout=60
    )
    answers: list[str] = json.loads(done.stdout)
    return answers


def answers(routes: Sequence[Route], urls: Sequence[str]) -> list[str]:
    def host(url: str) -> str:
        authority = url.split("/")[2].rpartition("@")[2]
        return (
            authority[: authority.index("]") + 1] if "[" in authority else authority.split(":")[0]
        )

    script = pac.script(routes, "127.0.0.1", 1080, ["socks5"])
    return run(script, [(url, host(url)) for url in urls])


ROUTES = [
    route(["10.77.0.0/16", "*.internal.corp", "fd77::/16", "wiki.corp"]),
    route(["192.0.2.7", "::ffff:198.51.100.0/120", "2001:db8::5"], [443, "8000-8100"]),
    route(["0.0.0.0"], [2222]),
]


@pytest.mark.parametrize(
    ("url", "through"),
    [
        ("http://10.77.3.4/", True),
        ("http://10.78.0.1/", False),
        ("https://a.internal.corp/", True),
        ("https://A.B.Internal.Corp./x", True),
        ("https://internal.corp/", False),
        ("https://notinternal.corp/", False),
        ("https://wiki.corp/", True),
        ("https://x.wiki.corp/", False),
        ("http://[fd77::1]/", True),
        ("http://[fd78::1]/", False),
        ("https://192.0.2.7/", True),
        ("http://192.0.2.7/", False),
        ("http://192.0.2.7:8050/", True),
        ("http://192.0.2.7:8101/", False),
        ("wss://192.0.2.7/socket", True),
        ("https://198.51.100.9/", True),
        ("https://[::ffff:198.51.100.9]/", True),
        ("https://[2001:db8::5]/", True),
        ("https://[2001:db8::6]/", False),
        ("http://user:p@192.0.2.7:443/", True),
        ("http://203.0.113.9:2222/", True),
        ("http://name.example:2222/", False),  # ranges never have names
        ("http://999.77.0.1/", False),
        ("http://example.com/10.77.0.1:443", False),
        ("http://localhost/", False),
        ("http://x.localhost:2222/", False),
        ("http://127.1.2.3:2222/", False),
        ("http://[::1]:2222/", False),
    ],
)
def test_a_route_decides(url: str, through: bool) -> None:
    assert answers(ROUTES, [url]) == [PROXY if through else "DIRECT"]


def test_without_routes_all_goes_through_the_proxy_but_this_host() -> None:
    every = [route(["*"])]
    urls = ["http://example.com/", "http://[2001:db8::1]/", "ftp://192.0.2.1/", "http://127.0.0.1/"]
    assert answers(every, urls) == [PROXY, PROXY, PROXY, "DIRECT"]
    assert answers([], urls) == answers(every, urls)


@pytest.mark.parametrize(
    ("protocols", "answer"),
    [
        (["socks5", "http"], "SOCKS5 [2001:db8::1]:1080"),
        (["http", "socks4"], "PROXY [2001:db8::1]:1080"),
        (["socks4"], "SOCKS [2001:db8::1]:1080"),
    ],
)
def test_the_protocol_that_is_spoken(protocols: list[str], answer: str) -> None:
    script = pac.script([], "2001:db8::1", 1080, protocols)
    assert run(script, [("http://a/", "a")]) == [answer]


def test_random_destinations_are_judged_as_by_the_routes() -> None:
    rng = random.Random(1080)
    labels = ["a", "corp", "internal", "wiki", "example"]

    def address() -> str:
        if rng.random() < 0.5:
            return ".".join(
                str(rng.choice([0, 10, 77, 192, 255, rng.randrange(256)])) for _ in range(4)
            )
        groups = [rng.choice([0, 1, 0xFD77, 0xDB8, rng.randrange(65536)]) for _ in range(8)]
        return ":".join(f"{group:x}" for group in groups)

    def name() -> str:
        return ".".join(rng.choice(labels) for _ in range(rng.randrange(1, 4)))

    def rule() -> str:
        kind = rng.randrange(4)
        if kind == 0:
            found = address()
            return f"{found}/{rng.randrange(0, 129 if ':' in found else 33)}"
        return (address(), f"*.{name()}", name())[kind - 1]

    routes = [
        route([rule() for _ in range(4)], [rng.randrange(1, 400), f"{400 * n + 1}-{400 * n + 300}"])
        for n in range(1, 5)
    ]
    asked, expected = [], []
    for _ in range(2000):
        host = address() if rng.random() < 0.5 else name()
        port = rng.randrange(1, 2500)
        host = str(canonical_host(host))
        if host.startswith("127.") or host == "::1":
            continue
        shown = f"[{host}]" if ":" in host else host
        asked.append((f"http://{shown}:{port}/", host))
        has = any(r.host_rule(host) and r.port_rule(port) for r in routes)
        expected.append(PROXY if has else "DIRECT")
    assert run(pac.script(routes, "127.0.0.1", 1080, ["socks5"]), asked) == expected
    assert {PROXY, "DIRECT"} == set(expected)


def test_a_file_that_no_browser_reads_is_refused() -> None:
    names = [f"host-{number}-{'x' * 40}.example.com" for number in range(20_000)]
    with pytest.raises(ValueError, match="browsers read 1048576"):
        pac.script([route(names)], "127.0.0.1", 1080, ["socks5"])
