"""The store and the bus between nodes, over Redis: keys that expire, and publish/subscribe.

::

    PREFIX "at:" KEY in hexadecimal     the node of a client; SET … EX, renewed while it is there
    PREFIX "node:" NODE                 channel: messages to one node (rendezvous.federation)
    PREFIX "nodes"                      channel: "alive" SPACE NODE, "bye" SPACE NODE

Commands wait in a queue, and are sent in batches of one round trip each. While Redis cannot be
reached, look-ups find nothing and other commands are dropped, so clients reach only those at their
own node. When Redis is back, all state is sent again.

Relayed datagrams are sent after that. They have a queue of their own, which drops old ones, and
those beyond its size.
"""

import asyncio
import logging
import random
import secrets
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable
from functools import partial
from typing import Any, Final, TypeAlias

import redis.asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.rendezvous import KEY_SIZE
from socks_tunnel.protocol.rendezvous_relay import BLOCKED_TIME, RelayQueue, count_relayed
from socks_tunnel.rendezvous.federation import Found

_log = logging.getLogger(__name__)
_bugs = BugLog()

PREFIX: Final = "socks-tunnel:"

EXPIRY: Final = 60
"""Seconds after which a key expires if its node does not renew it."""

RENEWAL: Final = 20.0
"""Seconds between two renewals of all keys of a node."""

HEARTBEAT: Final = 2.0
"""Seconds between two "alive" messages of a node."""

SILENCE: Final = 10.0
"""Seconds without such a message after which a node counts as dead."""

TIMEOUT: Final = 5.0
"""Seconds for Redis to answer."""

BATCH: Final = 512
"""Commands in one round trip."""

QUEUE_MAX: Final = 262_144
"""Commands that may wait. If there are more, all are dropped, and all state is sent again."""

RELAYED_QUEUE_MAX: Final = 4 << 20
"""Bytes of relayed datagrams that wait for Redis."""

RELAYED_BATCH: Final = 262_144
"""Bytes of relayed datagrams in one round trip. Later datagrams wait until its end."""

FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 5.0
"""Bounds of the pause between two attempts to reach Redis, in seconds."""

