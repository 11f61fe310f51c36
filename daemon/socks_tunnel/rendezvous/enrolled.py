"""Whether a client may be here because an endpoint has enrolled it."""

import logging
import time

from socks_tunnel.signaling.joining import Enrolled, JoinRejected, open_enrolment

_log = logging.getLogger(__name__)


def whose_enrolment(enrolment: bytes, key: bytes) -> Enrolled | None:
    """Returns by whom a client is enrolled, as it shows; None for nothing that is good."""
    if not enrolment:
        return None
    try:
        return open_enrolment(enrolment, key, time.time())
    except JoinRejected as error:
        _log.debug("an enrolment is not good: %s", error)
        return None
