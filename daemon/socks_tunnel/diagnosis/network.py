"""Checks the servers of a configuration: signalling, rendezvous, STUN, TURN, DNS; and clocks."""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Iterable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from socks_tunnel.config.settings import Config, Peer
from socks_tunnel.ops.advice import explain
from socks_tunnel.ops.findings import Finding, Level
from socks_tunnel.peer.ice import IceConnection, IceSettings, candidate_addresses
from socks_tunnel.peer.ice.servers import ALIVE_PATIENCE, MEMORY
from socks_tunnel.peer.ice.settings import parse_servers
from socks_tunnel.protocol.addresses import parse_ip
from socks_tunnel.protocol.urls import Url
from socks_tunnel.signaling.direct import parse_url
from socks_tunnel.signaling.http_client import Answer, HttpFailure, request
from socks_tunnel.signaling.tls import client_context
from socks_tunnel.supervisor.links import ice_settings, signaling_host

ANSWER_TIMEOUT: Final = 8.0
"""Seconds for a server to answer."""

SKEW_NOTED: Final = 10.0
SKEW_FATAL: Final = 60.0
"""Seconds by which clocks may differ until it is said, and until signalling fails: an offer is
valid for 60 s."""

BODY_MAX: Final = 65_536
"""Bytes of an answer that are read."""

NAME_SERVERS_MAX: Final = 3
"""Entries of resolv.conf that the C library uses (resolv.conf(5))."""

NAME_TIMEOUT: Final = 3.0
"""Seconds for a name server to answer."""


async def check(config: Config) -> AsyncIterator[Finding]:
    """Yields a finding for each server that the configuration names."""
    for peer in config.peers:
        for url in (peer.url, peer.rendezvous):
            if url is not None:
                trusted = config.rendezvous_clock and url == peer.rendezvous
                about = f"signalling of {peer.name}"
                yield await _ask(about, url, peer.tls_ca, peer.proxy, trusted=trusted)
    if config.signaling is not None and config.signaling.rendezvous is not None:
        signaling = config.signaling
        assert signaling.rendezvous is not None
        yield await _ask(
            "rendezvous",
            signaling.rendezvous,
            signaling.tls_ca,
            config.ice.proxy,
            trusted=config.rendezvous_clock,
        )
    async for finding in _candidates(ice_settings(config.ice)):
        yield finding
    async for finding in name_servers(Path("/etc/resolv.conf"), needed=_names_needed(config)):
        yield finding


def _names_needed(config: Config) -> bool:
    """Returns whether the configuration needs a name server."""
    urls = [url for peer in config.peers for url in (peer.url, peer.rendezvous)]
    hosts = [signaling_host(url) for url in urls]
    hosts += [server.url.host for server in parse_servers(ice_settings(config.ice))]
    return config.role == "endpoint" or any(host and parse_ip(host) is None for host in hosts)


async def _ask(
    about: str, text: str, ca: Path | None, proxy: str | None, *, trusted: bool
) -> Finding:
    """Sends a server a plain request, and compares its clock with this host's.

    With `trusted`, signalling uses the clock of that server.
    """
    shown = text
    if text.startswith("ws"):
        text = f"http{text.removeprefix('ws')}"
    try:
        url, unix = parse_url(text)
        answer = await _request(url, unix, ca, proxy)
    except TimeoutError:
        return explain(f"{shown} did not answer within {ANSWER_TIMEOUT:g} s", about)
    except (HttpFailure, OSError, ValueError) as error:
        return explain(f"{shown} {_words(error)}", about)
    if answer.status == 407:
        return explain(f"{shown} cannot be reached: HTTP status 407", about)
    skew = clock_skew(answer, time.time())
    if skew is not None and abs(skew) >= SKEW_NOTED:
        fatal = abs(skew) >= SKEW_FATAL and not trusted
        way = "behind" if skew > 0 else "ahead of"
        return Finding(
            "problem" if fatal else "warning",
            f"{about}: clock skew",
            f"this host's clock is {abs(skew):.0f} s {way} that of {shown}.",
            "Run a time service on both hosts (systemd-timesyncd, chrony)"
            + ("; no offer is accepted until then." if fatal else "."),
        )
    return Finding("ok", about, f"{shown} answers, and its clock agrees with ours.")


def clock_skew(answer: Answer, now: float) -> float | None:
    """Returns by how many seconds the clock of an HTTP server is ahead of ours; None if unknown."""
    try:
        return parsedate_to_datetime(answer.headers["date"]).timestamp() - now
    except (KeyError, ValueError):
        return None


