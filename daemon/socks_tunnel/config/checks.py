"""Checks values that depend on each other or on files. Each mistake becomes a finding."""

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from socks_tunnel.config.errors import Problem
from socks_tunnel.config.models import ConfigFile, Peer, Signaling
from socks_tunnel.config.positions import KeyPath
from socks_tunnel.config.routes import Route
from socks_tunnel.config.settings import Forward, listener_text
from socks_tunnel.config.wording import a, key_text, upwards
from socks_tunnel.protocol.addresses import HostPort, IPAddress, parse_ip
from socks_tunnel.protocol.ice_urls import ICE_URLS_MAX, parse_ice_url
from socks_tunnel.signaling.tls import TlsFileError, check_authorities, read_server_certificate

_TLS_CERTIFICATE: Final = ("signaling", "tls_certificate")

Peers: TypeAlias = Sequence[tuple[int, Peer]]
"""The peers that have no mistake of their own, with their numbers in the file."""


class Findings:
    """The mistakes in one configuration, and the places of its values.

    `raw` is the file's content, `lines` has the line of each key, `files` the included file from
    which a key comes, and `broken` the tables and settings that have a mistake.
    """

    def __init__(self, path: Path, raw: dict[str, Any], lines: dict[KeyPath, int]) -> None:
        self.path = path
        self.raw = raw
        self.lines = lines
        self.problems: list[Problem] = []
        self.broken: set[KeyPath] = set()
        self.files: dict[KeyPath, Path] = {}

    def add(self, at: KeyPath, message: str, *, file: Path | None = None) -> None:
        """Adds a mistake in the value at `at`, or in the file that is named there."""
        line = None
        if file is None:
            place = next((p for p in upwards(at) if p in self.lines), None)
            if place is not None:
                line = self.lines[place]
                file = self.files.get(place)
        self.problems.append(Problem(file or self.path, line, key_text(at), message))

    def is_broken(self, *at: str) -> bool:
        """Returns whether the setting at `at`, or its table, has a mistake."""
        return any(path in self.broken for path in upwards(at))


def check_role(found: Findings, file: ConfigFile, peers: Peers) -> None:
    """Reports settings that have no meaning in the role, and settings that the role needs."""
    senseless = f"has no meaning in the configuration of {a(file.role)}"
    is_gateway = file.role == "gateway"
    gateways = ("socks", "forwards", "routes")
    endpoints = ("signaling", "udp_filtering", "policies", "targets", "join")
    for key in endpoints if is_gateway else gateways:
        if key in found.raw:
            found.add((key,), senseless)
    foreign: tuple[str, ...] = ("url", "rendezvous", "tls_ca", "proxy", "enrolment_file")
    if is_gateway:
        foreign = ("policy", "old_public_key")
    for index, peer in peers:
        for key in foreign:
            if getattr(peer, key) is not None:
                found.add(("peers", index, key), senseless)
        if is_gateway and peer.url is None and peer.rendezvous is None:
            found.add(
                ("peers", index, "url"),
                "is missing: where does the endpoint listen?",
            )
    if is_gateway and not file.peers and not found.is_broken("peers"):
        message = "is missing: a gateway needs the endpoint that it leads to"
        found.add(("peers",), message)
    if not is_gateway and not found.is_broken("signaling", "listen"):
        signaling = file.signaling or Signaling()
        if signaling.listen is None and signaling.rendezvous is None:
            found.add(("signaling", "listen"), "is missing: where do gateways send their offers?")


def check_peers_differ(found: Findings, peers: Peers) -> None:
    """Reports peers with the same name or key."""
    for key in ("name", "public_key"):
        seen: dict[str, int] = {}
        for index, peer in peers:
            first = seen.setdefault(getattr(peer, key), index)
            if first != index:
                found.add(("peers", index, key), f"is the same as that of peers[{first}]")
    keys = {peer.public_key: index for index, peer in peers}
    for index, peer in peers:
        if peer.old_public_key in keys:
            message = f"is the key of peers[{keys[peer.old_public_key]}]"
            found.add(("peers", index, "old_public_key"), message)


