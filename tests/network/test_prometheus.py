"""Debian's Prometheus scrapes a gateway and an endpoint under load; alerts fire and clear.

The rules are those that are shipped, with durations 60 times shorter.
"""

import contextlib
import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.hosts import ENDPOINT_ADDRESS, Host
from support.load import Load
from support.processes import wait_until
from support.prometheus_files import FOLDER, panels, recorded, scaled
from support.tunnels import Site, Tunnel

FACTOR = 60
PORT = 9090

NOTHING_TO_SHOW = {
    # what is shown only where something went wrong, or has an end
    "Datagrams dropped",
    "Look-ups that failed",
    "Reconnects by cause",
    "Refused",
    "Days until it expires",
    "Flows by route",
    "Peers that a route passes over",
}
"""Panels whose queries may have no data in this scene."""


class Prometheus:
    """A Prometheus on the gateway's host, which scrapes both sides."""

    def __init__(self, host: Host, folder: Path, targets: dict[str, str]) -> None:
        program = shutil.which("prometheus")
        if program is None:
            pytest.skip("the Debian package prometheus is not installed")
        self._host = host
        for name in ("recording.rules.yml", "alerts.rules.yml"):
            (folder / name).write_text(scaled((FOLDER / name).read_text("utf-8"), FACTOR))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(folder / "*.rules.yml")],
            "scrape_configs": [
                {
                    "job_name": "socks-tunnel",
                    "static_configs": [
                        {"targets": [address], "labels": {"site": site}}
                        for site, address in targets.items()
                    ],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self.log = folder / "prometheus.log"
        with self.log.open("wb") as log:
            self._process = host.start(
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{PORT}",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of its API."""

        def ask() -> Any:
            query = urllib.parse.urlencode(parameters)
            url = f"http://127.0.0.1:{PORT}/api/v1/{path}?{query}"
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)

        answer = self._host.call(ask)
        assert answer["status"] == "success", answer
        return answer["data"]

    def wait_ready(self) -> None:
        """Waits until it answers."""

        def answers() -> bool:
            with contextlib.suppress(OSError):
                self.get("query", query="1")
                return True
            return False

        wait_until(answers, "Prometheus", timeout=60)

    def query(self, expression: str) -> dict[str, float]:
        """The values of an instant vector, by the site."""
        rows = self.get("query", query=expression)["result"]
        return {row["metric"].get("site", ""): float(row["value"][1]) for row in rows}

    def firing(self) -> set[tuple[str, str]]:
        """Alerts that fire, each with its site."""
        return {
            (alert["labels"]["alertname"], alert["labels"].get("site", ""))
            for alert in self.get("alerts")["alerts"]
            if alert["state"] == "firing"
        }

    def stop(self) -> None:
        """Ends it."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def scene(
    make_site: Callable[[], Site], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Tunnel, Prometheus]]:
    """A tunnel on hosts of its own, and the Prometheus that watches it."""
    folder = tmp_path_factory.mktemp("prometheus")
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(contextlib.closing(make_site()))
        tunnel = site.tunnel(foreground=True)
        where = f"{ENDPOINT_ADDRESS}:{tunnel.metrics_port}"
        tunnel.endpoint_settings["metrics"] = {"listen": where}
        stack.callback(tunnel.stop)
        tunnel.start()
        prometheus = Prometheus(
            site.hosts.gateway,
            folder,
            {"home": f"127.0.0.1:{tunnel.metrics_port}", "office": where},
        )
        stack.callback(prometheus.stop)
        stack.callback(lambda: print(prometheus.log.read_text()[-4000:], tunnel.logs()))
        prometheus.wait_ready()
        yield tunnel, prometheus


def test_prometheus_scrapes_both_sides_under_load(scene: tuple[Tunnel, Prometheus]) -> None:
    tunnel, prometheus = scene
    with Load(tunnel) as load:
        rate = 'sum by (site) (rate(socks_tunnel_bytes_total{direction="down"}[10s]))'
        wait_until(
            lambda: all(prometheus.query(rate).get(site, 0) > 1000 for site in ("home", "office")),
            "rates of both sides",
            timeout=60,
        )
        assert prometheus.query("up") == {"home": 1, "office": 1}
        formats = {
            target["scrapeUrl"]: target["lastError"]
            for target in prometheus.get("targets")["activeTargets"]
        }
        assert set(formats.values()) == {""}
        assert prometheus.query('socks_tunnel_links{state="up"}') == {"home": 1, "office": 1}
        assert prometheus.query('sum by (site) (socks_tunnel_link_paths{kind="host"})') == {
            "home": 1,
            "office": 1,
        }
        for name in ("socks_tunnel_transport_cwnd_bytes", "socks_tunnel_workers"):
            assert min(prometheus.query(name).values()) > 0
        each = prometheus.get("query", query="socks_tunnel_process_cpu_seconds_total")["result"]
        processes = {(row["metric"]["site"], row["metric"]["process"]) for row in each}
        assert processes == {
            (site, process)
            for site in ("home", "office")
            for process in ("supervisor", "exporter", "worker-0", "worker-1")
        }
        wait_until(
            lambda: all(prometheus.query(f"count({name})") for name in sorted(recorded() - RATIOS)),
            "what the recording rules make",
            timeout=60,
        )
        every_panel_has_data(prometheus)
        load.ended_as_wanted()
    assert not [alert for alert in prometheus.firing() if alert[0] not in MAY_FIRE]


RATIOS = {"job_instance:socks_tunnel_dns_failures:ratio_rate5m"}
"""What is recorded only where names are looked up."""

MAY_FIRE = {"SocksTunnelSlowLoop"}
"""A busy machine is late; that is no fault of what is tested."""


def every_panel_has_data(prometheus: Prometheus) -> None:
    for title, expression in panels():
        asked = expression.replace("$__rate_interval", "10s").replace("$job", ".*")
        asked = asked.replace("$instance", ".*")
        found = prometheus.get("query", query=asked)["result"]
        assert found or title in NOTHING_TO_SHOW, f"{title}: {asked}"


def test_alerts_fire_when_the_link_is_cut_and_clear_when_it_is_mended(
    scene: tuple[Tunnel, Prometheus],
) -> None:
    tunnel, prometheus = scene
    expected = {("SocksTunnelNoLink", "home"), ("SocksTunnelDown", "office")}
    tunnel.site.hosts.cut()
    try:
        wait_until(lambda: expected <= prometheus.firing(), "the alerts", timeout=90)
    finally:
        tunnel.site.hosts.mend()
    wait_until(lambda: not prometheus.firing() & expected, "the end of the alerts", timeout=90)
    assert prometheus.query("up") == {"home": 1, "office": 1}
    reconnects = "sum by (site) (socks_tunnel_link_reconnects_total)"
    wait_until(
        lambda: prometheus.query(reconnects).get("home", 0) >= 1, "the reconnect", timeout=60
    )


def test_an_alert_fires_for_a_reload_that_fails_and_clears_with_one_that_does_not(
    scene: tuple[Tunnel, Prometheus],
) -> None:
    tunnel, prometheus = scene
    alert = ("SocksTunnelReloadFailed", "home")
    before = prometheus.query("socks_tunnel_config_hash")["home"]
    path = tunnel.write("gateway", {"log": {"level": "loud"}})
    with pytest.raises(Exception, match="log"):
        tunnel.gateway.control("reload")
    wait_until(lambda: alert in prometheus.firing(), "the alert", timeout=60)
    assert prometheus.query("socks_tunnel_config_hash")["home"] == before
    tunnel.write("gateway", {"log": {"level": "info"}, "resume_timeout": 1800})
    tunnel.gateway.control("reload")
    wait_until(lambda: alert not in prometheus.firing(), "its end", timeout=60)
    assert prometheus.query("socks_tunnel_config_hash")["home"] != before
    assert path.exists()
