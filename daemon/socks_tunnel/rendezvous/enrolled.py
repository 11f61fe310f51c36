"""Checks the enrolment that a client presents."""

import logging
import time

from socks_tunnel.signaling.joining import Enrolled, JoinRejected, open_enrolment

_log = logging.getLogger(__name__)


def whose_enrolment(enrolment: bytes, key: bytes) -> Enrolled | None:
    """Returns the key that has enrolled a client; None if its enrolment is not valid."""
    if not enrolment:
        return None
    try:
        return open_enrolment(enrolment, key, time.time())
    except JoinRejected as error:
        _log.debug("an enrolment is not good: %s", error)
        return None
