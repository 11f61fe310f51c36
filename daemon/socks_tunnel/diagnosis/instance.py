"""Findings about a running instance, or about a gateway that is started for a moment."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from socks_tunnel.client import instances
from socks_tunnel.client.own import OwnInstance
from socks_tunnel.config.settings import Config
from socks_tunnel.ops.advice import explain, known, why_chosen
from socks_tunnel.ops.findings import Finding
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.supervisor import control_client
from socks_tunnel.supervisor.listeners import ListenError, bind

ASK_TIMEOUT: Final = 10.0
"""Seconds that an instance has to answer."""


def ask(path: Path) -> dict[str, Any]:
    """Returns an instance's answer to `diagnosis`. Raises :class:`OSError`."""
    answer = control_client.request(path, {"op": "diagnosis"}, timeout=ASK_TIMEOUT)
    result = answer.get("result")
    if not isinstance(result, dict):
        raise OSError(str(answer.get("error", "it gives no answer")))
    return result


def of_running(found: Mapping[str, Any]) -> Iterator[Finding]:
    """Yields findings from an instance's answer: its state, its links, its latest errors."""
    reason = found.get("reason")
    if reason == found["state"]:
        reason = None
    serves = f", and serves no new flow: {reason}." if reason else "."
    yield Finding(
        "warning" if reason else "ok",
        "instance",
        f"{found['instance']} ({found['role']}, version {found['version']}) is {found['state']}, "
        f"up for {found['uptime']:.0f} s, with {found['flows']} flows{serves}",
    )
    for link in found["links"]:
        yield from _of_link(link)
    if not found["links_up"]:
        if found["role"] == "gateway":
            for detail in found["details"]:
                yield explain(detail, "link")
            if not found["details"]:
                yield Finding("problem", "link", "no link is up.", "See the checks above.")
        else:
            yield Finding("warning", "link", "no gateway has a link to this endpoint.")
    yield from _of_errors(found["errors"])


def _of_link(link: Mapping[str, Any]) -> Iterator[Finding]:
    candidates = f"Our candidates: {_listed(link['ours'])}; the peer's: {_listed(link['theirs'])}."
    if link["state"] == "up":
        rtt = "" if link["rtt_ms"] is None else f", round trip {link['rtt_ms']:g} ms"
        yield Finding(
            "ok",
            f"link {link['peer']}",
            f"up over {link['path']}{rtt}: {why_chosen(link['path_kind'] or '')}. {candidates}",
        )
    else:
        yield explain(f"link {link['peer']} is coming up: {link['stage']}", f"link {link['peer']}")


def _listed(texts: list[str]) -> str:
    return ", ".join(texts[:12]) or "none"


def _of_errors(errors: list[Mapping[str, Any]]) -> Iterator[Finding]:
    """Yields the latest errors, each sentence once, with advice if there is any."""
    for sentence, row in {row["message"]: row for row in reversed(errors)}.items():
        about = f"log {datetime.fromtimestamp(row['time'], UTC):%Y-%m-%dT%H:%M:%SZ}"
        if known(sentence):
            finding = explain(sentence, about)
            yield Finding("warning", finding.about, finding.sentence, finding.advice)
        else:
            yield Finding("note", about, f"{row['level']}: {sentence}")


def ports(config: Config) -> Iterator[Finding]:
    """Yields the configured addresses that cannot be bound. Only if no instance runs."""
    wanted: list[tuple[str, Any]] = [("socks.listen", each) for each in config.socks.listen]
    wanted.append(("metrics.listen", config.metrics.listen))
    if config.signaling is not None:
        wanted.append(("signaling.listen", config.signaling.listen))
    free = []
    for setting, address in wanted:
        if isinstance(address, HostPort):
            try:
                bind(setting, address).close()
            except ListenError as error:
                yield explain(str(error), setting)
            else:
                free.append(str(address))
    yield Finding("ok", "ports", f"free: {', '.join(free) or 'none is named'}.")


def trial(config: Path, timeout: float, say: Callable[[str], None]) -> Iterator[Finding]:
    """Starts a gateway for a moment, and yields whether it gets a link, or why not.

    It ends when a link is up, when an attempt has failed, or after `timeout` seconds.
    """
    say("starting the gateway for a moment, to see whether it gets a link")
    until = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        try:
            own = stack.enter_context(OwnInstance(config))
        except instances.InstanceError as error:
            yield Finding("problem", "trial", f"{error}.")
            return
        found = None
        while own.ended() is None and time.monotonic() < until:
            found = _asked(own.socket())
            if found is not None and (_linked(found) or found["details"]):
                break
            time.sleep(instances.POLL)
        if (status := own.ended()) is not None:
            sentence = f"the gateway exits with status {status}: {own.log_tail()}"
            yield explain(sentence, "trial")
        elif found is None:
            sentence = f"the gateway was not ready within {timeout:g} s."
            yield Finding("problem", "trial", sentence, "Try a longer --timeout.")
        else:
            yield from of_running(found)


def _asked(path: Path | None) -> dict[str, Any] | None:
    """Returns the answer of an instance that is starting; None while it does not answer."""
    if path is None:
        return None
    try:
        return ask(path)
    except OSError:
        return None


def _linked(found: Mapping[str, Any]) -> bool:
    """Returns whether a link is up and has measured its round trip, by its first PING."""
    return any(link["state"] == "up" and link["rtt_ms"] is not None for link in found["links"])
