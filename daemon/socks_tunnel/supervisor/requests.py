"""Checks the parameters of requests on the control socket."""

from typing import Any, Final

from socks_tunnel.protocol.bounded import clip
from socks_tunnel.supervisor import report
from socks_tunnel.supervisor.control import ControlError

DRAIN_MAX: Final = 86_400
"""Longest time in seconds that a drain may be asked to take."""


CONN_ID_DIGITS: Final = 10
"""Decimal digits of the largest CONN_ID, which has 32 bits."""


def drain_timeout(request: dict[str, Any], default: float) -> float:
    """Returns for how many seconds a drain may take. Raises :class:`ControlError`."""
    timeout = request.get("timeout", default)
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not number or not 0 <= timeout <= DRAIN_MAX:
        raise ControlError(
            f"a timeout is a number of seconds from 0 to {DRAIN_MAX}, not {clip(timeout)}"
        )
    return float(timeout)


def flow_name(request: dict[str, Any]) -> tuple[str, int]:
    """Returns the peer and the CONN_ID of the flow that is named. Raises :class:`ControlError`."""
    name = request.get("flow")
    peer, _, number = name.rpartition("/") if isinstance(name, str) else ("", "", "")
    if not peer or not number.isascii() or not number.isdecimal() or len(number) > CONN_ID_DIGITS:
        raise ControlError(f"a flow is named PEER/CONN_ID, as in office/17, not {clip(name)}")
    return peer, int(number)


def selection(request: dict[str, Any]) -> dict[str, Any]:
    """Returns the options for :func:`report.connections`: none, or `limit` and `by`.

    Raises :class:`ControlError`.
    """
    limit, by = request.get("limit"), request.get("by", report.RANKINGS[0])
    if limit is None:
        return {}
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise ControlError(f"a limit is a number of flows, not {clip(limit)}")
    if by not in report.RANKINGS:
        raise ControlError(f"flows are sorted by {', '.join(report.RANKINGS)}, not by {clip(by)}")
    return {"limit": limit, "by": by}