_RELEASE: Final = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end
return 0
"""

_RENEW: Final = """
local at = redis.call('get', KEYS[1])
if at and at ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'ex', ARGV[2])
return 1
"""

_Answer: TypeAlias = Callable[[Any], None]
_Command: TypeAlias = tuple[tuple[Any, ...], _Answer | None]
"""The words of a command, and the callback for its answer, which gets None without an answer."""


class RedisBus:
    """The connection of one node to the others. `node` is its address.

    Three callbacks are set before :meth:`start`. They are called for a message to this node, when
    something may have been lost, and when another node is silent.
    """

    def __init__(self, url: str) -> None:
        self.node = secrets.token_hex(8)
        self.counts: Counter[str] = Counter()
        self.is_up = False
        self.on_message: Callable[[bytes], None]
        self.on_resync: Callable[[], None]
        self.on_lost: Callable[[str], None]
        self.keys: Callable[[], Collection[bytes]]
        """Returns the keys that are at this node, for their renewal."""
        self.on_stolen: Callable[[bytes], None]
        """Called for a key of this node that has turned out to be at another node."""
        self._redis = aioredis.Redis.from_url(
            url,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), 0),
        )
        self._queue: deque[_Command] = deque()
        self._relayed = RelayQueue(self._drop_relayed, limit=RELAYED_QUEUE_MAX)
        self._queued = asyncio.Event()
        self._heard: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    # --- its life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Connects, and reconnects until :meth:`stop`."""
        self._task = spawn("rendezvous nodes", self._connect_forever())

    async def stop(self) -> None:
        """Says goodbye to the other nodes; bounded in time."""
        was_up = self.is_up
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=TIMEOUT)
            self._task = None
        try:
            async with asyncio.timeout(TIMEOUT):
                if was_up:
                    await self._execute([(("PUBLISH", f"{PREFIX}nodes", f"bye {self.node}"), None)])
        except (RedisError, OSError, TimeoutError) as error:
            _log.debug("no goodbye to the other nodes: %s", clip(error))
        finally:
            await self._redis.aclose()

    async def _connect_forever(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                async with self._redis.pubsub() as listening:
                    await listening.subscribe(f"{PREFIX}node:{self.node}", f"{PREFIX}nodes")
                    _log.info("the other nodes are reached through Redis")
                    pause = FIRST_PAUSE
                    await self._serve(listening)
            except (RedisError, OSError, TimeoutError) as error:
                _log.warning(
                    "Redis cannot be reached: %s; clients of other nodes are absent; trying again "
                    "in %.1f s",
                    clip(error),
                    pause,
                )
            except Exception as error:  # noqa: BLE001 - it is logged, and the connection is tried again
                self.counts["bugs"] += 1
                _bugs.tell(_log, "the connection to Redis ended because of a bug", error)
            finally:
                self.is_up = False
                self._drop_queue()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _serve(self, listening: Any) -> None:
        """Works until Redis fails. Always raises the error of Redis."""
        self.is_up = True
        now = asyncio.get_running_loop().time()
        self._heard = dict.fromkeys(self._heard, now)  # no node could be heard meanwhile
        self.on_resync()
        try:
            async with asyncio.TaskGroup() as group:
                for work in (
                    self._listen(listening),
                    self._send_forever(),
                    self._live(),
                    self._renew_forever(),
                ):
                    group.create_task(work)
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    # --- from the others ------------------------------------------------------------------------

    async def _listen(self, listening: Any) -> None:
        # Not get_message(timeout=…), which sometimes takes a cancellation for its time-out.
        messages = listening.listen()
        while True:
            async with asyncio.timeout(SILENCE):  # at least our own "alive" messages come back
                message = await anext(messages)
            if message["type"] != "message":
                continue
            data: bytes = message["data"]
            if message["channel"] == f"{PREFIX}nodes".encode():
                self._hear(data)
            else:
                self.on_message(data)

    def _hear(self, data: bytes) -> None:
        word, _, node = data.decode("utf-8", "replace").partition(" ")
        if node == self.node:
            return
        if word == "alive":
            self._heard[node] = asyncio.get_running_loop().time()
        elif word == "bye" and self._heard.pop(node, None) is not None:
            self.on_lost(node)

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._put(("PUBLISH", f"{PREFIX}nodes", f"alive {self.node}"), None)
            await asyncio.sleep(HEARTBEAT)
            for node, heard in list(self._heard.items()):
                if loop.time() - heard > SILENCE:
                    del self._heard[node]
                    _log.warning("the node %s has become silent", node)
                    self.on_lost(node)

    # --- to the others --------------------------------------------------------------------------

    def claim(self, key: bytes, then: Callable[[str | None], None]) -> None:
        """Stores that a key is at this node from now on.

        `then` gets the node where it was before.
        """

        def answered(before: Any) -> None:
            then(before.decode() if isinstance(before, bytes) else None)

        self._put(("SET", _at(key), self.node, "EX", EXPIRY, "GET"), answered)

    def release(self, key: bytes) -> None:
        """Stores that a key has left this node, unless another node has claimed it."""
        self._put(("EVAL", _RELEASE, 1, _at(key), self.node), None)

    def find(self, keys: Collection[bytes], then: Callable[[Found], None]) -> None:
        """Looks up the nodes of keys. Nothing is found while Redis cannot be reached."""
        wanted = list(keys)
        for start in range(0, len(wanted), BATCH):
            piece = wanted[start : start + BATCH]

            def answered(nodes: Any, piece: list[bytes] = piece) -> None:
                pairs = zip(piece, nodes or [], strict=False)
                then({key: node.decode() for key, node in pairs if node is not None})

            self._put(("MGET", *map(_at, piece)), answered)

    def send(self, node: str, message: bytes, then: Callable[[bool], None] | None = None) -> None:
        """Sends a message to one node. `then` gets whether a node received it.

        Redis answers PUBLISH with the number of listeners. Only the node itself listens to its
        channel.
        """

        def answered(listening: Any) -> None:
            if then is not None:
                then(bool(listening))

        words = ("PUBLISH", f"{PREFIX}node:{node}", message)
        self._put(words, answered if then is not None else None)

    def relay(self, node: str, lane: Hashable, message: bytes, datagrams: int, now: float) -> bool:
        """Sends datagrams to one node. They may be lost. Returns False if no node is reached."""
        if self.is_up:
            self._relayed.push(lane, node.encode() + b"\0" + message, datagrams, now)
            self._queued.set()
        return self.is_up

    def _drop_relayed(self, why: str, datagrams: int) -> None:
        self.counts[f"relay dropped: {why}"] += datagrams

    def _put(self, words: tuple[Any, ...], answered: _Answer | None) -> None:
        if not self.is_up:
            self.counts["redis: dropped"] += 1
            if answered is not None:
                answered(None)
            return
        if len(self._queue) >= QUEUE_MAX:
            _log.warning(
                "%d commands wait for Redis: all are dropped, and all state is sent again",
                QUEUE_MAX,
            )
            self._drop_queue()
            self.on_resync()
        self._queue.append((words, answered))
        self._queued.set()

    def _drop_queue(self) -> None:
        dropped, self._queue = self._queue, deque()
        self.counts["redis: dropped"] += len(dropped)
        for _, answered in dropped:
            if answered is not None:
                answered(None)
        self._relayed.clear()

    async def _send_forever(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await self._queued.wait()
            self._queued.clear()
            while self._queue or self._relayed.size:
                began = clock()
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                batch += self._relayed_batch()
                try:
                    answers = await self._execute(batch)
                except BaseException:
                    # Dropped with the other commands, and told.
                    self._queue.extendleft(reversed(batch))
                    raise
                for (_, answered), answer in zip(batch, answers, strict=True):
                    if answered is not None:
                        answered(answer)
                if (now := clock()) - began > BLOCKED_TIME:
                    self._relayed.expire(now)

    def _relayed_batch(self) -> list[_Command]:
        """Takes the datagrams of one round trip from the queue."""
        batch: list[_Command] = []
        size = 0
        while size < RELAYED_BATCH and (frame := self._relayed.pop()) is not None:
            node, _, message = frame.partition(b"\0")
            words = ("PUBLISH", f"{PREFIX}node:{node.decode()}", message)
            batch.append((words, partial(self._relayed_to, message)))
            size += len(message)
        return batch

    def _relayed_to(self, message: bytes, listening: Any) -> None:
        if not listening:  # the node has died, or Redis has not accepted the datagrams
            self._drop_relayed("gone", count_relayed(message, "to"))

    async def _execute(self, batch: Collection[_Command]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for words, _ in batch:
            # Without this option, the library turns the answer of SET into a boolean.
            options = {"get": True} if words[0] == "SET" else {}
            pipeline.execute_command(*words, **options)
        answers: list[Any] = await pipeline.execute(raise_on_error=True)
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # the library has lost a cancellation before
            raise asyncio.CancelledError
        self.counts["redis: commands"] += len(batch)
        return answers

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL)
            for key in list(self.keys()):

                def answered(kept: Any, key: bytes = key) -> None:
                    if kept == 0:
                        self.on_stolen(key)

                self._put(("EVAL", _RENEW, 1, _at(key), self.node, EXPIRY), answered)


def _at(key: bytes) -> str:
    assert len(key) == KEY_SIZE
    return f"{PREFIX}at:{key.hex()}"
