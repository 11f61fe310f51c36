"""Dials the peers of a gateway: one :class:`Dialler` for each configured peer keeps a link to it.

supervisor/gateway_links.py has the diallers of all peers.

::

    dial --up--> keep --ended--> wait (back-off with jitter, or the peer has appeared) --> dial
                  |  ^
           in doubt  |  another link, or the old one that works again
                  v  |
                 dial another link; the first one that works carries on

While the path of a link that is not in doubt is relayed, the dialler looks for a direct one: in
growing intervals it dials a second link that may only be direct. That link takes over when it is
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
"""Bounds of the seconds for which a repeated attempt is not interrupted, whatever changes
meanwhile. They double with each repetition. Without them, a program that makes interfaces all the
time, such as one that starts containers, would leave no attempt the time that it needs."""

LIVED_LONG: Final = 30.0
"""Seconds of life after which the end of a link does not lengthen the back-off."""

DIRECT_FIRST: Final = 1.5
DIRECT_LONGEST: Final = 300.0
"""Bounds of the delay between two attempts to find a direct path, in seconds."""

DIRECT_TIMEOUT: Final = 10.0
"""Seconds that one such attempt may take. A direct path that works is up within two or three."""

_EXPECTED: Final = (SignalingError, EnvelopeRejected, TransportError, ValueError)
"""Errors of an attempt that are no bugs of this program. Their texts are sentences."""

CarrierFactory = Callable[[Peer], OutgoingCarrier]
"""Returns the way to a peer."""


class Dialler:
    """Keeps dialling one peer.

    `session` names the session of the flows (16 bytes). It lasts as long as the process, also if
    the program is replaced.
    """

    def __init__(
        self, links: Links, carrier_for: CarrierFactory, peer: Peer, session: bytes
    ) -> None:
        self.last_failure: str | None = None
        """A sentence that says why the last attempt failed or the last link ended."""
        self._links = links
        self._carrier_for = carrier_for
        self.session = session
        self._backoff = Backoff(FIRST_DELAY, LONGEST_DELAY, jitter=True)
        self._direct_backoff = Backoff(DIRECT_FIRST, DIRECT_LONGEST, jitter=True)
        self.update(peer)
        self._task: asyncio.Task[None] | None = None
        self._dialled_at: float | None = None
        """Time of the loop at which the last attempt began."""
        self._hurry = asyncio.Event()
        self._begun: dict[PeerLink, tuple[OutgoingCarrier, str] | None] = {}
        """Links that have not ended, with the carrier and the id for a goodbye once answered."""

    def update(self, peer: Peer) -> None:
        """Takes changes of the peer, which the next attempt uses."""
        self.peer = peer
        self._key = parse_public_key(peer.public_key)
        self._carrier = self._carrier_for(peer)

    def start(self) -> None:
        """Dials until :meth:`hold` or :meth:`stop`."""
        self._task = spawn(f"dial {self.peer.name}", self._dial_forever())

    def hurry(self) -> None:
        """Dials at once if a link is wanted. The next look for a direct path comes sooner, too."""
        self._hurry.set()
        self._direct_backoff.reset()

    def hold(self) -> None:
        """Stops dialling. A link that is up stays."""
        if self._task is not None:
            self._task.cancel()

    async def stop(self, reason: str) -> None:
        """Stops dialling, ends the links in order, and sends the endpoint a goodbye."""
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
            # The endpoint usually notices the end of the link itself.
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
                text = "cannot reach %s: %s; trying again in %.1f s.%s"
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
        """Returns the seconds until the next attempt: few while flows wait for a link.

        While flows wait, they count from the start of the last attempt. So an attempt that took as
        long itself is followed at once.
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
        """Waits until `delay` seconds are over, one of `others` is done, or dialling is hurried."""
        appeared = spawn(f"presence of {self.peer.name}", self._carrier.appeared())
        hurried = spawn(f"hurry to {self.peer.name}", self._hurry.wait())
        any_of: list[asyncio.Future[Any]] = [appeared, hurried, *others]
        try:
            await asyncio.wait(any_of, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
        finally:
            appeared.cancel()
            hurried.cancel()

    async def _keep(self, link: PeerLink) -> str:
        """Waits until the link and all links that took its place have ended; returns why."""
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
                # Shielded, so that hold() cancels this task but not the future that others share.
                await asyncio.shield(link.change)
                continue
            if newer is not None:
                self._lived(link, loop.time() - up_at)
                link, up_at = newer, loop.time()
        self._lived(link, loop.time() - up_at)
        return link.ended.result()

    def _lived(self, link: PeerLink, seconds: float) -> None:
        """Resets the back-off after a link that has lived for :data:`LIVED_LONG` seconds."""
        if seconds >= LIVED_LONG:
            self._backoff.reset()
            if not _relayed(link):
                self._direct_backoff.reset()

    async def _dial_beside(self, link: PeerLink) -> PeerLink | None:
        """Dials another link besides one that is in doubt, until either works.

        Returns the new link when it is up. Returns None if the old one works again or has ended.
        """
        while link.in_doubt and not link.ended.done():
            dialling = spawn(f"dial {self.peer.name} again", self._attempt_beside())
            either: list[asyncio.Future[Any]] = [dialling, link.change]
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if link.ended.done():  # the new link takes the place of the old one
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
        """Dials direct links besides a relayed one, until one of them is up.

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
        """Waits for the end of a cancelled attempt, and closes the link that it began.

        If that link has just come up, it is returned instead, and the older one ends.
        """
        await asyncio.wait([dialling])
        for newer in self._begun:
            if newer is not link and newer.attached is not None:
                return newer
        self._give_up_attempts(why)
        return None

    async def _attempt_beside(self) -> PeerLink | None:
        """Makes one attempt while another link is up; returns None if it has failed."""
        try:
            return await self._dial()
        except _EXPECTED as error:
            _log.info("cannot reach %s beside its link: %s", self.peer.name, error)
        except Exception:  # noqa: BLE001 - reported, and no reason to give the peer up
            _log.exception("dialling %s beside its link failed", self.peer.name)
        return None

    async def _attempt_direct(self) -> PeerLink | str:
        """Makes one attempt with direct paths only; returns the link, or why it has failed."""
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
            if link.attached is not None:  # it has come up just before the time-out
                return link
        self._give_up_attempts(why)
        return why

    # --- one attempt ----------------------------------------------------------------------------

    async def _dial(self) -> PeerLink:
        """Makes one attempt; returns its link when that is up. Raises the reason if it has failed.

        :meth:`hurry` interrupts the attempt, closes its link, and makes a new attempt, because the
        addresses of this host may have changed. The second attempt is not interrupted in its first
        :data:`UNDISTURBED_FIRST` seconds.
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
        """Waits for `seconds`, and then until :meth:`hurry` was called since the attempt began."""
        await asyncio.sleep(seconds)
        await self._hurry.wait()

    def _give_up_attempts(self, why: str) -> None:
        """Closes links that are not up yet."""
        for link in self._begun:
            if link.attached is None and not link.ended.done():
                spawn(f"close link {self.peer.name}", link.close(why))

    async def _attempt(self) -> PeerLink | Exception:
        """Returns the link, or the exception of the attempt, which the task must not log."""
        try:
            return await self._try()
        except Exception as error:  # noqa: BLE001 - the caller raises it
            return error

    async def _try(self, *, direct: bool = False) -> PeerLink:
        # First the ICE servers that the carrier offers, because candidates are gathered from them.
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
            raise  # after hold() the link may still come up; stop() closes it
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
                "unexpected-reply",
                f"the answer is from {name}, or for another session, and not from {self.peer.name}",
                name,
            )
        await link.link.accept_answer(answer.sdp)
        await asyncio.shield(link.came_up)
        if link.ended.done():
            raise TransportError(link.ended.result())


def may_be_better(link: PeerLink, ice: IceSettings) -> bool:
    """Returns whether the link's path is relayed although a direct one is allowed."""
    return _relayed(link) and ice.policy == "all"


def _relayed(link: PeerLink) -> bool:
    """Returns whether a TURN server or the rendezvous service is part of the link's path."""
    path = link.link.transport.path
    return path is not None and path.kind == "relay"
