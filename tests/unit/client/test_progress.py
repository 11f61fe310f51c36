"""A line that changes: in a terminal, and where there is none."""

import io

from socks_tunnel.client.progress import QUIET_SECONDS, Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_in_a_terminal_the_line_is_written_over() -> None:
    stream = Terminal()
    progress = Progress(stream, lambda: 0.0)
    for line in ("2 left", "2 left", "1 left"):
        progress.show(line)
    progress.end("ended")
    assert stream.getvalue() == "\r\x1b[K2 left\r\x1b[K1 left\r\x1b[Kended\n"


def test_the_line_can_be_taken_away() -> None:
    for stream, shown in ((Terminal(), "\r\x1b[K2 left\r\x1b[K"), (io.StringIO(), "2 left\n")):
        progress = Progress(stream, lambda: 0.0)
        progress.show("2 left")
        progress.clear()
        assert stream.getvalue() == shown


def test_elsewhere_a_line_is_written_now_and_then() -> None:
    stream, now = io.StringIO(), 0.0
    progress = Progress(stream, lambda: now)
    progress.show("3 left")
    progress.show("2 left")
    now = QUIET_SECONDS
    progress.show("1 left")
    progress.show("1 left")
    progress.end("ended")
    assert stream.getvalue() == "3 left\n1 left\nended\n"