def check_route(found: Findings, at: KeyPath, route: Route, peers: Collection[str]) -> None:
    """Reports peers of a route that do not exist."""
    for number, name in enumerate(route.peers):
        if name not in peers:
            listing = ", ".join(map(json.dumps, sorted(peers))) or "none"
            found.add(
                (*at, "peers", number),
                f"there is no peer {name!r} in [[peers]]; those that there are: {listing}",
            )


def check_policy_names(found: Findings, peers: Peers) -> None:
    """Reports peers whose policy does not exist."""
    tables = found.raw.get("policies", {})
    known = list(tables) if isinstance(tables, dict) else []
    for index, peer in peers:
        if peer.policy is None or peer.policy in known:
            continue
        listing = ", ".join(map(json.dumps, known)) or "none"
        found.add(
            ("peers", index, "policy"),
            f"there is no [policies.{peer.policy}]; those that there are: {listing}",
        )


def check_joining(found: Findings, file: ConfigFile) -> None:
    """Reports a group without a service, tags without a policy, and unusable CA files."""
    signaling = file.signaling
    if (
        file.role == "endpoint"
        and file.join.group is not None
        and (signaling is None or signaling.rendezvous is None)
    ):
        found.add(
            ("join", "group"),
            "needs signaling.rendezvous: the list of members goes through that service",
        )
    jwt = file.join.jwt
    if jwt is None or file.role == "gateway":
        return
    at = ("join", "jwt")
    tables = found.raw.get("policies", {})
    known = list(tables) if isinstance(tables, dict) else []
    for role, tag in jwt.tags.items():
        if tag and tag not in known:
            listing = ", ".join(map(json.dumps, known)) or "none"
            found.add(
                (*at, "tags", role),
                f"there is no [policies.{tag}]; those that there are: {listing}",
            )
    if jwt.tls_ca is not None:
        if not str(jwt.jwks).startswith("https:"):
            found.add((*at, "tls_ca"), "has no meaning for keys that are not at https://")
        elif complaint := check_authorities(jwt.tls_ca):
            found.add((*at, "tls_ca"), complaint)


def check_listeners(found: Findings, file: ConfigFile) -> None:
    """Reports listeners that are open to others without permission, and those that collide."""
    if file.role == "gateway" and not file.socks.listen and not file.forwards:
        found.add(("socks", "listen"), "is empty: clients could not reach the gateway")
    for index, listener in enumerate(file.socks.listen):
        # The mode of a Unix socket decides who may use it, and no client comes from another host.
        if isinstance(listener, Path) or _address(listener).is_loopback:
            continue
        at: KeyPath = ("socks", "listen", index)
        if not file.socks.allow_remote_clients:
            found.add(
                at,
                f"{listener} is no loopback address: remote clients must be allowed with "
                "allow_remote_clients, and named in users_file",
            )
        elif file.socks.users_file is None:
            found.add(at, f"{listener} is no loopback address: users_file is needed")
    for index, forward in _forwards(file):
        if not _address(forward.address).is_loopback and not file.socks.allow_remote_clients:
            found.add(
                ("forwards", index, "listen"),
                f"{forward.address} is no loopback address: remote clients must be allowed "
                "with allow_remote_clients in [socks]; a forward asks nobody for a password",
            )
    _check_taken(found, _listeners(found, file))
    _check_taken(found, _udp_listeners(file))


def _check_taken(found: Findings, listeners: Iterator[tuple[KeyPath, HostPort | Path]]) -> None:
    seen: list[tuple[KeyPath, HostPort | Path]] = []
    for at, listener in listeners:
        for other_at, other in seen:
            if _collide(listener, other):
                found.add(at, f"{listener_text(listener)} is taken by {key_text(other_at)}")
                break
        seen.append((at, listener))


def _listeners(found: Findings, file: ConfigFile) -> Iterator[tuple[KeyPath, HostPort | Path]]:
    if file.role == "gateway" and not found.is_broken("socks", "listen"):
        for index, listener in enumerate(file.socks.listen):
            yield ("socks", "listen", index), listener
    for index, forward in _forwards(file):
        if forward.protocol == "tcp":
            yield ("forwards", index, "listen"), forward.address
    if file.signaling is not None and isinstance(file.signaling.listen, HostPort):
        yield ("signaling", "listen"), file.signaling.listen
    if file.metrics.listen is not None and not found.is_broken("metrics", "listen"):
        yield ("metrics", "listen"), file.metrics.listen


