"""The fast path towards a browser, headless Chromium, in both roles: every byte is compared.

The browser is driven over its debugging pipe (null-terminated JSON on descriptors 3 and 4), so that
nothing but the Debian package chromium is needed. Without it the tests are skipped.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiortc import RTCSessionDescription

from integration.fast_pair import Kind, Peer
from integration.link_pair import PATIENCE
from integration.test_fast_interop import MESSAGES, digest, messages, send_all
from socks_tunnel.peer.ice import IceSettings, candidate_addresses

PAGE = """
const pc = new RTCPeerConnection({iceServers: []});
const got = [];
let channel;
const opened = new Promise(resolve => globalThis.resolveOpened = resolve);
function adopt(c) {
  channel = c;
  c.binaryType = 'arraybuffer';
  c.onmessage = e => got.push(new Uint8Array(e.data));
  if (c.readyState === 'open') resolveOpened(); else c.onopen = () => resolveOpened();
}
pc.ondatachannel = e => adopt(e.channel);
async function described() {
  while (pc.iceGatheringState !== 'complete') await new Promise(r => setTimeout(r, 20));
  return pc.localDescription.sdp;
}
async function offer() {
  adopt(pc.createDataChannel('bulk'));
  await pc.setLocalDescription();
  return described();
}
async function answer(sdp) {
  await pc.setRemoteDescription({type: 'offer', sdp});
  await pc.setLocalDescription();
  return described();
}
async function accept(sdp) { await pc.setRemoteDescription({type: 'answer', sdp}); }
async function send(parts) {
  await opened;
  channel.bufferedAmountLowThreshold = 1 << 18;
  for (const part of parts) {
    if (channel.bufferedAmount > 1 << 20)
      await new Promise(r => channel.onbufferedamountlow = r);
    channel.send(Uint8Array.from(atob(part), c => c.charCodeAt(0)));
  }
}
async function received(count) {
  while (got.length < count) await new Promise(r => setTimeout(r, 20));
  const parts = [];
  for (const part of got) {
    const length = new Uint8Array(4);
    new DataView(length.buffer).setUint32(0, part.length);
    parts.push(length, part);
  }
  const whole = new Uint8Array(await new Blob(parts).arrayBuffer());
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', whole));
  return [got.length, [...hash].map(b => b.toString(16).padStart(2, '0')).join('')];
}
"""


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

    async def open_page(self) -> None:
        """Opens a page whose origin is secure, as the browser's cryptography asks for."""
        target = await self.ask("Target.createTarget", url="chrome://version")
        attached = await self.ask(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        await self.ask("Runtime.evaluate", expression=PAGE)

    async def call(self, expression: str) -> Any:
        """Returns the value of an expression, which may be a promise."""
        result = await self.ask(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("the Debian package chromium is not installed")
    loop = asyncio.get_running_loop()
    commands, to_browser = os.pipe()
    from_browser, answers = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The shell puts the pipes where the browser looks for them.
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", f'exec "$0" "$@" 3<&{commands} 4>&{answers}', program),
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"),
            # Host candidates are addresses, and no names of mDNS that nobody here can resolve.
            "--disable-features=WebRtcHideLocalIpsWithMdns",
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


@pytest.mark.parametrize("kind", ["fast", "fenced"])
@pytest.mark.parametrize("role", ["offer", "answer"])
async def test_chromium(kind: Kind, role: str) -> None:
    """`role` is the browser's."""
    async with browser() as page:
        peer = Peer(kind)
        try:
            with candidate_addresses(IceSettings()):
                if role == "offer":
                    offer = await page.call("offer()")
                    await peer.pc.setRemoteDescription(RTCSessionDescription(offer, "offer"))
                    await peer.pc.setLocalDescription(await peer.pc.createAnswer())
                    await page.call(f"accept({json.dumps(peer.pc.localDescription.sdp)})")
                else:
                    peer.adopt(peer.pc.createDataChannel("bulk"))
                    await peer.pc.setLocalDescription(await peer.pc.createOffer())
                    answer = await page.call(f"answer({json.dumps(peer.pc.localDescription.sdp)})")
                    await peer.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
            await peer.until(peer.is_open)
            parts = [base64.b64encode(part).decode() for part in messages(1)]
            await asyncio.gather(
                send_all(peer, messages(0)), page.call(f"send({json.dumps(parts)})")
            )
            assert digest(await peer.messages(MESSAGES)) == digest(messages(1))
            count, hashed = await page.call(f"received({MESSAGES})")
            assert (count, hashed) == (MESSAGES, digest(messages(0)))
        finally:
            await peer.pc.close()
