"""URLs that a configuration names, checked as text."""

from collections.abc import Collection

from socks_tunnel.protocol.urls import split_url


def checked_url(text: str, schemes: Collection[str], complaint: str) -> str:
    """Returns `text`, if it is the URL of a host and nothing else.

    Raises :class:`ValueError` with `complaint` if it has another scheme or no host.
    """
    try:
        url = split_url(text)
    except ValueError as error:
        raise ValueError(f"is not a URL: {error}") from None
    if url.scheme not in schemes or not url.hostname:
        raise ValueError(complaint)
    if url.username is not None or url.query or url.fragment:
        raise ValueError("has a user, query or fragment, which has no meaning here")
    if url.port == 0:
        raise ValueError("names port 0")
    return text
