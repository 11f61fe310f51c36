"""Asks a running instance again and again, on one connection to its control socket."""

import asyncio
import contextlib
import errno
import json
from pathlib import Path
from typing import Any, Final

from socks_tunnel.protocol import bounded

ANSWER_MAX: Final = 64 << 20
"""Longest answer in bytes. The answer of an older instance has a row for every flow."""

TIMEOUT: Final = 15.0
"""Seconds for a request and its answer."""


class Client:
    """A connection to the control socket at `path`, made when it is needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, op: str, **fields: Any) -> Any:
        """Returns the result of a request.

        Raises :class:`OSError` if nobody answers in time or the request is refused; the next
        request is made on a new connection then.
        """
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._ask({"op": op, **fields})
        except BaseException:
            self.close()
            raise

    async def _ask(self, request: dict[str, Any]) -> Any:
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(self._path, limit=ANSWER_MAX)
        reader, writer = self._streams
        writer.write(json.dumps(request).encode() + b"\n")
        await writer.drain()
        try:
            answer = bounded.json_map(await reader.readline(), size=ANSWER_MAX)
        except ValueError:  # malformed, or a line over the limit
            raise OSError(errno.EPROTO, "it closed the connection without an answer") from None
        if not answer.get("ok"):
            raise OSError(errno.EPROTO, str(answer.get("error", "it gives no reason")))
        return answer.get("result")

    def close(self) -> None:
        """Closes the connection; harmless if there is none."""
        if self._streams is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._streams[1].close()
            self._streams = None
