"""Rules, alerts and dashboard: promtool's own tests, names against what is exported, runbooks."""

import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

import socks_tunnel
from support.prometheus_files import (
    FOLDER,
    dashboard,
    exported,
    known_values,
    panels,
    recorded,
    rules,
    scaled,
    selectors,
)

OPERATIONS = (FOLDER.parents[1] / "docs/operations.md").read_text("utf-8")

TARGET_LABELS = {"job", "instance", "site"}
"""What Prometheus adds to each series, or the scrape example does."""


def expressions() -> Iterator[tuple[str, str]]:
    for rule in (*rules("recording.rules.yml"), *rules("alerts.rules.yml")):
        yield rule.get("record") or rule["alert"], rule["expr"]
    yield from panels()


def promtool(*arguments: str) -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("the Debian package prometheus is not installed")
    done = subprocess.run(
        [program, *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_finds_no_fault() -> None:
    promtool("check", "config", "prometheus.yml")


def test_each_alert_fires_and_clears_as_its_unit_test_says() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts.test.yml")
    tested = set(re.findall(r"alertname: (\w+)", (FOLDER / "alerts.test.yml").read_text("utf-8")))
    assert tested == {rule["alert"] for rule in rules("alerts.rules.yml")}


@pytest.mark.parametrize(("name", "expression"), list(expressions()))
def test_what_is_asked_for_is_exported(name: str, expression: str) -> None:
    names, values = exported(), known_values()
    asked = list(selectors(expression))
    assert asked, f"{name} asks for nothing"
    for metric, matchers in asked:
        if metric in recorded() or metric == "up":
            continue
        assert metric in names, f"{name}: there is no {metric}"
        for label, _, value in matchers:
            assert label in {*names[metric], *TARGET_LABELS}, f"{name}: {metric} has no {label}"
            for one in value.split("|"):
                assert one in values.get((metric, label), {one}), f"{name}: no {label} is {one}"


def test_a_name_that_is_wrong_would_be_found() -> None:
    [(metric, matchers)] = selectors('rate(socks_tunnel_flows{kind="tcp"}[5m])')
    assert metric not in exported()
    assert matchers == [("kind", "=", "tcp")]
    assert list(selectors("up == 0")) == [("up", [])]
    assert [name for name, _ in selectors("job_instance:socks_tunnel_denials:rate5m > 1")] == [
        "job_instance:socks_tunnel_denials:rate5m"
    ]


def test_all_alerts_have_a_runbook_and_all_runbooks_an_alert() -> None:
    _, _, rest = OPERATIONS.partition("\n## Runbooks\n")
    runbooks = re.findall(r"^### (\w+)$", rest.partition("\n## ")[0], re.MULTILINE)
    alerts = [rule["alert"] for rule in rules("alerts.rules.yml")]
    assert runbooks == alerts
    for rule in rules("alerts.rules.yml"):
        assert rule["annotations"]["runbook_url"].endswith(f"operations.md#{rule['alert'].lower()}")
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}


def test_links_within_the_runbooks_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", OPERATIONS, re.MULTILINE)
    }
    for anchor in re.findall(r"\]\(#([^)]+)\)", OPERATIONS):
        assert anchor in anchors, anchor
    for page in re.findall(r"\]\(([a-z]+\.md)", OPERATIONS):
        assert (FOLDER.parents[1] / "docs" / page).exists(), page


def test_the_dashboard_is_whole() -> None:
    board = dashboard()
    identities = [panel["id"] for panel in board["panels"]]
    assert len(set(identities)) == len(identities)
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["targets"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}"
    variables = {variable["name"] for variable in board["templating"]["list"]}
    text = (FOLDER / "dashboard.json").read_text("utf-8")
    assert set(re.findall(r"\$(\w+)", text)) - {"__rate_interval", "__all"} <= variables


def test_durations_are_scaled_for_tests() -> None:
    assert scaled("for: 2m\nx[5m] offset 1h [1d] 14 * 86400", 60) == (
        "for: 2s\nx[5s] offset 60s [1440s] 14 * 86400"
    )
    assert socks_tunnel.__version__
