"""The status page in a browser, headless Chromium on the gateway's host, with traffic.

The gateway shows no destinations, as is usual; the endpoint does (`metrics.show_destinations`).
"""

import asyncio
import base64
import contextlib
import json
import os
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.browser import Browser, browser
from support.hosts import ENDPOINT_ADDRESS, TARGET_ADDRESS
from support.load import Load
from support.tunnels import Site, Tunnel

PATIENCE = 60.0

COLLECT = """
window.violations = [];
addEventListener('securitypolicyviolation', e => violations.push(e.violatedDirective + ' ' + e.blockedURI));
addEventListener('error', e => violations.push(String(e.message)));
"""

DRAWN = """
[...document.querySelectorAll('#throughput g[data-points]')].map(
  g => [Number(g.dataset.points), g.getBBox().width, g.getBBox().height])
"""


@pytest.fixture(scope="module")
def scene(make_site: Callable[[], Site]) -> Iterator[Tunnel]:
    """A tunnel on hosts of its own."""
    with contextlib.closing(make_site()) as site:
        tunnel = site.tunnel(foreground=True)
        tunnel.endpoint_settings["metrics"] = {
            "listen": f"{ENDPOINT_ADDRESS}:{tunnel.metrics_port}",
            "show_destinations": True,
        }
        tunnel.gateway_settings["routes"] = [
            {"name": "inside", "hosts": "*", "ports": "*", "peers": ["office"]}
        ]
        with tunnel.running():
            yield tunnel


pytestmark = pytest.mark.timeout(
    480
)  # on a loaded machine, with the start of all and the browser's


async def until(page: Browser, expression: str, what: str) -> Any:
    """The first true value of an expression."""
    async with asyncio.timeout(PATIENCE):
        while not (value := await page.call(expression)):
            await asyncio.sleep(0.1)
    assert value, what
    return value


async def visit(page: Browser, url: str) -> None:
    await page.ask("Page.navigate", url=url)
    await until(
        page, f"location.href === {json.dumps(url)} && document.readyState === 'complete'", url
    )


async def picture(page: Browser, name: str, folder: Path) -> bytes:
    """A screenshot, kept where CI collects artifacts if there is such a place."""
    shot = await page.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
    content = base64.b64decode(shot["data"])
    folder = Path(os.environ.get("SOCKS_TUNNEL_ARTIFACTS", folder))
    (folder / f"{name}.png").write_bytes(content)
    return content


async def test_the_page_shows_traffic(scene: Tunnel, tmp_path: Path) -> None:
    gateway = f"http://127.0.0.1:{scene.metrics_port}/"
    endpoint = f"http://{ENDPOINT_ADDRESS}:{scene.metrics_port}/"
    prefix = scene.site.hosts.gateway.command()
    rebound = f"--host-resolver-rules=MAP rebound.example 127.0.0.1:{scene.metrics_port}"
    with Load(scene) as load:
        async with browser(rebound, prefix=prefix) as page:
            await page.ask("Page.enable")
            await page.ask("Page.addScriptToEvaluateOnNewDocument", source=COLLECT)
            await visit(page, gateway)
            await it_is_live_and_draws(page)
            await it_says_how_it_is(page)
            await a_reload_that_fails_is_shown(page, scene)
            await nothing_comes_from_elsewhere(page, gateway)
            assert TARGET_ADDRESS not in await page.call("document.body.innerText")
            assert await page.call("document.getElementById('flow-section').hidden")
            await it_fits_a_phone_and_the_dark(page, tmp_path)
            await other_sites_read_nothing(page, scene, gateway, endpoint)
            await visit(page, endpoint)
            await until(
                page,
                f"document.getElementById('flow-table').innerText.includes('{TARGET_ADDRESS}')",
                "destinations of the endpoint",
            )
            await until(
                page,
                "document.getElementById('policies').innerText.includes('10.77.1.0/24')",
                "the endpoint's policy",
            )
        load.ended_as_wanted()


