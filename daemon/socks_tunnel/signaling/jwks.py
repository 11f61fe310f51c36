"""The keys of an identity provider, from a file or by HTTPS, cached and fetched again.

Anybody who can send requests to join can name keys that do not exist. So the number of queries to
the provider is bounded, simultaneous requests share one query, and only a few may wait for its
answer. If the provider is known to be unreachable, a request that needs its answer is refused at
once.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from socks_tunnel.ops.files import open_regular
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.urls import Url
from socks_tunnel.signaling.http_client import HttpFailure, request
from socks_tunnel.signaling.jwt_tokens import JWKS_MAX, Header, JwtRefused, KeySet
from socks_tunnel.signaling.tls import client_context

_log = logging.getLogger(__name__)

FETCH_TIMEOUT: Final = 10.0
"""Seconds that one query may take."""

FRESH: Final = 3600.0
"""Seconds after which the keys are fetched again, so that a withdrawn key stops working."""

STALE: Final = 24 * 3600.0
"""Seconds for which keys are used while the provider does not answer."""

FETCHES_BURST: Final = 5
FETCHES_PERIOD: Final = 30.0
"""Queries at once, and seconds for each query in the long run, while the provider answers."""

RETRY: Final = 3.0
"""Seconds after a query without a usable answer until the next one."""

AWAY_PATIENCE: Final = 0.5
"""Seconds that a request waits for the provider if the last query had no usable answer."""

WAITING_MAX: Final = 16
"""Requests that may wait for the provider at a time. Requests that need no answer go on."""

UNKNOWN_KEPT: Final = 10.0
"""Seconds for which it is remembered that the provider has no key with some id."""

UNKNOWN_MAX: Final = 256
"""Number of ids for which that is remembered."""


class KeysUnavailable(Exception):  # noqa: N818 - it is a state, not a fault of ours
    """The provider's keys are not known. The text is a sentence for the log."""


class Jwks:
    """The keys at `where`, which is a URL or a file. Both are read again from time to time.

    `ca` is a PEM file of CA certificates for the server. None: those that the system trusts.
    `proxy` is as in :func:`socks_tunnel.protocol.urls.proxy_for`.
    """

    def __init__(
        self,
        where: str | Path,
        *,
        ca: Path | None = None,
        proxy: str | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._where = where
        self._ca = ca
        self._proxy = proxy
        self._keys: KeySet | None = None
        self._fetched_at = 0.0
        self._allowed = float(FETCHES_BURST)
        self._counted_at = clock()
        self._fetching: asyncio.Task[None] | None = None
        self._failure = ""
        self._failed_at = 0.0
        self._waiting = 0
        self._unknown: dict[str | None, float] = {}

    async def find(self, header: Header) -> Any:
        """Returns the key that a token names.

        Raises :class:`KeysUnavailable` if no keys are known, or newer ones cannot be fetched, and
        :class:`~socks_tunnel.signaling.jwt_tokens.JwtRefused` if the provider has no such key.
        """
        asked = False
        if self._keys is None:
            asked = await self._fetch()
        elif self._age() > FRESH:
            # The known keys are used until they are too old.
            with contextlib.suppress(KeysUnavailable):
                asked = await self._fetch()
        key = self._usable().find(header)
        if key is None and not asked and not self._is_unknown(header.key_id):
            asked = await self._fetch()  # the key may be newer than the known keys
            key = self._usable().find(header)
        if key is not None:
            return key
        named = "" if header.key_id is None else f" (kid {clip(repr(header.key_id))})"
        if self._failure:
            raise KeysUnavailable(f"the issuer's key{named} is not known: {self._failure}")
        if asked:
            self._remember_unknown(header.key_id)
        raise JwtRefused("unknown-key", named)

    def _is_unknown(self, key_id: str | None) -> bool:
        """Returns whether the provider recently had no key with that id."""
        return self._clock() - self._unknown.get(key_id, -math.inf) < UNKNOWN_KEPT

    def _remember_unknown(self, key_id: str | None) -> None:
        self._unknown.pop(key_id, None)  # the newest ids are last
        self._unknown[key_id] = self._clock()
        if len(self._unknown) > UNKNOWN_MAX:
            del self._unknown[next(iter(self._unknown))]

    def _usable(self) -> KeySet:
        if self._keys is None or self._age() > STALE:
            why = self._failure or f"{self._where} was asked too often"
            raise KeysUnavailable(f"the issuer's keys are not known: {why}")
        return self._keys

    def _age(self) -> float:
        return self._clock() - self._fetched_at

    async def _fetch(self) -> bool:
        """Fetches the keys, if that is allowed now. Returns whether fresh keys have come.

        The keys stay as they are if it fails. Raises :class:`KeysUnavailable` if too many wait.
        """
        if self._fetching is None:
            if not self._may_fetch():
                return False
            self._fetching = spawn("fetch the issuer's keys", self._fetch_once())
        if self._waiting >= WAITING_MAX:
            raise KeysUnavailable(
                f"{WAITING_MAX} requests wait for {self._where} already; try later"
            )
        fetching = self._fetching
        self._waiting += 1
        try:
            await asyncio.wait([fetching], timeout=AWAY_PATIENCE if self._failure else None)
        finally:
            self._waiting -= 1
        return fetching.done() and not self._failure

    def _may_fetch(self) -> bool:
        now = self._clock()
        if self._failure:
            return now - self._failed_at >= RETRY
        more = (now - self._counted_at) / FETCHES_PERIOD
        self._allowed, self._counted_at = min(FETCHES_BURST, self._allowed + more), now
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True

    async def _fetch_once(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT):
                self._keys = KeySet(await self._read())
        except TimeoutError:
            self._failed(f"{self._where} did not answer within {FETCH_TIMEOUT:g} s")
        except HttpFailure as failure:
            self._failed(f"{self._where} {failure}")
        except (OSError, ValueError) as error:
            self._failed(f"{self._where}: {error}")
        else:
            self._fetched_at = self._clock()
            if self._failure:
                _log.info("the issuer's keys can be fetched again from %s", self._where)
            self._failure = ""
        finally:
            self._fetching = None

    def _failed(self, why: str) -> None:
        if not self._failure:  # it is logged once, and not for each request to join
            _log.warning("the issuer's keys cannot be fetched: %s", why)
        self._failure = why
        self._failed_at = self._clock()

    async def _read(self) -> bytes:
        """Returns the document. Raises OSError, HttpFailure or ValueError."""
        if isinstance(self._where, Path):
            return await asyncio.to_thread(_read_file, self._where)
        url = Url.parse(self._where)
        tls = await asyncio.to_thread(client_context, self._ca) if url.scheme == "https" else None
        headers = {"Accept": "application/jwk-set+json, application/json"}
        answer = await request(
            "GET",
            url,
            b"",
            {**headers, "User-Agent": "socks-tunnel"},
            tls=tls,
            configured_proxy=self._proxy,
            answer_max=JWKS_MAX,
        )
        if answer.status != 200:
            raise ValueError(f"it answered with HTTP status {answer.status}")
        if answer.body is None:
            raise ValueError(f"its answer is over {JWKS_MAX} bytes")
        return answer.body


def _read_file(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(JWKS_MAX + 1)
