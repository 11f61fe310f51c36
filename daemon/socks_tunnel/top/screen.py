"""The screen of `socks-tunnel top`: the model and the terminal's size go in, a picture out."""

from collections.abc import Callable, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from socks_tunnel.top.model import FlowRow, Model, Order, Summary

KEYS: Final[dict[Order, str]] = {"rate": "bytes/s", "total": "total", "age": "age"}

_UNITS: Final = ("", "k", "M", "G", "T", "P")
_STYLES: Final = {
    "up": "green",
    "running": "green",
    "ready": "green",
    "preferred": "green",
    "passed over": "yellow",
    "connecting": "yellow",
    "starting": "yellow",
    "waiting": "yellow",
    "draining": "yellow",
}
_WIDE: Final = 100
"""Width in columns from which the peer and the state of each flow are shown too."""

_FLOWS_MIN: Final = 3
"""Lines that links and workers leave free for flows, if the screen is that high."""

_CONTROLS: Final = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], "?")

_TITLE_LINES: Final = 3  # the instance, its totals, the keys


def picture(model: Model, width: int, height: int) -> RenderableType:
    """Returns a picture that fills a screen of this size, with no more lines than it has."""
    summary = model.summary
    if summary is None:
        return _line(model.lost_because or "")
    spare = height - _TITLE_LINES
    parts: list[RenderableType] = [_title(model, summary), _totals(summary)]
    for table in (_links, _routes, _workers) if model.routes else (_links, _workers):
        lines = min(max(spare // 3, 2), spare - _FLOWS_MIN - 1)
        if lines >= 2:
            drawn, used = table(model, lines)
            parts.append(drawn)
            spare -= used
    parts.append(_flows(model, width, spare))
    parts.append(_footer(model))
    return Group(*parts)


def count(number: float | None) -> str:
    """Returns a number in at most 5 characters: `999`, `1.23k`, `45.6M`; `-` if it is not known."""
    if number is None:
        return "-"
    value = float(number)
    for unit in _UNITS:
        if value < 999.5 or unit == _UNITS[-1]:
            break
        value /= 1000
    if not unit or value >= 99.95:
        return f"{value:.0f}{unit}"
    return f"{value:.{1 if value >= 9.995 else 2}f}{unit}"


def age(seconds: float) -> str:
    """Returns a time in at most 7 characters: `4.2s`, `12:34`, `5:01:02`, `3d04h`."""
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 9.95 else f"{seconds:.0f}s"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if not hours:
        return f"{minute}:{second:02}"
    days, hour = divmod(hours, 24)
    return f"{days}d{hour:02}h" if days else f"{hour}:{minute:02}:{second:02}"


def _text(text: str, style: str = "") -> Text:
    """Returns text that is shown as it is, without markup or terminal control sequences."""
    return Text(text.translate(_CONTROLS), style)


def _line(*parts: str | tuple[str, str]) -> Text:
    """Returns a line that is cut off at the terminal's edge and never wrapped."""
    texts = (_text(part) if isinstance(part, str) else _text(*part) for part in parts)
    return Text.assemble(*texts, no_wrap=True, overflow="ellipsis")


def _title(model: Model, summary: Summary) -> Text:
    state = (summary.state, _STYLES.get(summary.state, "red"))
    if model.lost_because is not None:
        state = (f"no answer: {model.lost_because}; trying again", "bold red")
    return _line(
        (f"{summary.role} {summary.instance}", "bold"),
        "  ",
        state,
        f"  up {age(summary.uptime)}  {' '.join(summary.listen)}  {summary.version}",
    )


def _totals(summary: Summary) -> Text:
    return _line(
        f"{summary.flows_tcp:,} TCP flows, {summary.flows_udp:,} UDP associations",
        f"  up {count(summary.up_rate)}B/s, {count(summary.up)}B"
        if summary.up_rate is not None
        else f"  up {count(summary.up)}B",
        f"  down {count(summary.down_rate)}B/s, {count(summary.down)}B"
        if summary.down_rate is not None
        else f"  down {count(summary.down)}B",
    )


def _footer(model: Model) -> Text:
    return _line(("q", "bold"), " quit   ", ("s", "bold"), f" sort, now by {KEYS[model.order]}")


def _table(*columns: tuple[str, int | None]) -> Table:
    """Returns a table without borders. A width of None takes the space that is left.

    A column whose name ends with a colon holds text, any other column numbers. No cell is wrapped.
    """
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        expand=True,
        header_style="reverse",
        show_edge=False,
    )
    for name, width in columns:
        table.add_column(
            Text(name.removesuffix(":")),
            justify="left" if name.endswith(":") else "right",
            width=width,
            ratio=1 if width is None else None,
            no_wrap=True,
            overflow="ellipsis",
        )
    return table


def _state(state: str) -> Text:
    return _text(state, _STYLES.get(state, "red"))


def _fill(
    table: Table, rows: Sequence[Sequence[str | Text]], lines: int, more: Callable[[int], str]
) -> tuple[RenderableType, int]:
    """Adds the rows that fit into the given lines, header included.

    A last line counts the others.
    """
    fitting = lines - 1
    shown = rows if len(rows) <= fitting else rows[: fitting - 1]
    for row in shown:
        table.add_row(*(_text(cell) if isinstance(cell, str) else cell for cell in row))
    if len(shown) == len(rows):
        return table, 1 + len(rows)
    return Group(table, _line((more(len(rows) - len(shown)), "dim"))), lines


def _links(model: Model, lines: int) -> tuple[RenderableType, int]:
    table = _table(
        ("link:", 18), ("state:", 10), ("rtt ms", 7), ("flows", 6), ("queue", 6), (":", None)
    )
    rows = [
        (
            link.peer,
            _state(link.state),
            "-" if link.rtt_ms is None else f"{link.rtt_ms:.1f}",
            f"{link.flows}",
            count(link.buffered),
            link.detail,
        )
        for link in sorted(model.links, key=lambda link: link.state != "down")
    ]
    return _fill(table, rows, lines, lambda hidden: f"… {hidden:,} more links")


def _routes(model: Model, lines: int) -> tuple[RenderableType, int]:
    table = _table(("route:", 18), ("peer:", 18), ("new flows:", 11), (":", None))
    rows = [
        (route.route, route.peer, _state(route.state), route.why)
        for route in sorted(model.routes, key=lambda route: route.state == "preferred")
    ]
    return _fill(table, rows, lines, lambda hidden: f"… {hidden:,} more peers of routes")


def _workers(model: Model, lines: int) -> tuple[RenderableType, int]:
    table = _table(
        ("worker", 6), ("pid", 7), ("state:", 10), ("restarts", 8), ("flows", 6), ("queue", 6),
        ("up B/s", 7), ("down B/s", 8), (":", None),
    )  # fmt: skip
    rows = [
        (
            f"{worker.index}",
            f"{worker.pid or '-'}",
            _state(worker.state),
            f"{worker.restarts}",
            f"{worker.flows}",
            count(worker.buffered),
            count(worker.up_rate),
            count(worker.down_rate),
            "",
        )
        for worker in sorted(model.workers, key=lambda worker: worker.state == "running")
    ]
    return _fill(table, rows, lines, lambda hidden: f"… {hidden:,} more workers")


def _flows(model: Model, width: int, lines: int) -> RenderableType:
    wide = width >= _WIDE
    table = _table(
        *([("peer:", 12)] if wide else []),
        ("kind:", 4),
        ("client:", 28 if wide else 16),
        ("destination:", None),
        *([("state:", 12)] if wide else []),
        ("age", 7),
        ("up B/s", 6),
        ("down B/s", 8),
        ("total", 5),
    )
    flows, hidden = model.flows(lines - 1)
    if hidden:  # the line that says so takes one, too
        flows, hidden = model.flows(lines - 2)
    for flow in flows:
        table.add_row(*map(_text, _flow(flow, wide=wide)))
    if not hidden:
        return Group(table, *(_line("") for _ in range(lines - 1 - len(flows))))
    return Group(table, _line((f"… {hidden:,} more flow{'' if hidden == 1 else 's'}", "dim")))


def _flow(flow: FlowRow, *, wide: bool) -> list[str]:
    # The UDP association of a SOCKS client has many destinations, so none is shown.
    destination = flow.destination or "(several)"
    return [
        *([flow.peer] if wide else []),
        flow.kind,
        flow.client,
        destination,
        *([flow.state] if wide else []),
        age(flow.seconds),
        count(flow.up_rate),
        count(flow.down_rate),
        count(flow.up + flow.down),
    ]
