"""Dialling, on a gateway: one :class:`Dialler` for each configured peer keeps a link to it.

Which peers there are: supervisor/gateway_links.py.

::

    dial --up--> keep --ended--> wait (back-off with jitter, or the peer has appeared) --> dial
                  |  ^
           in doubt  |  another link, or the old one that works again
                  v  |
                 dial beside it; whichever works first carries on

While the path of a link that nobody doubts is relayed, a direct one is looked for: a second link
that may only be direct is dialled beside the first, in growing intervals, and takes over once it is
up.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from socks_tunnel.config.settings import Peer
from socks_tunnel.ops.advice import advice_for
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.peer.ice import IceSettings
from socks_tunnel.peer.transport import TransportError
from socks_tunnel.signaling.carrier import OutgoingCarrier, SignalingError
from socks_tunnel.signaling.envelope import EnvelopeRejected, new_body, seal
from socks_tunnel.signaling.identity import parse_public_key
from socks_tunnel.supervisor.backoff import Backoff, hastened
from socks_tunnel.supervisor.links import Links
from socks_tunnel.supervisor.peerlink import PeerLink

_log = logging.getLogger(__name__)

OFFER_TIMEOUT: Final = 15.0
"""Seconds for a peer to answer an offer."""

FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 30.0
"""Bounds of the delay between two attempts to reach a peer, in seconds."""

UNDISTURBED_FIRST: Final = 1.0
UNDISTURBED_LONGEST: Final = 16.0
"""Bounds of the seconds that an attempt goes on after it was made anew, whatever changes meanwhile.
They double from each such attempt to the next. Without that, a program that makes interfaces all
the time, such as one that starts containers, would keep a host from its peer: no attempt would have
the time that it needs."""

LIVED_LONG: Final = 30.0
"""Seconds after which a link that ends does not count as a failure in a row."""

DIRECT_FIRST: Final = 1.5
DIRECT_LONGEST: Final = 300.0
"""Bounds of the delay between two looks for a direct path beside a relayed one, in seconds."""

DIRECT_TIMEOUT: Final = 10.0
"""Seconds that one such look may take. A direct path that works is up within two or three."""

_EXPECTED: Final = (SignalingError, EnvelopeRejected, TransportError, ValueError)
"""What an attempt fails with when nobody here is to blame; each says why in a sentence."""

CarrierFactory = Callable[[Peer], OutgoingCarrier]
"""Returns the way to a peer."""


class Dialler:
    """Keeps dialling one peer. The session lasts as long as the process, whatever its program."""

    def __init__(
        self, links: Links, carrier_for: CarrierFactory, peer: Peer, session: bytes
    ) -> None:
        self.last_failure: str | None = None
        """Why there is no link, as a sentence; of the latest attempt or of the latest link."""
        self._links = links
        self._carrier_for = carrier_for
        self.session = session
        self._backoff = Backoff(FIRST_DELAY, LONGEST_DELAY, jitter=True)
        self._direct_backoff = Backoff(DIRECT_FIRST, DIRECT_LONGEST, jitter=True)
        self.update(peer)
        self._task: asyncio.Task[None] | None = None
        self._dialled_at: float | None = None
        """When the attempt began that has failed, or is under way."""
        self._hurry = asyncio.Event()
        self._begun: dict[PeerLink, tuple[OutgoingCarrier, str] | None] = {}
        """Links that have not ended, with what their goodbye needs once they were answered."""

    def update(self, peer: Peer) -> None:
        """Takes changes of the peer: the next attempt has them."""
        self.peer = peer
        self._key = parse_public_key(peer.public_key)
        self._carrier = self._carrier_for(peer)

    def start(self) -> None:
        """Dials until :meth:`hold` or :meth:`stop`."""
        self._task = spawn(f"dial {self.peer.name}", self._dial_forever())

    def hurry(self) -> None:
        """Dials at once, if there is a reason to dial; a direct path is looked for sooner again."""
        self._hurry.set()
        self._direct_backoff.reset()

    def hold(self) -> None:
        """Dials no more; a link that is up stays."""
        if self._task is not None:
            self._task.cancel()

    async def stop(self, reason: str) -> None:
        """Dials no more, ends the links in order, and says goodbye to the endpoint."""
        self.hold()
        if self._task is not None:
            await asyncio.wait([self._task])
        await asyncio.gather(*(self._bid_farewell(link, reason) for link in list(self._begun)))

    async def _bid_farewell(self, link: PeerLink, reason: str) -> None:
        answered = self._begun.get(link)
        await link.close(reason, "configuration")
        if answered is None:
            return
        carrier, handle = answered
        body = new_body(
            "bye",
            self._links.identity,
            self._key,
            session=self.session,
            now=self._links.clock.now(),
        )
        try:
            await carrier.bye(handle, seal(self._links.identity, body))
        except SignalingError as error:
            # The endpoint has usually noticed by the closing of the link itself.
            _log.debug("no goodbye to %s: %s", self.peer.name, error)

    # --- for as long as the process lives -------------------------------------------------------

    async def _dial_forever(self) -> None:
        name = self.peer.name
        while True:
            try:
                link = await self._dial()
            except _EXPECTED as error:
                reason = str(error)
                level = logging.DEBUG if reason == self.last_failure else logging.WARNING
                delay = self._failed(reason)
                text = "cannot reach %s: %s; trying again in %.1f s.%s"  # the same is said once
                _log.log(level, text, name, reason, delay, advice_for(reason))
            except Exception as error:  # noqa: BLE001 - reported, and no reason to give the peer up
                delay = self._failed(repr(error))
                _log.exception("dialling %s failed; trying again in %.1f s", name, delay)
            else:
                delay = self._failed(await self._keep(link))
                _log.info("dialling %s again in %.1f s", name, delay)
            await self._wait(delay)

    def _failed(self, reason: str) -> float:
        self.last_failure = reason
        return self._delay()

    def _delay(self) -> float:
        """Returns the seconds until the next attempt: few while flows wait for it.

        They count from the beginning of the attempt before then: one that has itself taken so long
        is followed at once.
        """
        delay = self._backoff.next()
        waited = self._waited()
        if waited is None:
            return delay
        now = asyncio.get_running_loop().time()
        spent = 0.0 if self._dialled_at is None else now - self._dialled_at
        return max(0.0, hastened(delay, waited) - spent)

    def _waited(self) -> float | None:
        """Returns for how many seconds flows have waited for a link; None if none do."""
        for session in self._links.router.sessions.values():
            if session.key == self.session and session.flows:
                since = session.detached_at
                return 0.0 if since is None else time.monotonic() - since
        return None

    async def _wait(self, delay: float, *others: "asyncio.Future[None]") -> None:
        """Waits so many seconds, or for one of others, or for a reason to dial at once."""
        appeared = spawn(f"presence of {self.peer.name}", self._carrier.appeared())
        hurried = spawn(f"hurry to {self.peer.name}", self._hurry.wait())
        any_of: list[asyncio.Future[Any]] = [appeared, hurried, *others]
        try:
            await asyncio.wait(any_of, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
        finally:
            appeared.cancel()
            hurried.cancel()

    async def _keep(self, link: PeerLink) -> str:
        """Waits until the link, and whatever has taken its place, has ended; returns why."""
        loop = asyncio.get_running_loop()
        up_at = loop.time()
        while not link.ended.done():
            # Flows go on with another link only if both sides can resume.
            resumable = link.link.protocol.resumable
            if resumable and link.in_doubt:
                newer = await self._dial_beside(link)
            elif resumable and may_be_better(link, self._links.ice):
                newer = await self._look_for_direct(link)
            else:
                self._dialled_at = None
                # Shielded: hold() cancels this task, not what others look at too.
                await asyncio.shield(link.change)
                continue
            if newer is not None:
                self._lived(link, loop.time() - up_at)
                link, up_at = newer, loop.time()
        self._lived(link, loop.time() - up_at)
        return link.ended.result()

    def _lived(self, link: PeerLink, seconds: float) -> None:
        """Lets attempts be frequent again after a link that was good for a while."""
        if seconds >= LIVED_LONG:
            self._backoff.reset()
            if not _relayed(link):
                self._direct_backoff.reset()

    async def _dial_beside(self, link: PeerLink) -> PeerLink | None:
        """Dials another link beside one that is in doubt, until either works.

        Returns the newer one once it is up; None if the old one works again, or has ended.
        """
        while link.in_doubt and not link.ended.done():
            dialling = spawn(f"dial {self.peer.name} again", self._attempt_beside())
            either: list[asyncio.Future[Any]] = [dialling, link.change]
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if link.ended.done():  # no longer beside it, but in its place
                    await asyncio.wait([dialling])
            finally:
                dialling.cancel()
            if not dialling.done():
                return await self._withdrawn(dialling, link, "the older one works again")
            newer = dialling.result()
            if newer is not None:
                return newer
            await self._wait(self._delay(), link.change)
        return None

    async def _look_for_direct(self, link: PeerLink) -> PeerLink | None:
        """Dials beside a relayed link, over direct paths alone, until such a link is up.

        Returns it, or None as soon as the relayed link is in doubt or has ended.
        """
        looked = 0
        while may_be_better(link, self._links.ice) and not (link.in_doubt or link.ended.done()):
            change = link.change
            await asyncio.wait([change], timeout=self._direct_backoff.next())
            if change.done():
                break
            looked += 1
            dialling = spawn(f"look for a direct path to {self.peer.name}", self._attempt_direct())
            either: list[asyncio.Future[Any]] = [dialling, change]
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                dialling.cancel()
            if not dialling.done():
                return await self._withdrawn(
                    dialling, link, "the relayed one is in doubt or has ended"
                )
            found = dialling.result()
            if isinstance(found, PeerLink):
                return found
            level = logging.INFO if looked == 1 else logging.DEBUG
            _log.log(level, "link %s stays relayed: %s; looking again later", self.peer.name, found)
        return None

    async def _withdrawn(
        self, dialling: "asyncio.Task[Any]", link: PeerLink, why: str
    ) -> PeerLink | None:
        """Waits for the end of a cancelled attempt beside a link, and closes what it began.

        Returns its link nevertheless if that has just come up: the older one ends then.
        """
        await asyncio.wait([dialling])
        for newer in self._begun:
            if newer is not link and newer.attached is not None:
                return newer
        self._give_up_attempts(why)
        return None

    async def _attempt_beside(self) -> PeerLink | None:
        """Makes one attempt while there still is a link; returns None if it has failed."""
        try:
            return await self._dial()
        except _EXPECTED as error:
            _log.info("cannot reach %s beside its link: %s", self.peer.name, error)
        except Exception:  # noqa: BLE001 - reported, and no reason to give the peer up
            _log.exception("dialling %s beside its link failed", self.peer.name)
        return None

    async def _attempt_direct(self) -> PeerLink | str:
        """Makes one attempt over direct paths alone; returns why there is none if it has failed."""
        before = set(self._begun)
        try:
            async with asyncio.timeout(DIRECT_TIMEOUT):
                return await self._try(direct=True)
        except TimeoutError:
            why = f"no direct path within {DIRECT_TIMEOUT:g} s"
        except _EXPECTED as error:
            why = str(error)
        except Exception as error:  # noqa: BLE001 - reported, and no reason to give the peer up
            _log.exception("looking for a direct path to %s failed", self.peer.name)
            why = repr(error)
        for link in self._begun.keys() - before:
            if link.attached is not None:  # it came up at the last moment
                return link
        self._give_up_attempts(why)
        return why

    # --- one attempt ----------------------------------------------------------------------------

    async def _dial(self) -> PeerLink:
        """Makes one attempt; returns it once its link is up. Raises what says why it failed.

        After :meth:`hurry` it is made anew, and the link of the first one is closed. The second one
        is not interrupted before it has had :data:`UNDISTURBED_FIRST` seconds.
        """
        undisturbed = Backoff(UNDISTURBED_FIRST, UNDISTURBED_LONGEST)
        granted = 0.0
        while True:
            self._hurry.clear()
            self._dialled_at = asyncio.get_running_loop().time()
            attempt = spawn(f"attempt to reach {self.peer.name}", self._attempt())
            hurried = spawn(f"hurry to {self.peer.name}", self._hurried_after(granted))
            either: list[asyncio.Future[Any]] = [attempt, hurried]
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                hurried.cancel()
                if not attempt.done():
                    attempt.cancel()
            await asyncio.wait([attempt])
            if attempt.cancelled():
                self._give_up_attempts("it is dialled anew")
                granted = undisturbed.next()
                continue
            result = attempt.result()
            if isinstance(result, PeerLink):
                self._dialled_at = None
                return result
            raise result

    async def _hurried_after(self, seconds: float) -> None:
        """Waits so many seconds, and then until :meth:`hurry` was called since the last attempt."""
        await asyncio.sleep(seconds)
        await self._hurry.wait()

    def _give_up_attempts(self, why: str) -> None:
        """Closes links that are still coming up."""
        for link in self._begun:
            if link.attached is None and not link.ended.done():
                spawn(f"close link {self.peer.name}", link.close(why))

    async def _attempt(self) -> PeerLink | Exception:
        """Returns the link, or what the attempt has failed with: that is no fault of the task."""
        try:
            return await self._try()
        except Exception as error:  # noqa: BLE001 - raised by who waits for it
            return error

    async def _try(self, *, direct: bool = False) -> PeerLink:
        # Before candidates are gathered: what the carrier offers is among those to be asked.
        offered = await self._carrier.ice_servers(OFFER_TIMEOUT)
        relay = self._carrier.relay()
        link = self._links.new_link(self.peer, self.session, offered, direct=direct, relay=relay)
        self._begun[link] = None
        link.ended.add_done_callback(lambda _: self._begun.pop(link, None))
        try:
            await self._shake_hands(link)
        except EnvelopeRejected as rejection:
            self._links.metrics.signaling_rejected_total.labels(rejection.reason_code).inc()
            await link.close("the answer was rejected")
            raise
        except asyncio.CancelledError:
            raise  # after hold() a link that is coming up may still do so; stop() closes it
        except Exception as error:
            await link.close(str(error))
            raise
        return link

    async def _shake_hands(self, link: PeerLink) -> None:
        links, carrier = self._links, self._carrier
        sdp = await link.link.create_offer()
        offer = new_body(
            "offer", links.identity, self._key, session=self.session, now=links.clock.now(), sdp=sdp
        )
        envelope, handle = await carrier.offer(seal(links.identity, offer), OFFER_TIMEOUT)
        self._begun[link] = carrier, handle
        answer, name = links.verifier.open(
            envelope, links.clock.now(), kinds={"answer"}, in_reply_to=offer.nonce
        )
        if name != self.peer.name or answer.session != self.session:
            raise EnvelopeRejected(
                "unexpected-reply", f"the answer is {name}'s, or of another session", name
            )
        await link.link.accept_answer(answer.sdp)
        await asyncio.shield(link.came_up)
        if link.ended.done():
            raise TransportError(link.ended.result())


def may_be_better(link: PeerLink, ice: IceSettings) -> bool:
    """Returns whether a direct path would be better than that of the link, and is allowed."""
    return _relayed(link) and ice.policy == "all"


def _relayed(link: PeerLink) -> bool:
    """Returns whether a TURN server or the rendezvous service is part of the link's path."""
    path = link.link.transport.path
    return path is not None and path.kind == "relay"
