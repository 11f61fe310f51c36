"""Writes the two configurations of a new gateway and endpoint that name each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from pydantic import ValidationError

from socks_tunnel.config.documents import toml_value
from socks_tunnel.config.models import Peer, PolicyRules, Signaling
from socks_tunnel.protocol.addresses import parse_ip
from socks_tunnel.protocol.policies import parse_policy
from socks_tunnel.protocol.policy import PolicyError

GATEWAY_KEY = "gateway.key"
ENDPOINT_KEY = "endpoint.key"

_GATEWAY = """\
# A gateway: SOCKS5 clients connect to it, and it tunnels to the endpoint below.
# The annotated gateway.toml that comes with socks-tunnel has all settings and their defaults.
role = "gateway"

[identity]
private_key_file = "{key_file}"

[socks]
listen = ["127.0.0.1:1080"]             # for IPv6 clients too: add "[::1]:1080"

[[peers]]
name = "endpoint"
public_key = "{public_key}"
url = {url}

[metrics]
listen = "127.0.0.1:9464"
"""

_JOINED = """\
# A gateway: SOCKS5 clients connect to it, and it tunnels to the endpoint that it has joined.
# The annotated gateway.toml that comes with socks-tunnel has all settings and their defaults.
role = "gateway"

[identity]
private_key_file = {key_file}

[socks]
listen = ["127.0.0.1:1080"]             # for IPv6 clients too: add "[::1]:1080"

[[peers]]
name = "endpoint"
public_key = "{public_key}"
{way}
[metrics]
listen = "127.0.0.1:9464"
"""

_ENDPOINT = """\
# An endpoint: it takes the gateway below in, checks the policy, and connects to the targets.
# The annotated endpoint.toml that comes with socks-tunnel has all settings and their defaults.
role = "endpoint"

[identity]
private_key_file = "{key_file}"

[signaling]
listen = {listen}

[[peers]]
name = "gateway"
public_key = "{public_key}"

# What the gateway's clients may reach. This is wide: narrow it to the hosts that they need.
[policy]
allowed_hosts = ["0.0.0.0", "::"]       # every address but loopback, link-local and multicast
allowed_ports = [22, 53, 80, 443, "8000-8100"]

[metrics]
listen = "127.0.0.1:9465"               # not 9464, so that a gateway can run on the same host
"""

_MEETING = """\
# An endpoint: it takes in hosts that join it, checks the policy, and connects to the targets.
# The annotated endpoint.toml that comes with socks-tunnel has all settings and their defaults.
role = "endpoint"

[identity]
private_key_file = {key_file}

[signaling]
{way}
# What the hosts that join may reach.
[policy]
allowed_hosts = {hosts}
allowed_ports = {ports}

