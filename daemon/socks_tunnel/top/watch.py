"""The shell around the model: the terminal, keys and signals, the clock, the control socket."""

import asyncio
import contextlib
import os
import signal
import termios
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console, ConsoleDimensions
from rich.live import Live

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.top.client import Client
from socks_tunnel.top.model import Model
from socks_tunnel.top.screen import picture

PERIOD: Final = 1.0
"""Seconds from one sample to the next, if the instance answers quickly."""

LOAD_MAX: Final = 0.1
"""Largest share of the time that is spent on waiting for answers."""

PAUSE_MAX: Final = 5.0
"""The longest pause that follows from this share, in seconds."""

FLOWS_MAX: Final = 250
"""Flows that each worker is asked for: more than there are lines on a screen."""

_INTERRUPTS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(path: Path) -> None:
    """Watches the instance whose control socket is at `path` until the user quits.

    Standard input and output are a terminal, which is restored at the end. Raises
    :class:`OSError` if the instance does not answer the first request.
    """
    asyncio.run(_Watch(path).run())


def pause(took: float) -> float:
    """Returns the seconds to wait after a sample that took so long."""
    return max(PERIOD - took, min(took * (1 / LOAD_MAX - 1), PAUSE_MAX))


class _Watch:
    def __init__(self, path: Path) -> None:
        self._client = Client(path)
        self._model = Model()
        self._console = Console(highlight=False)
        self._live: Live | None = None
        self._stop = asyncio.Event()
        self._input = 0
        self._settings = termios.tcgetattr(self._input)

    async def run(self) -> None:
        await self._sample()
        loop = asyncio.get_running_loop()
        for number in _INTERRUPTS:
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGWINCH, self._draw)
        loop.add_signal_handler(signal.SIGTSTP, self._suspend)
        loop.add_reader(self._input, self._key)
        stopped = spawn("stopped", self._stop.wait())
        sampling = spawn("sample", self._keep_sampling())
        try:
            with self._terminal():
                await asyncio.wait([stopped, sampling], return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(self._input)
            self._client.close()
            for task in (stopped, sampling):
                task.cancel()
        if sampling.done() and not sampling.cancelled():
            sampling.result()

    # --- the instance ---------------------------------------------------------------------------

    async def _sample(self) -> None:
        status = await self._client.ask("status")
        flows = await self._client.ask("connections", limit=FLOWS_MAX, by=self._model.order)
        self._model.sample(asyncio.get_running_loop().time(), status, flows)

    async def _keep_sampling(self) -> None:
        loop = asyncio.get_running_loop()
        took = 0.0
        while True:
            await asyncio.sleep(pause(took))
            began = loop.time()
            try:
                await self._sample()
            except OSError as error:
                self._model.lost(error.strerror or str(error))
                # The time-out is not counted: a longer pause would not help an instance that is
                # silent.
                began = loop.time()
            took = loop.time() - began
            self._draw()

    # --- the terminal ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def _terminal(self) -> Iterator[None]:
        """Takes the terminal, and restores it, whatever happens."""
        try:
            self._enter()
            yield
        finally:
            self._leave()

    def _enter(self) -> None:
        # Keys arrive one by one and are not echoed. Keys for signals, such as Ctrl-C, still work.
        tty.setcbreak(self._input, termios.TCSADRAIN)
        self._live = Live(
            console=self._console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()
        self._draw()

    def _leave(self) -> None:
        live, self._live = self._live, None
        # The terminal may be gone; then there is nothing to restore.
        with contextlib.suppress(OSError):
            if live is not None:
                live.stop()
        with contextlib.suppress(termios.error):
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._settings)

    def _draw(self) -> None:
        if self._live is None:
            return
        try:
            # The terminal is asked each time: COLUMNS and LINES in the environment do not follow
            # the window.
            width, height = os.get_terminal_size(self._input)
            self._console.size = ConsoleDimensions(width, height)
            self._live.update(picture(self._model, width, height), refresh=True)
        except OSError:
            self._stop.set()  # the terminal is gone

    def _key(self) -> None:
        try:
            keys = os.read(self._input, 64)
        except OSError:
            keys = b""
        if not keys or b"q" in keys.lower():
            self._stop.set()
        elif b"s" in keys.lower():
            self._model.next_order()
            self._draw()

    def _suspend(self) -> None:
        """Stops, as Ctrl-Z stops programs, with the terminal restored.

        Goes on when it is continued.
        """
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._enter()