async def _request(url: Url, unix: str, ca: Path | None, proxy: str | None) -> Answer:
    tls = None
    if url.scheme == "https" and not unix:
        tls = await asyncio.to_thread(client_context, ca)
    headers = {"User-Agent": "socks-tunnel"}
    async with asyncio.timeout(ANSWER_TIMEOUT):
        return await request(
            "GET",
            url,
            b"",
            headers,
            unix=unix,
            tls=tls,
            configured_proxy=proxy,
            answer_max=BODY_MAX,
        )


def _words(error: Exception) -> str:
    certificate = getattr(error, "certificate", None)
    if certificate is not None:
        return f"has a certificate that does not verify: no TLS with it ({certificate})"
    return str(error)


# --- ICE ----------------------------------------------------------------------------------------


async def _candidates(settings: IceSettings) -> AsyncIterator[Finding]:
    """Gathers candidates as a link does, and yields a finding for each server."""
    try:
        servers = parse_servers(settings)
    except ValueError as error:
        yield explain(str(error), "ICE")
        return
    for server in servers:  # a link waits less, because it can do without a server
        MEMORY.answered(str(server), ALIVE_PATIENCE)
    with candidate_addresses(settings):
        connection = IceConnection(ice_controlling=True)
        await connection.gather_candidates()
    found, problems = connection.local_candidates, list(connection.problems)
    await connection.close()
    for problem in problems:
        finding = explain(problem, "ICE")
        lost = "no answer" in problem or "does not answer" in problem
        advice = "Is UDP let out to that server? Then a link has fewer ways through a NAT."
        yield Finding("problem", "ICE: UDP blocked", f"{problem}.", advice) if lost else finding
    failed = {problem.partition(": ")[0] for problem in problems}
    for server in servers:
        if str(server) not in failed:
            yield Finding("ok", "ICE", f"the {server} answers.")
    texts = ", ".join(f"{c.type} {c.host} port {c.port}" for c in found[:12])
    if found:
        yield Finding("ok", "candidates", f"{texts}.")
    else:
        yield explain("no ICE candidate can be made here", "ICE")


# --- DNS ----------------------------------------------------------------------------------------


async def name_servers(file: Path, *, needed: bool, port: int = 53) -> AsyncIterator[Finding]:
    """Asks each name server of resolv.conf(5) for the root's. Any answer shows that it works."""
    servers = list(_listed(file))
    if not servers:
        yield Finding("note", "DNS", f"{file} names no name server.")
        return
    outcomes = await asyncio.gather(*(_answers(server, port) for server in servers))
    dead = [server for server, good in zip(servers, outcomes, strict=True) if not good]
    if not dead:
        yield Finding("ok", "DNS", f"{', '.join(servers)} answer.")
        return
    level: Level = "warning" if len(dead) < len(servers) else "problem"
    yield Finding(
        level if needed else "note",
        "DNS",
        f"{', '.join(dead)} did not answer within {NAME_TIMEOUT:g} s.",
        f"No name is resolved through it: correct /etc/resolv.conf, or let port {port} pass.",
    )


def _listed(file: Path) -> Iterable[str]:
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return []
    words = (line.split() for line in lines)
    return [w[1] for w in words if len(w) > 1 and w[0] == "nameserver"][:NAME_SERVERS_MAX]


async def _answers(server: str, port: int) -> bool:
    # RFC 1035 section 4.1: a header with one question, the root, type NS, class IN.
    query = secrets.token_bytes(2) + b"\x01\x00\x00\x01" + bytes(6) + b"\x00\x00\x02\x00\x01"
    host, _, zone = server.partition("%")
    loop = asyncio.get_running_loop()
    with socket.socket(
        socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM
    ) as sock:
        sock.setblocking(False)
        try:
            scope = (0, socket.if_nametoindex(zone)) if zone else ()
            await loop.sock_connect(sock, (host, port, *scope))
            await loop.sock_sendall(sock, query)
            async with asyncio.timeout(NAME_TIMEOUT):
                return (await loop.sock_recv(sock, 2048))[:2] == query[:2]
        except (OSError, TimeoutError):
            return False


def environment_proxies() -> list[str]:
    """Returns the names of the variables that set a proxy, but not their values."""
    return sorted(name for name in os.environ if name.lower() in {"https_proxy", "http_proxy"})


def peers_by_way(peers: Iterable[Peer]) -> str:
    """Returns the peers and their URLs, as a list for people."""
    return ", ".join(f"{p.name} ({p.url or p.rendezvous or 'asks us'})" for p in peers)
