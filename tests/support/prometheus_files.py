"""The files of packaging/prometheus: their expressions, and the metrics that these name."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml  # type: ignore[import-untyped]  # comes with ansible-core

from socks_tunnel.ops.metrics import Metrics
from support.checkout import ROOT

FOLDER = ROOT / "packaging/prometheus"

_SELECTOR = re.compile(
    r"\b(?P<name>up|[a-z_]*socks_tunnel_[a-z_:0-9]+|job_[a-z_:0-9]+)\b(?:\{(?P<labels>[^}]*)\})?"
)
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')


def rules(name: str) -> list[dict[str, Any]]:
    """The rules of a file, in order."""
    content = yaml.safe_load((FOLDER / name).read_text("utf-8"))
    return [rule for group in content["groups"] for rule in group["rules"]]


def recorded() -> set[str]:
    """Names that recording rules make."""
    return {rule["record"] for rule in rules("recording.rules.yml")}


def dashboard() -> dict[str, Any]:
    """The dashboard."""
    board: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text("utf-8"))
    return board


def panels() -> Iterator[tuple[str, str]]:
    """The title of each panel, with each of its queries."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """What an expression asks for: names of series, each with its matchers."""
    for found in _SELECTOR.finditer(expression):
        yield found["name"], _MATCHER.findall(found["labels"] or "")


def exported() -> dict[str, tuple[str, ...]]:
    """The names of samples that an instance exports, and the labels of each."""
    names: dict[str, tuple[str, ...]] = {}
    for family in Metrics().families():
        labels = family.label_names
        match family.kind:
            case "counter":
                names[f"{family.name}_total"] = labels
            case "gauge":
                names[family.name] = labels
            case _:
                names[f"{family.name}_bucket"] = (*labels, "le")
                names[f"{family.name}_count"] = names[f"{family.name}_sum"] = labels
    return names


def known_values() -> dict[tuple[str, str], tuple[str, ...]]:
    """The values of labels, by sample name and label, where all are known."""
    return {
        (f"{family.name}_total" if family.kind == "counter" else family.name, label): tuple(values)
        for family in Metrics().families()
        for label, values in family.known.items()
    }


def scaled(text: str, factor: int) -> str:
    """Rules or a query whose durations are so many times shorter: for tests that cannot wait."""

    def shorter(found: re.Match[str]) -> str:
        seconds = int(found[2]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[3]]
        return f"{found[1]}{max(1, seconds // factor)}s"

    text = re.sub(r"(\[)([0-9]+)([smhd])(?=\])", shorter, text)
    text = re.sub(r"(\bfor: )([0-9]+)([smhd])\b", shorter, text)
    return re.sub(r"(\boffset )([0-9]+)([smhd])\b", shorter, text)