[metrics]
listen = "127.0.0.1:9465"               # not 9464, so that a gateway can run on the same host
"""

_LOOPBACK_ICE = """
[ice]
addresses = [{address}]               # both ends are on one host
"""


class SignalingAddress(NamedTuple):
    """Where the endpoint is, as each side writes it."""

    url: str
    listen: str
    loopback: str | None
    """The loopback address, if both ends are on one host."""


class Pair(NamedTuple):
    """The texts of the two configurations."""

    gateway: str
    endpoint: str


def signaling_address(url: str, directory: Path) -> SignalingAddress:
    """Returns the listener that an endpoint needs, so that a gateway finds it at `url`.

    A relative `unix:` path is relative to `directory`. Raises :class:`ValueError` with a sentence
    if that is no URL for signalling that an endpoint can serve.
    """
    try:
        # Any key will do, because only the URL is checked here, by the rules for configurations.
        peer = {"name": "endpoint", "public_key": "A" * 43 + "=", "url": url}
        checked = Peer.model_validate(peer, context={"directory": directory}).url
    except ValidationError as error:
        raise ValueError(str(error.errors()[0]["ctx"]["error"])) from None
    assert checked is not None, "the model keeps the URL that it is given"
    if checked.startswith("unix:"):
        return SignalingAddress(checked, checked, "127.0.0.1")
    parts = urlsplit(checked)
    if parts.scheme == "https":
        raise ValueError(
            "https needs a certificate, which this command cannot make: pair with http, then set "
            "tls_certificate in the endpoint's [signaling] and https in the gateway's url"
        )
    port = parts.port or 80
    host = parts.hostname or ""
    address = parse_ip("127.0.0.1" if host == "localhost" else host)
    if address is not None and address.is_loopback:
        text = f"[{address}]" if address.version == 6 else str(address)
        return SignalingAddress(checked, f"{text}:{port}", str(address))
    # It listens on all addresses: behind NAT, the host does not have the address that others see.
    everywhere = "[::]" if address is not None and address.version == 6 else "0.0.0.0"  # noqa: S104
    return SignalingAddress(checked, f"{everywhere}:{port}", None)


def pair(signaling: SignalingAddress, *, gateway_key: str, endpoint_key: str) -> Pair:
    """Returns two configurations that name each other by their public keys (base64).

    The private keys are expected beside them, as :data:`GATEWAY_KEY` and :data:`ENDPOINT_KEY`.
    """
    ice = ""
    if signaling.loopback is not None:
        ice = _LOOPBACK_ICE.format(address=toml_value(signaling.loopback))
    return Pair(
        gateway=_GATEWAY.format(
            key_file=GATEWAY_KEY, public_key=endpoint_key, url=toml_value(signaling.url)
        )
        + ice,
        endpoint=_ENDPOINT.format(
            key_file=ENDPOINT_KEY, public_key=gateway_key, listen=toml_value(signaling.listen)
        )
        + ice,
    )


def meeting(
    url: str,
    *,
    key_file: str,
    tls_ca: Path | None,
    hosts: Sequence[str],
    ports: Sequence[str],
) -> str:
    """Returns the configuration of an endpoint that hosts join through a rendezvous service.

    Raises :class:`ValueError` with a sentence if `url` is none, or a rule cannot be parsed.
    """
    settings = {"rendezvous": url}
    if tls_ca is not None:
        settings["tls_ca"] = str(tls_ca)
    try:
        Signaling.model_validate(settings, context={"directory": Path("/")})
        parse_policy(PolicyRules(allowed_hosts=tuple(hosts), allowed_ports=tuple(ports)))
    except ValidationError as error:
        raise ValueError(f"URL {error.errors()[0]['ctx']['error']}") from None
    except PolicyError as error:
        problem = error.problems[0]
        raise ValueError(f"{problem.text!r}: {problem.reason}") from None
    text = _MEETING.format(
        key_file=toml_value(key_file),
        way="".join(f"{name} = {toml_value(value)}\n" for name, value in settings.items()),
        hosts=toml_value(list(hosts)),
        ports=toml_value([int(port) if port.isdecimal() else port for port in ports]),
    )
    return text + _loopback_ice(url)


def joined(
    url: str,
    *,
    endpoint_key: str,
    key_file: str,
    enrolment_file: str,
    tls_ca: Path | None,
    proxy: str | None,
) -> str:
    """Returns the configuration of a gateway that has joined the endpoint with this key (base64).

    `url` is the endpoint's or a rendezvous service's. Raises :class:`ValueError` with a sentence if
    it is neither.
    """
    service = url.startswith(("ws:", "wss:"))
    settings: dict[str, str] = {"rendezvous" if service else "url": url}
    if service:
        settings["enrolment_file"] = enrolment_file
    if tls_ca is not None:
        settings["tls_ca"] = str(tls_ca)
    if proxy is not None:
        settings["proxy"] = proxy
    try:
        peer = {"name": "endpoint", "public_key": endpoint_key, **settings}
        Peer.model_validate(peer, context={"directory": Path("/")})
    except ValidationError as error:
        raise ValueError(str(error.errors()[0]["ctx"]["error"])) from None
    text = _JOINED.format(
        key_file=toml_value(key_file),
        public_key=endpoint_key,
        way="".join(f"{name} = {toml_value(value)}\n" for name, value in settings.items()),
    )
    return text + _loopback_ice(url)


def _loopback_ice(url: str) -> str:
    """Returns the `[ice]` table if both sides are on one host, otherwise an empty text."""
    host = urlsplit(url).hostname or ""
    address = parse_ip("127.0.0.1" if host == "localhost" or url.startswith("unix:") else host)
    if address is None or not address.is_loopback:
        return ""
    return _LOOPBACK_ICE.format(address=toml_value(str(address)))
