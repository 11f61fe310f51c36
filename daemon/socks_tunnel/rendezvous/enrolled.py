"""Whether a client may be here because an endpoint has enrolled it."""

import logging
import time

from socks_tunnel.signaling.joining import JoinRejected, enrolled_by

_log = logging.getLogger(__name__)


def whose_enrolment(enrolment: bytes, key: bytes) -> bytes | None:
    """Returns whose enrolment a client shows; None for none that is good."""
    if not enrolment:
        return None
    try:
        return enrolled_by(enrolment, key, time.time())
    except JoinRejected as error:
        _log.debug("an enrolment is not good: %s", error)
        return None
