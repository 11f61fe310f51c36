"""Who may read a page of the exporter: no page of another site, nobody by a name that is not ours.

Everybody who can connect may read the pages; a browser connects for pages of anybody. Two things
keep such a page from reading ours:

* A request names the host that it is for (RFC 9110 section 7.2). A name that an attacker has made
  to point here (DNS rebinding) is his own, so only names that are known to be ours are answered.
  An address needs no such check: nobody can make an address point elsewhere.
* A browser says on whose behalf it asks: `Origin` (RFC 6454) and `Sec-Fetch-Site` (W3C, Fetch
  Metadata Request Headers). Programs say neither.

No socket and no clock: headers go in, a refusal comes out.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from socks_tunnel.protocol.addresses import parse_ip
from socks_tunnel.protocol.bounded import clip

OWN_NAMES: Final = frozenset({"localhost", "ip6-localhost"})
"""Names that every resolver and browser takes for loopback."""

MISDIRECTED: Final = 421
"""The status for a name that is not ours (RFC 9110 section 15.5.20)."""

FORBIDDEN: Final = 403


@dataclass(frozen=True, slots=True)
class Refusal:
    """The status of the answer, a sentence for whoever asked, and the reason that is counted."""

    status: int
    sentence: str
    reason: str


def judge(
    headers: Mapping[str, str], names: Collection[str] = (), *, linkable: bool = False
) -> Refusal | None:
    """Returns why a request is refused, or None if it is not.

    `headers` have names in lower case. `names` are ours besides :data:`OWN_NAMES`, in lower case.
    `linkable`: a link on a page of another site may lead here, to a page in a window of its own.
    """
    host = headers.get("host")
    if host is not None:  # no browser speaks HTTP/1.0, where it may be absent
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
