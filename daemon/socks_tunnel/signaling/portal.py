"""Recognizes answers of captive portals and intercepting proxies, which our servers never give."""

from typing import Final

PORTAL_WORDS: Final = "a captive portal or an intercepting proxy answers in its place"

_STATUSES: Final = frozenset({200, 301, 302, 303, 307, 308, 511})
"""Status of a page, of redirects, and Network Authentication Required (RFC 6585 section 6)."""


def is_portal(status: int) -> bool:
    """Returns whether an HTTP status is that of a portal, and not of one of our servers."""
    return status in _STATUSES
