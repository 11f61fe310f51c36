"""The values that labels of metrics are known to have.

If a series appeared only with its first event, Prometheus would see no increase, and the first
denial after a start would raise no alert. So the exporter shows all of these series from the start,
with 0. A value that is missing here is counted nevertheless. Tests compare the lists with the
sources.
"""

from typing import Final, Literal, TypeAlias, get_args

LINK_STATES: Final = ("up", "connecting", "down")
LINK_OUTCOMES: Final = ("up", "ended", "failed", "vain")

PATH_KINDS: Final = ("host", "srflx", "prflx", "relay")
"""Kinds of paths, the nearest first; :mod:`socks_tunnel.peer.ice.report` says what they mean."""

FAMILIES: Final = ("ipv4", "ipv6")

ReconnectCause: TypeAlias = Literal[
    "unanswered",
    "silence",
    "path-lost",
    "network-changed",
    "host-slept",
    "peer-restarted",
    "better-path",
    "replaced",
    "configuration",
    "protocol",
    "bug",
]
"""Why a link was replaced or ended before the one that has come up; each has one cause, and
:mod:`socks_tunnel.supervisor.reconnects` says what they mean."""

RECONNECT_CAUSES: Final[tuple[ReconnectCause, ...]] = get_args(ReconnectCause)

RESUME_RESULTS: Final = ("resumed", "given-up")
GIVEN_UP: Final = ("memory",)
FLOW_KINDS: Final = ("tcp", "udp")
DIRECTIONS: Final = ("up", "down")
LINK_DIRECTIONS: Final = ("sent", "received")

COMMANDS: Final = ("connect", "bind", "udp-associate", "resolve", "http", "unknown")
REPLIES: Final = (
    "succeeded",
    "general_failure",
    "not_allowed",
    "network_unreachable",
    "host_unreachable",
    "connection_refused",
    "ttl_expired",
    "command_not_supported",
    "address_type_not_supported",
)

ROUTED_COMMANDS: Final = ("connect", "bind", "udp-associate", "resolve")
FAILOVER_CAUSES: Final = ("link", "dials", "probe")

VERDICTS: Final = ("allowed", "denied", "unresolved", "resolve")

UDP_DROPS: Final = (
    "policy",
    "fragment",
    "too-long",
    "expired",
    "queue-full",
    "worker-busy",
    "socket-full",
    "unreachable",
    "unknown-flow",
    "foreign-source",
    "udp-header",
    "address-type",
    "short-address",
    "bad-name",
    "no-client",
    "no-link",
    "link-lost",
    "no-route",
    "draining",
    "too-many",
    "opening",
    "resolving",
    "unresolved",
    "filtered",
    "bug",
)

DNS_FAILURES: Final = (
    "absent",
    "timeout",
    "server",
    "resources",
    "too-many",
    "abandoned",
    "bug",
)

BUFFERS: Final = ("worker", "link", "ipc", "ipc-worker")

TRANSPORT_DROPS: Final = (
    "too-long",
    "socket-full",
    "unreachable",
    "relay-full",
    "foreign-source",
    "unauthentic",
    "backlog",
    "window",
)
"""Why the transport of a link has dropped something (:mod:`socks_tunnel.peer.transport`)."""

SIGNALING_REJECTIONS: Final = (
    "malformed",
    "unknown-peer",
    "bad-signature",
    "wrong-addressee",
    "expired",
    "too-far-ahead",
    "wrong-kind",
    "unexpected-reply",
    "replayed",
    "too-many",
)

LOGS: Final = ("log", "audit-file")
"""Where lines of the log go (:mod:`socks_tunnel.ops.logging`)."""

HTTP_LISTENERS: Final = ("metrics", "signaling")
HTTP_REFUSALS: Final = (
    "too-many",
    "tls",
    "timeout",
    "malformed",
    "busy",
    "foreign-name",
    "other-site",
    "unknown-page",
    "bug",
)

