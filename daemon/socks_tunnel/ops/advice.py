"""Advice about failures: maps sentences that the program logs to what to do. No I/O.

The sentences are our own. A test checks each pattern below against the code that makes it.
"""

import re
from typing import Final, NamedTuple

from socks_tunnel.ops.findings import Finding


class _Case(NamedTuple):
    pattern: re.Pattern[str]
    about: str
    meaning: str
    advice: str


def _case(pattern: str, about: str, meaning: str, advice: str) -> _Case:
    return _Case(re.compile(pattern), about, meaning, advice)


_CASES: Final = (
    _case(
        r"no configured peer has the public key (\S+)",
        "wrong key",
        "A peer asks with a key that no [[peers]] of this configuration has.",
        "If it is known to you, write its public_key here; `socks-tunnel pubkey` prints it there.",
    ),
    _case(
        r"addressed it to the public key (\S+), which is not ours",
        "wrong key",
        "The peer's configuration has another public_key for this host than the one in force.",
        "Write this host's key into [[peers]] there; `socks-tunnel pubkey` prints it here.",
    ),
    _case(
        r"a clock is wrong",
        "clock skew",
        "The clocks of the two hosts differ by more than signalling allows (a minute).",
        "Run a time service on both (systemd-timesyncd, chrony).",
    ),
    _case(
        r"refused the offer; its log says why",
        "offer refused",
        "The endpoint does not accept this gateway: a wrong key, a wrong clock, or addresses "
        "between which no path can be.",
        "`socks-tunnel diagnose` on the endpoint, and its log, name the reason. Compare the public "
        "keys in both configurations, the clocks, and ice.addresses.",
    ),
    _case(
        r"HTTP status 407|answered with status 407|wants a user and a password",
        "proxy authentication",
        "The proxy asks for a user name and a password, or does not accept them.",
        "Write them into the proxy's URL: http://USER:PASSWORD@HOST:PORT.",
    ),
    _case(
        r"refuses the user name .* or the credential \(401\)",
        "TURN credentials",
        "The TURN server does not accept the user name or the credential.",
        "Correct username and credential in [ice]; those of a secret that expires must be renewed.",
    ),
    _case(
        r"one side has only IPv4 addresses, the other only IPv6",
        "no common candidate",
        "The hosts have no address family in common, so no path can exist.",
        "Give one of them an address of the other family, or both a TURN server that has both.",
    ),
    _case(
        r"there is no local address|no ICE candidate can be made",
        "no candidate",
        "This host has no address to offer to its peer.",
        "See ice.addresses, ice.udp_ports and the interfaces of this host (ip address).",
    ),
    _case(
        r"no path to the peer works|no ICE candidate pair has answered",
        "UDP blocked",
        "The hosts know each other's addresses, and no UDP packet gets through.",
        "A firewall or a NAT is in between. Let UDP pass (ice.udp_ports names the ports), or name "
        "a TURN server in [ice], on port 443 by TCP or TLS if nothing else is let out.",
    ),
    _case(
        r"captive portal",
        "captive portal",
        "Something on the way answers in place of the server.",
        "Open any web page in a browser on this network and log in, or have the network let the "
        "server through.",
    ),
    _case(
        r"certificate of .* does not verify|no TLS with|TLS fails",
        "TLS",
        "The encrypted connection cannot be set up.",
        "The sentence says what to change; `openssl s_client` shows the certificate.",
    ),
    _case(
        r"Name or service not known|No address associated|name resolution|cannot be looked up"
        r"|name cannot be resolved|Name has no usable address",
        "DNS",
        "The name of a server cannot be resolved here.",
        "Correct the name, or the name servers in /etc/resolv.conf.",
    ),
    _case(
        r"Connection refused",
        "signalling refused",
        "Nothing listens on that port.",
        "Is the other side running, and is this the address and port of its listener? A firewall "
        "that rejects looks the same.",
    ),
    _case(
        r"Network is unreachable",
        "offline",
        "This host has no route to that address.",
        "Connect it to a network; `ip route` shows whether there is a default route.",
    ),
    _case(
        r"the connection was made, but",
        "answer lost",
        "The connection is made, and no answer comes through it.",
        "If a smaller MTU helps (`ip link set dev DEVICE mtu 1280`), let ICMP type 3 pass in the "
        "firewalls in between. If not, look at the other side's log.",
    ),
    _case(
        r"did not answer within|timed out|No route to host|unreachable",
        "no answer",
        "Packets to that address get lost.",
        "Is the address right and the host up? Let the port pass in the firewalls in between.",
    ),
    _case(
        r"another program listens there|Address already in use",
        "port taken",
        "Another program listens there.",
        "`ss -ltnp` (`ss -lunp` for UDP) names it. End it, or choose another port.",
    ),
    _case(
        r"No space left on device|Disk quota exceeded",
        "disk full",
        "A file system is full.",
        "Free some space; `df` shows where.",
    ),
    _case(
        r"Too many open files",
        "descriptor limit",
        "The process has no file descriptor left.",
        "Raise LimitNOFILE=, or lower limits.flows_per_worker.",
    ),
)


def explain(sentence: str, about: str = "") -> Finding:
    """Returns what a failure means and what to do, under its own name or `about`."""
    for case in _CASES:
        if case.pattern.search(sentence):
            name = f"{about}: {case.about}" if about else case.about
            # The end of a log line already has this advice.
            plain = sentence.removesuffix(f" {case.advice}").rstrip(".")
            return Finding("problem", name, f"{plain}. {case.meaning}", case.advice)
    return Finding("problem", about or "failure", f"{sentence}.", "The log has more.")


def advice_for(sentence: str) -> str:
    """Returns what to do about a failure, for the end of a log line, or an empty text."""
    case = next((case for case in _CASES if case.pattern.search(sentence)), None)
    return "" if case is None else f" {case.advice}"


def known(sentence: str) -> bool:
    """Returns whether there is advice for a sentence."""
    return any(case.pattern.search(sentence) for case in _CASES)


_PATHS: Final = {
    "host": "nothing that changes addresses is in between, and such a pair is preferred to all",
    "srflx": "a NAT is in between; no pair without one has worked",
    "prflx": "a NAT is in between whose address only the checks showed; no pair without one has "
    "worked",
    "relay": "everything goes through a TURN server: no direct pair has worked in time, or "
    "ice.policy wants it so",
}


def why_chosen(kind: str) -> str:
    """Returns why a pair of candidates of that kind is in use, as the end of a sentence."""
    return _PATHS.get(kind, "it is the best that has worked")
