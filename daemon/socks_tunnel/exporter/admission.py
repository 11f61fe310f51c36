"""Decides who may read a page of the exporter, so that pages of other sites cannot.

Everybody who can connect may read the pages. A browser also connects for pages of other sites. Two
checks keep those from reading these pages:

* A request names its host (RFC 9110 section 7.2). An attacker can let a name of his own point here
  (DNS rebinding), so only names that are known to be this host's are answered. An address needs no
  such check, because nobody can make it point elsewhere.
* A browser says on whose behalf it asks, by `Origin` (RFC 6454) and `Sec-Fetch-Site` (W3C, Fetch
  Metadata Request Headers). Other programs send neither.

It has no socket and no clock: it judges the headers of a request.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from socks_tunnel.protocol.addresses import parse_ip
from socks_tunnel.protocol.bounded import clip

OWN_NAMES: Final = frozenset({"localhost", "ip6-localhost"})
"""Names that every resolver and browser takes for loopback."""

MISDIRECTED: Final = 421
"""The status for a name that is not this host's (RFC 9110 section 15.5.20)."""

FORBIDDEN: Final = 403
"""The status for a request on behalf of another site."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The status of the answer, a sentence for the client, and the label of the metric."""

    status: int
    sentence: str
    reason: str


def judge(
    headers: Mapping[str, str], names: Collection[str] = (), *, linkable: bool = False
) -> Refusal | None:
    """Returns why a request is refused, or None if it is not.

    `headers` have names in lower case. `names` are this host's names besides :data:`OWN_NAMES`, in
    lower case. With `linkable`, a link on a page of another site may open this page.
    """
    host = headers.get("host")
    if host is not None:  # it may be absent only in HTTP/1.0, which no browser speaks
        name = _name(host)
        if parse_ip(name) is None and name not in OWN_NAMES and name not in names:
            return Refusal(
                MISDIRECTED,
                f"this is not {clip(name)}; ask by address, or add the name to metrics.hosts",
                "foreign-name",
            )
    site = headers.get("sec-fetch-site", "none")
    followed = (
        linkable
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )
    if site not in {"none", "same-origin"} and not followed:
        return Refusal(FORBIDDEN, "pages of other sites may not read this", "other-site")
    origin = headers.get("origin")
    if origin is not None and origin.lower() != f"http://{(host or '').lower()}":
        return Refusal(FORBIDDEN, "pages of other sites may not read this", "other-site")
    return None


def _name(host: str) -> str:
    """Returns the host of a Host header, without its port and brackets, in lower case."""
    if host.startswith("["):
        name, _, port = host[1:].partition("]")
        return name if not port or port.startswith(":") else host
    name, _, _ = host.partition(":")
    return name.lower().removesuffix(".")
