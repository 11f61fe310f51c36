"""Audit records: who asked for what, what was decided by which rule, and how each flow ended.

They go to the logger `socks_tunnel.audit` at level INFO. `socks_tunnel.ops.logging` keeps that
logger on at every log level, because an audit trail must not end when somebody sets a quieter
level. The field names are the same in every record and are part of the interface to log pipelines.
"""

import logging
from typing import Final

from socks_tunnel.protocol.addresses import HostPort

LOGGER_NAME = "socks_tunnel.audit"

DECISION: Final = "policy decision"
FLOW_END: Final = "flow ended"
KILLED: Final = "flow killed"
UNROUTED: Final = "no route"
FAILOVER: Final = "failover"
DROPPED: Final = "audit records dropped"

MESSAGES: Final = (DECISION, FLOW_END, KILLED, UNROUTED, FAILOVER, DROPPED)
"""What a record is about; audit.schema.json beside this file has the fields of each."""

NUMBERS: Final = frozenset({"flow", "up", "down", "uid", "killer", "count"})
"""Fields that are whole numbers; `seconds` is a number too, all others are texts."""

_log = logging.getLogger(LOGGER_NAME)


def _record(message: str, fields: dict[str, object]) -> None:
    # Each flow has two records. What `Logger.info` does besides would be half of their cost.
    if _log.isEnabledFor(logging.INFO):
        record = logging.LogRecord(LOGGER_NAME, logging.INFO, "", 0, message, None, None)
        record.fields = fields
        _log.handle(record)


def decision(
    *,
    peer: str,
    conn_id: int,
    command: str,
    destination: HostPort | str,
    verdict: str,
    rule: str,
) -> None:
    """Records one decision of the access policy.

    `peer` is the configured name of the other host, `command` one of "connect", "udp-associate",
    "bind", `verdict` "allowed", "denied", or "resolve" on a gateway, which resolves no names and so
    may not be able to decide. `rule` is the text of the rule that decided.
    """
    _record(
        DECISION,
        {
            "peer": peer,
            "flow": conn_id,
            "command": command,
            "destination": str(destination),
            "verdict": verdict,
            "rule": rule,
        },
    )


def unrouted(*, command: str, destination: str) -> None:
    """Records that a destination was refused because no route of this gateway has it."""
    _record(UNROUTED, {"command": command, "destination": destination})


def failover(*, route: str, peer: str, instead: str, cause: str) -> None:
    """Records that new flows of a route go to another peer.

    `peer` is passed over, and `instead` is the first peer that takes over. `cause` is "link",
    "dials" or "probe". Flows that `peer` has already stay with it.
    """
    _record(FAILOVER, {"route": route, "peer": peer, "instead": instead, "cause": cause})


def flow_end(
    *,
    peer: str,
    conn_id: int,
    command: str,
    destination: HostPort | str | None,
    up: int,
    down: int,
    seconds: float,
    reason: str,
) -> None:
    """Records the end of one flow.

    `up` counts the payload bytes from the SOCKS client to the target and `down` those back, on
    either host; `seconds` is how long the flow was open. A UDP association has no single
    `destination`: None or "" leaves the field out.
    """
    fields: dict[str, object] = {"peer": peer, "flow": conn_id, "command": command}
    if destination:
        fields["destination"] = str(destination)
    fields |= {"up": up, "down": down, "seconds": round(seconds, 3), "reason": reason}
    _record(FLOW_END, fields)


def killed(*, peer: str, conn_id: int, command: str, destination: str, uid: int, pid: int) -> None:
    """Records that an operator, process `pid` of user `uid`, has ended a flow."""
    fields: dict[str, object] = {"peer": peer, "flow": conn_id, "command": command}
    if destination:
        fields["destination"] = destination
    _record(KILLED, {**fields, "uid": uid, "killer": pid})