PARCEL_DROPS: Final = (
    "malformed",
    "unasked",
    "not-for-gateways",
    "too-many",
    "timeout",
    "answer-not-sent",
)
"""Why what came through a rendezvous service was dropped
(:mod:`socks_tunnel.signaling.rendezvous`)."""

RELAY_DROPS: Final = ("not-connected", "full", "late", "gone", "no-channel", "length")
"""Why datagrams that a rendezvous service relays were dropped on a host
(:mod:`socks_tunnel.signaling.rendezvous_relay`)."""

RENDEZVOUS_JOINS: Final = ("client", "guest")
RENDEZVOUS_REFUSALS: Final = (
    "not-listed",
    "guests",
    "joins",
    "clients",
    "watch",
    "rate",
    "outbox",
    "slow",
    "revoked",
    "enrolment-over",
)
RENDEZVOUS_DOOR: Final = ("unproved", "rate", "full", "flood")
RENDEZVOUS_ERRORS: Final = ("proof", "out-of-turn", "malformed", "text", "nodes", "revocation")
RENDEZVOUS_PARCEL_DROPS: Final = (
    "absent",
    "busy",
    "rate",
    "not-sent",
    "client-gone",
    "sender-gone-too",
    "load",
    "revocation",
)
RENDEZVOUS_RELAY_DROPS: Final = (
    "unrelayed",
    "elsewhere",
    "absent",
    "rate",
    "channels",
    "unanswered",
    "full",
    "late",
    "gone",
)
"""What a rendezvous service counts (:mod:`socks_tunnel.rendezvous.figures`)."""

JOIN_RESULTS: Final = (
    "joined",
    "renewed",
    "rejected",
    "unproved",
    "refused",
    "disk",
    "jwt-off",
    "jwt-keys",
    "jwt-malformed",
    "jwt-algorithm",
    "jwt-unknown-key",
    "jwt-signature",
    "jwt-issuer",
    "jwt-audience",
    "jwt-claims",
    "jwt-expired",
    "jwt-not-yet",
    "jwt-too-old",
    "jwt-bound",
    "jwt-no-tag",
)
"""What became of a request to join; the last ones are those of a JWT
(:data:`socks_tunnel.signaling.jwt_tokens.REFUSALS`)."""

CLIENT_REJECTIONS: Final = (
    "unknown-protocol",
    "not-socks5",
    "not-socks4",
    "no-acceptable-method",
    "authentication",
    "login-busy",
    "bad-request",
    "origin-form",
    "command",
    "address-type",
    "short-address",
    "bad-name",
    "incomplete",
    "timeout",
    "too-many",
)

RELOADS: Final = ("success", "failure")

_MESSAGES: Final = (
    "ping",
    "pong",
    "hello",
    "goaway",
    "resume",
    "open_connection",
    "close_connection",
    "connection_opened",
    "send_eof",
    "data",
    "window_update",
    "udp_associate",
    "udp_associate_opened",
    "udp_packet",
    "udp_associate_closed",
    "bind",
    "bind_listening",
    "bind_accepted",
    "resolve",
    "resolved",
)

PROTOCOL_ERRORS: Final = (
    # on `control`, and of channels
    "before-hello",
    "channel",
    "long-message",
    "ping-flood",
    "second-goaway",
    "second-hello",
    "second-resume",
    "session",
    "short-message",
    "text-message",
    "unexpected-resume",
    "version",
    "wrong-channel",
    # below the messages
    "aiortc",
    "dtls",
    "reassembly",
    "sctp",
    "sctp-timeout",
    "sdp",
    # of flows
    "address-type",
    "bad-name",
    "data-after-eof",
    "eof-twice",
    "flow-exists",
    "opened-twice",
    "resume-eof",
    "resume-received",
    "resume-rows",
    "resume-twice",
    "short-address",
    "too-many-flows",
    "unexpected-message",
    "unexpected-open",
    "window-consumed",
    "window-exceeded",
    "zero-conn-id",
    # our own errors, not the peer's
    "bug",
    "internal-error",
    # messages that cannot be read
    *(f"malformed-{message}" for message in _MESSAGES),
)