def _udp_listeners(file: ConfigFile) -> Iterator[tuple[KeyPath, HostPort]]:
    for index, forward in _forwards(file):
        if forward.protocol == "udp":
            yield ("forwards", index, "listen"), forward.address


def check_tls(found: Findings, file: ConfigFile, peers: Peers) -> None:
    """Reports TLS files that cannot be used. The code that uses them reads them again."""
    for index, peer in peers:
        if file.role == "endpoint" or peer.tls_ca is None:
            continue  # check_role has reported that of an endpoint's peer
        at: KeyPath = ("peers", index, "tls_ca")
        urls = [url for url in (peer.url, peer.rendezvous) if url is not None]
        if urls and not any(url.startswith(("https:", "wss:")) for url in urls):
            found.add(
                at, "has no meaning for a url that is not https://, without a rendezvous at wss://"
            )
        elif complaint := check_authorities(peer.tls_ca):
            found.add(at, complaint)
    signaling = file.signaling
    if file.role == "gateway" or signaling is None:
        return
    if signaling.tls_ca is not None:
        if not (signaling.rendezvous or "").startswith("wss:"):
            found.add(("signaling", "tls_ca"), "has no meaning without a rendezvous at wss://")
        elif complaint := check_authorities(signaling.tls_ca):
            found.add(("signaling", "tls_ca"), complaint)
    certificate = signaling.tls_certificate
    if certificate is None:
        if signaling.tls_key is not None and not found.is_broken(*_TLS_CERTIFICATE):
            found.add(_TLS_CERTIFICATE, "is missing: tls_key alone makes no listener HTTPS")
    elif signaling.listen is None and not found.is_broken("signaling", "listen"):
        found.add(_TLS_CERTIFICATE, "has no meaning without listen")
    elif isinstance(signaling.listen, Path):
        found.add(_TLS_CERTIFICATE, "has no meaning on a Unix socket: that is on no network")
    elif not found.is_broken("signaling", "tls_key"):
        try:
            read_server_certificate(certificate, signaling.tls_key)
        except TlsFileError as error:
            found.add(("signaling", error.key), str(error))


def check_ice(found: Findings, file: ConfigFile) -> None:
    """Reports settings of `[ice]` that cannot work together."""
    if found.is_broken("ice", "servers"):
        return
    urls = [parse_ice_url(url) for server in file.ice.servers for url in server.urls]
    if len(urls) > ICE_URLS_MAX:
        found.add(("ice", "servers"), f"has {len(urls)} URLs; at most {ICE_URLS_MAX} are asked")
    has_turn = any(url.scheme != "stun" for url in urls)
    if file.ice.policy == "relay" and not has_turn and not _uses_rendezvous(file):
        found.add(
            ("ice", "policy"),
            '"relay" needs a turn: or turns: server in ice.servers, or a rendezvous service',
        )
    if file.ice.tls_ca is not None:
        if not any(url.scheme == "turns" for url in urls):
            found.add(("ice", "tls_ca"), "has no meaning without a turns: server")
        elif complaint := check_authorities(file.ice.tls_ca):
            found.add(("ice", "tls_ca"), complaint)


def _uses_rendezvous(file: ConfigFile) -> bool:
    """Returns whether a rendezvous service, which may offer relays, is named anywhere."""
    signaling = file.signaling
    return (signaling is not None and signaling.rendezvous is not None) or any(
        peer.rendezvous is not None for peer in file.peers
    )


def _address(listener: HostPort) -> IPAddress:
    address = parse_ip(listener.host)
    assert address is not None, "the models take no names as listeners"
    return getattr(address, "ipv4_mapped", None) or address


def _collide(one: HostPort | Path, other: HostPort | Path) -> bool:
    """Returns whether only one of two listeners can be bound. Port 0 means any free port."""
    if isinstance(one, Path) or isinstance(other, Path):
        return one == other
    if one.port != other.port or one.port == 0:
        return False
    a, b = _address(one), _address(other)
    return a == b or (a.version == b.version and (a.is_unspecified or b.is_unspecified))


def _forwards(file: ConfigFile) -> Iterator[tuple[int, Forward]]:
    """Yields each forward with its number in the file."""
    for index, forward in enumerate(file.forwards):
        yield index, Forward(forward.listen, forward.target)
