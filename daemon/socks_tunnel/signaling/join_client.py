"""Delivers one request to join to an endpoint, by the carrier that a URL names."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from socks_tunnel.protocol.rendezvous_states import SKEW_TOLD
from socks_tunnel.signaling.carrier import SignalingError, SignalingRefused
from socks_tunnel.signaling.direct import DirectClient
from socks_tunnel.signaling.identity import PrivateIdentity

ATTEMPT_TIMEOUT: Final = 15.0
"""Seconds that one attempt may take."""

PAUSE: Final = 2.0
"""Longest pause between two attempts in seconds, as a thousand hosts may join at the same time."""


async def bring(
    request: bytes,
    to: bytes,
    url: str,
    identity: PrivateIdentity,
    *,
    ca: Path | None = None,
    proxy: str | None = None,
    seconds: float = 60.0,
) -> bytes:
    """Returns the answer of the endpoint with the key `to`.

    `url` is the endpoint's (`http:`, `https:`, `unix:`), or a rendezvous service's (`wss:`, `ws:`),
    to which `identity` proves its key. An endpoint that is busy, or not there yet, is asked again
    until `seconds` are over. Raises :class:`SignalingError` then, or at once if it refuses, and
    :class:`ValueError` for what is no such URL.
    """
    if url.startswith(("ws:", "wss:")):
        return await _through_service(request, to, url, identity, ca, proxy, seconds)
    client = DirectClient(url, ca=ca, proxy=proxy)
    return await _ask_again(lambda timeout: client.join(request, timeout), seconds)


async def _through_service(
    request: bytes,
    to: bytes,
    url: str,
    identity: PrivateIdentity,
    ca: Path | None,
    proxy: str | None,
    seconds: float,
) -> bytes:
    from socks_tunnel.signaling.rendezvous import Rendezvous  # noqa: PLC0415 - it imports aiohttp

    service = Rendezvous(url, identity, _Pauses(), ca=ca, proxy=proxy)
    service.watch([to])
    service.start()
    try:
        return await _ask_again(lambda timeout: service.join(to, request, timeout), seconds)
    except SignalingRefused as refused:
        if abs(service.skew) <= SKEW_TOLD:
            raise
        way = "behind" if service.skew > 0 else "ahead of"
        raise SignalingRefused(
            f"{refused}; this host's clock is {abs(service.skew)} s {way} that of {url}, and a "
            "request is good for a minute: run a time service (systemd-timesyncd, chrony)"
        ) from None
    finally:
        await service.stop()


class _Pauses:
    """The pauses between attempts to reach a service."""

    def next(self) -> float:
        return random.uniform(0.2, PAUSE)  # noqa: S311 - no secret

    def reset(self) -> None:
        pass


async def _ask_again(ask: Callable[[float], Awaitable[bytes]], seconds: float) -> bytes:
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        try:
            return await ask(min(ATTEMPT_TIMEOUT, end - loop.time()))
        except SignalingRefused:
            raise
        except SignalingError:
            pause = random.uniform(0.2, PAUSE)  # noqa: S311 - no secret
            if loop.time() + pause >= end:
                raise
            await asyncio.sleep(pause)
