"""Links and raw aiortc peers for the integration tests, all on loopback, in one event loop."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)

from socks_tunnel.peer import IceSettings, Link, quiet_loop_exceptions
from socks_tunnel.peer.fast.dtls import FastDtlsTransport
from socks_tunnel.peer.fast.transport import FastTransport
from socks_tunnel.peer.ice import candidate_addresses
from socks_tunnel.peer.over_aiortc import AiortcTransport
from socks_tunnel.peer.plain.transport import PlainTransport
from socks_tunnel.protocol.keepalive import Timing
from socks_tunnel.protocol.messages import SUBPROTOCOL, Hello, Resume

LOOPBACK = IceSettings(addresses=["127.0.0.1"])
SESSION = bytes(range(16))
PATIENCE = 60.0
"""Seconds after which a test gives up on something that is to happen at once."""


def hello(**changes: Any) -> Hello:
    """A HELLO of ours."""
    fields: dict[str, Any] = {
        "version": 1,
        "software": "test",
        "session": SESSION,
        "window": 262_144,
        "max_data": 65_529,
    }
    return Hello(**(fields | changes))


class JumpingClock:
    """The clock of one link, which a test sets forward where it would have to wait.

    So a link has as much time to get where the test wants it as a busy machine takes.
    """

    def __init__(self) -> None:
        self._ahead = 0.0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._callback: Callable[[], object] = lambda: None

    def time(self) -> float:
        return time.monotonic() + self._ahead

    def call_at(self, when: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        self._callback = callback
        self._timer = self._loop.call_later(max(0.0, when - self.time()), callback)
        return self._timer

    def jump(self, seconds: float) -> None:
        """Sets it forward: what is due by then happens in the next turn of the loop."""
        self._ahead += seconds
        if self._timer is not None and not self._timer.cancelled():
            self._timer.cancel()
            self._loop.call_soon(self._callback)


TIMES = {"ping_interval", "dead_after", "probe_after", "suspect_after"}


def over_aiortc(link: Link) -> AiortcTransport:
    """The transport of a link."""
    assert isinstance(link.transport, AiortcTransport)
    return link.transport


class MuteSocket:
    """A UDP socket that sends nothing, and receives as before.

    A compiled transport's methods cannot be replaced, but what it has of others can.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, *_: Any) -> None:
        """Sends nothing."""

    def sendto(self, *_: Any) -> None:
        """Sends nothing."""

    def sendmsg(self, *_: Any) -> None:
        """Sends nothing."""


def silence(link: Link) -> None:
    """Lets nothing out of a link any more, without an end."""

    async def swallow(*_: Any) -> None:
        pass

    sctp = pc_of(link).sctp
    assert sctp is not None
    if isinstance(sctp.transport, FastDtlsTransport):
        udp: Any = sctp.transport.udp
        udp._socket = MuteSocket(udp._socket)
    ice: Any = sctp.transport.transport._connection
    ice.send = ice.sendto = swallow


def pc_of(link: Link) -> RTCPeerConnection:
    """The peer connection beneath a link."""
    pc = over_aiortc(link)._connection.pc
    assert pc is not None
    return pc


def ice_of(link: Link) -> Any:
    """The ICE connection beneath a link."""
    sctp = pc_of(link).sctp
    assert sctp is not None
    return sctp.transport.transport._connection


def buffered(link: Link) -> int:
    """What waits in a link. A call, so that nobody takes the answer for lasting."""
    return link.transport.buffered


