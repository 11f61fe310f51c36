"""Headless Chromium, driven over its debugging pipe.

That is null-terminated JSON on descriptors 3 and 4, so that nothing but the Debian package chromium is
needed. Without it the tests are skipped, or fail in CI.
"""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from typing import Any

from support.peers import no_peer

PATIENCE = 60.0
"""Seconds that an answer of the browser may take."""


class Browser:
    """A page of a headless browser, in which functions can be called."""

    def __init__(self, reader: asyncio.StreamReader, writer: Any) -> None:
        self._reader, self._writer = reader, writer
        self._numbers = itertools.count(1)
        self._session: str | None = None

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command of the debugging protocol and waits for its result."""
        number = next(self._numbers)
        request: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            request["sessionId"] = self._session
        self._writer.write(json.dumps(request).encode() + b"\0")
        async with asyncio.timeout(PATIENCE):
            while True:
                answer = json.loads((await self._reader.readuntil(b"\0"))[:-1])
                if answer.get("id") == number:
                    assert "error" not in answer, answer
                    result: dict[str, Any] = answer["result"]
                    return result

    async def open_page(self, url: str = "chrome://version") -> None:
        """Opens a page; the usual one has a secure origin, as the browser's cryptography asks for."""
        target = await self.ask("Target.createTarget", url=url)
        attached = await self.ask(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        # What is defined before the page has come is gone with the empty page that was there first.
        loaded = "location.href !== 'about:blank' && document.readyState === 'complete'"
        async with asyncio.timeout(PATIENCE):
            while not await self.call(loaded):
                await asyncio.sleep(0.02)

    async def call(self, expression: str) -> Any:
        """Returns the value of an expression, which may be a promise."""
        result = await self.ask(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")


@contextlib.asynccontextmanager
async def browser(*options: str, prefix: Sequence[str] = ()) -> AsyncIterator[Browser]:
    """A browser with one page. `prefix` is what its command line begins with: another host's."""
    program = shutil.which("chromium")
    if program is None:
        no_peer("the Debian package chromium is not installed")
    loop = asyncio.get_running_loop()
    commands, to_browser = os.pipe()
    from_browser, answers = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The shell puts the pipes where the browser looks for them.
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", f'exec "$0" "$@" 3<&{commands} 4>&{answers}', *prefix, program),
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"),
            *options,
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        reader = asyncio.StreamReader(limit=1 << 26)
        incoming, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(from_browser, "rb")
        )
        outgoing, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(to_browser, "wb"))
        try:
            page = Browser(reader, outgoing)
            await page.open_page()
            yield page
        finally:
            outgoing.close()
            incoming.close()
            process.kill()
            await process.wait()
