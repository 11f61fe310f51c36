"""What one end of an IPC stream receives: frames, a batch of messages for each session and turn.

All that is received passes here, so this is a class of its own, which is compiled (docs/adr/0028).
:class:`socks_tunnel.ipc.stream.Channel`, which has it, cannot be, because others inherit from it.
The event loop calls the methods of this class, and no interpreted code runs between the loop and
whoever takes the messages.
"""

from collections.abc import Callable
from typing import TypeAlias

from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.frames import FrameReader
from socks_tunnel.protocol.ipc import Control

TakeMessages: TypeAlias = Callable[[int, list[memoryview]], None]
"""Takes the number of a session and tunnel messages, which are valid only during the call."""

TakeControl: TypeAlias = Callable[[int, Control], None]
"""Takes the number of a session, 0 for none, and a control message."""

MetBug: TypeAlias = Callable[[int, Control | None, Exception], None]
"""Takes what raised, and for which session and message; None stands for tunnel messages."""


class Incoming:
    """The receiving half of one stream, as an :class:`asyncio.BufferedProtocol` has it.

    `take_messages` and `take_control` get what arrives, in the order of the stream. What they raise
    besides :class:`RemoteProtocolError` goes to `met_bug`, and the next message follows. Any other
    error, also one that `met_bug` raises, goes to `failed`: the stream is of no use after it.
    """

    def __init__(
        self,
        take_messages: TakeMessages,
        take_control: TakeControl,
        met_bug: MetBug,
        failed: Callable[[Exception], None],
    ) -> None:
        self._reader = FrameReader()
        self.take_messages = take_messages
        self.shut = False
        """Whether nothing more is delivered. The bytes that still come are thrown away."""
        self._take_control = take_control
        self._met_bug = met_bug
        self._failed = failed

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the reader knows better
        """Lends the reader's free room to the event loop."""
        return self._reader.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Delivers what became complete."""
        try:
            for session, item in self._reader.received(nbytes):
                if self.shut:
                    return
                try:
                    if isinstance(item, list):
                        self.take_messages(session, item)
                    else:
                        self._take_control(session, item)
                except RemoteProtocolError:
                    raise
                except Exception as error:  # noqa: BLE001 - one message must not end all flows
                    self._met_bug(session, None if isinstance(item, list) else item, error)
        except Exception as error:  # noqa: BLE001 - else asyncio would close without a reason
            self._failed(error)
