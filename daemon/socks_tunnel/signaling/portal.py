"""Answers that a server of ours never gives: a captive portal, or a proxy that intercepts, does."""

from typing import Final

PORTAL_WORDS: Final = "a captive portal or an intercepting proxy answers in its place"

_STATUSES: Final = frozenset({200, 301, 302, 303, 307, 308, 511})
"""A page, a redirect to one, and Network Authentication Required (RFC 6585 section 6)."""


def is_portal(status: int) -> bool:
    """Returns whether an HTTP status is none of a server of ours, but one of a portal."""
    return status in _STATUSES
