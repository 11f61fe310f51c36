"""The contents of the status page, which are made only while a page is open.

It has destinations, clients and rules of the policy only with `metrics.show_destinations`, because
everybody who can connect to the exporter can read the page. It never has passwords, keys or
payload.
"""

from itertools import islice
from typing import Any, Final

from socks_tunnel.config.settings import Config, PolicyRules
from socks_tunnel.ops.recent import RecentProblems
from socks_tunnel.supervisor import report
from socks_tunnel.supervisor.report import Summarized

LINKS_SHOWN: Final = 100
"""Links that have a row. All links are counted."""

FLOWS_SHOWN: Final = 10
"""Flows of each worker that have a row: the fastest ones."""

ROUTES_SHOWN: Final = 100
"""Peers of routes that have a row."""

REASONS: Final = {
    "link": "its link is down or in doubt",
    "resume": "its flows are being resumed",
    "dials": "it does not reach some targets",
    "probe": "it does not reach the target of the probe",
}
"""What speaks against a peer, by the cause, without any destination."""

RULES_SHOWN: Final = 50
"""Rules of one list that are shown."""

POLICIES_SHOWN: Final = 50
"""Policies that have a row."""

_LISTS: Final = ("allowed_hosts", "allowed_ports", "denied_hosts", "denied_ports")


async def overview(instance: Summarized, problems: RecentProblems) -> dict[str, Any]:
    """Returns the contents of the page, short enough for an IPC frame."""
    config, router = instance.config, instance.links.router
    whole, held = await report.brief(instance)
    rows = instance.links.rows(held)
    shown = config.metrics.show_destinations
    return {
        **whole,
        "reason": instance.why_not_ready(),
        "links": [row async for row in report.in_turns(islice(rows, LINKS_SHOWN))],
        "links_up": len(instance.links.up()),
        "peers": len(instance.links.peers),
        "sessions": len(router.sessions),
        "sessions_detached": len(router.detached),
        "problems": problems.rows(destinations=shown),
        "routes": _routes(whole.get("routes", []), shown=shown),
        "policies": _policies(config, shown=shown),
        "flows": await _flows(instance) if shown else None,
    }


def _routes(rows: list[dict[str, Any]], *, shown: bool) -> list[dict[str, Any]]:
    """Returns a row for each peer of each route; why one is passed over may name destinations."""
    rows = rows[:ROUTES_SHOWN]
    if shown:
        return rows
    return [row | {"why": row["cause"] and REASONS[row["cause"]]} for row in rows]


async def _flows(instance: Summarized) -> list[dict[str, Any]]:
    rows = await report.connections(instance, limit=FLOWS_SHOWN, by="rate")
    return sorted(rows, key=lambda row: -row["up"] - row["down"])[:FLOWS_SHOWN]


def _policies(config: Config, *, shown: bool) -> list[dict[str, Any]]:
    """Returns a row for each policy: who has it, how many rules it has, and maybe which."""
    named: list[tuple[str | None, PolicyRules]] = list(config.policies.items())
    if config.policy is not None:
        named.insert(0, (None, config.policy))
    return [
        {
            "name": name or "(default)",
            "peers": sum(peer.policy == name for peer in config.peers),
            "rules": {each: len(_rules(table, each)) for each in _LISTS},
            "shown": {each: _rules(table, each)[:RULES_SHOWN] for each in _LISTS}
            if shown
            else None,
        }
        for name, table in named[:POLICIES_SHOWN]
    ]


def _rules(table: PolicyRules, name: str) -> list[str]:
    rules = getattr(table, name)
    if isinstance(rules, str):
        rules = rules.splitlines()
    return [text for rule in rules if (text := str(rule).strip())]