class Recorder:
    """A LinkObserver that writes all down, and can be waited on."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.messages: list[bytes] = []
        self.batches: list[int] = []
        self.drained = 0
        self.resumes: list[Resume] = []
        self.goaways: list[int] = []
        self.rtts: list[float] = []
        self.reason: str | None = None
        self.hook: Callable[[bytes], None] | None = None
        self._changed = asyncio.Event()

    def link_up(self) -> None:
        assert self.reason is None
        self._note("up")

    def link_messages(self, messages: list[bytes]) -> None:
        assert self.calls[0] == "up"
        assert messages
        self.messages += messages
        self.batches.append(len(messages))
        if self.hook is not None:
            for message in messages:
                self.hook(message)
        self._note("message")

    def link_drained(self, drained: int) -> None:
        self.drained += drained
        self._note("drained")

    def link_resume(self, resume: Resume) -> None:
        self.resumes.append(resume)
        self._note("resume")

    def link_goaway(self, reason: int) -> None:
        self.goaways.append(reason)
        self._note("goaway")

    def link_suspected(self, seconds: float) -> None:
        self._note("suspected")

    def link_trusted(self) -> None:
        self._note("trusted")

    def link_down(self, reason: str) -> None:
        assert self.reason is None, "link_down was called twice"
        self.reason = reason
        self._note("down")

    def on_rtt(self, seconds: float) -> None:
        self.rtts.append(seconds)
        self._note("rtt")

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self._changed.set()

    async def until(self, condition: Callable[[], bool], timeout: float = PATIENCE) -> None:
        """Wait for `condition`, looking again at each call."""
        async with asyncio.timeout(timeout):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def up(self) -> None:
        await self.until(lambda: "up" in self.calls or self.reason is not None)
        assert self.reason is None, self.reason

    async def down(self) -> str:
        await self.until(lambda: self.reason is not None)
        assert self.reason is not None
        return self.reason


class Site:
    """Makes links, closes them at the end, and fails the test for what the loop complains about."""

    transports: ClassVar[dict[str, Any]] = {"plain": PlainTransport, "fast": FastTransport}
    kind: ClassVar[str] = "plain"
    """What links run on; see the fixture `path` of tests/integration/conftest.py."""

    def __init__(self) -> None:
        self.complaints: list[dict[str, Any]] = []
        self._links: list[Link] = []
        self._raw: list[RTCPeerConnection] = []

    def link(self, role: Any, **options: Any) -> tuple[Link, Recorder]:
        observer = Recorder()
        settings: dict[str, Any] = {"hello": hello(), "name": role, "on_rtt": observer.on_rtt}
        times = {key: options.pop(key) for key in TIMES & options.keys()}
        lanes = {key: options.pop(key) for key in {"lanes"} & options.keys()}
        transport = self.transports[self.kind](
            role, options.pop("ice", LOOPBACK), name=role, **lanes
        )
        link = Link(observer, transport, timing=Timing(**times), **(settings | options))
        self._links.append(link)
        return link, observer

    def gateway(self, **options: Any) -> tuple[Link, Recorder]:
        return self.link("gateway", **options)

    def endpoint(self, **options: Any) -> tuple[Link, Recorder]:
        return self.link("endpoint", **({"hello": hello(session=bytes(16))} | options))

    async def pair(self, **options: Any) -> tuple[Link, Recorder, Link, Recorder]:
        """A gateway and an endpoint that are up; `options` go to both."""
        gateway, at_gateway = self.gateway(**options)
        endpoint, at_endpoint = self.endpoint(
            **{key: value for key, value in options.items() if key != "lanes"}
        )
        await gateway.accept_answer(await endpoint.accept_offer(await gateway.create_offer()))
        await at_gateway.up()
        await at_endpoint.up()
        return gateway, at_gateway, endpoint, at_endpoint

    def raw(self) -> RTCPeerConnection:
        """A peer connection with nothing of ours around it."""
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._raw.append(pc)
        return pc

    async def close(self) -> None:
        for link in self._links:
            await link.close("the test is over")
        for pc in self._raw:
            async with asyncio.timeout(PATIENCE):
                await pc.close()


@contextlib.asynccontextmanager
async def site() -> AsyncIterator[Site]:
    """A :class:`Site`, which closes what it made and complains at the end."""
    loop = asyncio.get_running_loop()
    here = Site()
    loop.set_exception_handler(lambda _, context: here.complaints.append(context))
    quiet_loop_exceptions(loop)
    try:
        yield here
    finally:
        await here.close()
        # Tasks that were cancelled, and callbacks that are due, end before the loop is judged.
        for _ in range(5):
            await asyncio.sleep(0)
    assert here.complaints == []


async def describe(pc: RTCPeerConnection, kind: str) -> str:
    """Returns a raw peer connection's offer or answer."""
    with candidate_addresses(LOOPBACK):
        await pc.setLocalDescription(
            await (pc.createOffer() if kind == "offer" else pc.createAnswer())
        )
    sdp: str = pc.localDescription.sdp
    return sdp


class RawGateway:
    """A gateway that a test plays by hand, against a Link that is an endpoint."""

    def __init__(self, here: Site, endpoint: Link) -> None:
        self.pc = here.raw()
        self.endpoint = endpoint
        self.channels: dict[str, RTCDataChannel] = {}
        self.got: list[tuple[str, bytes]] = []
        self._changed = asyncio.Event()

    def open(self, label: str, **options: Any) -> RTCDataChannel:
        channel = self.pc.createDataChannel(label, **({"protocol": SUBPROTOCOL} | options))

        def on_message(message: bytes) -> None:
            self.got.append((label, message))
            self._changed.set()

        channel.on("message", on_message)
        channel.on("open", self._changed.set)
        self.channels[label] = channel
        return channel

    def open_all(self, lanes: int = 2) -> None:
        self.open("control")
        self.open("datagram", ordered=False, maxRetransmits=0)
        for number in range(lanes):
            self.open(f"lane-{number}")

    async def connect(self) -> None:
        """Connect and wait until all channels are open."""
        answer = await self.endpoint.accept_offer(await describe(self.pc, "offer"))
        await self.pc.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))
        await self.until(lambda: all(c.readyState == "open" for c in self.channels.values()))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def on(self, label: str) -> list[bytes]:
        """What came on one channel."""
        return [message for channel, message in self.got if channel == label]


class RawEndpoint:
    """An endpoint that a test plays by hand, against a Link that is a gateway."""

    def __init__(self, here: Site, gateway: Link) -> None:
        self.pc = here.raw()
        self.gateway = gateway
        self.channels: dict[str, RTCDataChannel] = {}
        self.got: list[tuple[str, bytes]] = []
        self._changed = asyncio.Event()
        self.pc.on("datachannel", self._arrived)

    def _arrived(self, channel: RTCDataChannel) -> None:
        self.channels[channel.label] = channel

        def on_message(message: bytes) -> None:
            self.got.append((channel.label, message))
            self._changed.set()

        channel.on("message", on_message)

    async def connect(self, change: Callable[[str], str] = lambda sdp: sdp) -> None:
        """Connect, with an answer that `change` may have changed, and wait for HELLO.

        HELLO may come before the acknowledgements of the channels have arrived, so these are waited
        for as well.
        """
        offer = await self.gateway.create_offer()
        await self.pc.setRemoteDescription(RTCSessionDescription(sdp=offer, type="offer"))
        await self.gateway.accept_answer(change(await describe(self.pc, "answer")))
        await self.until(lambda: bool(self.on("control")))
        async with asyncio.timeout(PATIENCE):
            while self.gateway.transport.state == "connecting":
                await asyncio.sleep(0.01)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    def on(self, label: str) -> list[bytes]:
        return [message for channel, message in self.got if channel == label]
