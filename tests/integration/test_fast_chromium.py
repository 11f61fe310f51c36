"""The fast path towards a browser, headless Chromium, in both roles: every byte is compared."""

import asyncio
import base64
import json

import pytest
from aiortc import RTCSessionDescription

from integration.fast_pair import Kind, Peer
from integration.test_fast_interop import MESSAGES, digest, messages, send_all
from socks_tunnel.peer.ice import IceSettings, candidate_addresses
from support.browser import browser

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


@pytest.mark.parametrize("kind", ["fast", "fenced"])
@pytest.mark.parametrize("role", ["offer", "answer"])
async def test_chromium(kind: Kind, role: str) -> None:
    """`role` is the browser's."""
    # Host candidates are addresses, and no names of mDNS that nobody here can resolve.
    async with browser("--disable-features=WebRtcHideLocalIpsWithMdns") as page:
        await page.ask("Runtime.evaluate", expression=PAGE)
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