async def it_is_live_and_draws(page: Browser) -> None:
    """Both lines have points, the chart is as high as the traffic, and points keep coming."""
    await until(
        page, f"{DRAWN}.length === 2 && {DRAWN}.every(([n, w, h]) => n >= 2 && h > 5)", "a chart"
    )
    seen = await page.call(f"{DRAWN}[0][0]")
    await until(page, f"{DRAWN}[0][0] > {seen}", "another point")
    tiles = "document.getElementById('tiles').innerText"
    await until(page, rf"/Down now\s+[0-9.]+ [kMG]?B\/s/.test({tiles})", "the rate")
    await until(page, rf"/Open flows\s+[1-9]/.test({tiles})", "the open flows")


async def it_says_how_it_is(page: Browser) -> None:
    text = "document.getElementById('{}').textContent === '{}'"
    await until(page, text.format("name", "gateway"), "the name")
    await until(page, text.format("state", "ready"), "the state")
    await until(page, "document.getElementById('notice').hidden", "no notice")
    cells = "[...document.querySelectorAll('#{} td')].map(cell => cell.textContent)"
    links = cells.format("links")
    await until(page, f"{links}.slice(0, 2).join() === 'office,up'", "the link")
    await until(page, f"{links}.some(cell => /^host, ipv[46]$/.test(cell))", "its path")
    routes = f"{cells.format('routes')}.slice(0, 4).join()"
    await until(page, f"{routes} === 'inside,office,first,preferred'", "the route")
    await until(page, "document.querySelectorAll('#workers tr').length === 3", "both workers")


async def a_reload_that_fails_is_shown(page: Browser, scene: Tunnel) -> None:
    """As all warnings and errors of the supervisor are."""
    scene.write("gateway", {"log": {"level": "loud"}})
    scene.gateway.signal(signal.SIGHUP)
    said = "document.getElementById('problems').innerText"
    await until(page, f"{said}.includes('the old configuration stays')", "the error")
    scene.write("gateway", {"log": {"level": "info"}})
    scene.gateway.control("reload")


async def nothing_comes_from_elsewhere(page: Browser, url: str) -> None:
    used = await page.call("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert set(used) <= {f"{url}events"}
    assert await page.call("violations") == []


async def it_fits_a_phone_and_the_dark(page: Browser, folder: Path) -> None:
    await picture(page, "status-page", folder)
    light = await page.call("getComputedStyle(document.body).backgroundColor")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    await page.ask("Emulation.setEmulatedMedia", features=dark)
    await until(page, f"getComputedStyle(document.body).backgroundColor !== '{light}'", "the dark")
    await page.ask(
        "Emulation.setDeviceMetricsOverride",
        width=360,
        height=740,
        deviceScaleFactor=2,
        mobile=True,
    )
    await until(page, "innerWidth === 360", "a phone")
    # What is wider than the screen scrolls in its own box, and not the page.
    await until(page, "document.documentElement.scrollWidth <= 360", "a page that fits")
    content = await picture(page, "status-page-phone-dark", folder)
    assert content.startswith(b"\x89PNG")
    assert len(zlib.compress(content)) > 10_000  # a blank picture is far smaller
    await page.ask("Emulation.clearDeviceMetricsOverride")


async def other_sites_read_nothing(
    page: Browser, scene: Tunnel, gateway: str, endpoint: str
) -> None:
    """Neither a page of another origin nor a name that was made to point here."""
    await visit(page, f"{endpoint}readyz")  # a page without a policy that forbids to ask
    for path in ("metrics", "events", "readyz", ""):
        read = f"fetch('{gateway}{path}').then(answer => answer.text(), error => 'refused')"
        assert await page.call(read) == "refused"
    framed = f"""
      new Promise(resolve => {{
        const frame = document.createElement('iframe');
        frame.onload = () => {{ try {{ resolve(frame.contentDocument.body.innerText) }} catch (e) {{ resolve('refused') }} }};
        frame.src = '{gateway}';
        document.body.append(frame);
        setTimeout(() => resolve('refused'), 2000);
      }})"""
    assert await page.call(framed) in {"refused", ""}
    await page.ask("Page.navigate", url=f"http://rebound.example:{scene.metrics_port}/")
    await until(page, "location.hostname === 'rebound.example'", "the rebound name")
    answer = await until(page, "document.body && document.body.innerText", "an answer")
    assert "this is not rebound.example" in answer
