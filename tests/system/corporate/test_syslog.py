"""Syslog over UDP: logger writes, rsyslog's file has the lines."""

import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.corporate import Corporate, need
from support.hosts import TARGET_ADDRESS
from support.processes import wait_until

MESSAGES = 1000

BURST = 100


@pytest.fixture(scope="module")
def messages(shared_corporate: Corporate, folder: Path) -> Iterator[Path]:
    """The file that the server writes."""
    (folder / "rsyslog.conf").write_text(
        'module(load="imudp")\n'
        f'input(type="imudp" address="{TARGET_ADDRESS}" port="514" rcvbufSize="1m")\n'
        'template(name="line" type="string" string="%programname%:%msg%\\n")\n'
        f'action(type="omfile" file="{folder}/messages" template="line")\n'
    )
    with shared_corporate.serve(
        *(need("rsyslogd"), "-n", "-C", "-f", folder / "rsyslog.conf", "-i", folder / "pid"),
        directory=folder,
        udp=[514],
    ):
        yield folder / "messages"


def lines_of(file: Path, program: str) -> list[str]:
    """The messages of one program, as they arrived."""
    if not file.exists():
        return []
    return [
        line.removeprefix(f"{program}:").strip()
        for line in file.read_text().splitlines()
        if line.startswith(f"{program}:")
    ]


def logger(program: str, *arguments: str) -> list[str]:
    return [
        *(need("logger"), "--udp", "--server", "127.0.0.1", "--port", "514", "--tag", program),
        *arguments,
    ]


def test_one_line(corporate: Corporate, messages: Path) -> None:
    corporate.run(*logger("single", "the printer is out of paper"))
    wait_until(
        lambda: lines_of(messages, "single") == ["the printer is out of paper"],
        "the line in the server's file",
    )


def test_thousand_messages_in_order(corporate: Corporate, messages: Path) -> None:
    """From one logger, in bursts: the next one begins when the server has written the last.

    Nobody holds a sender of syslog back, so a longer burst is cut short by the first socket buffer on
    the way, with or without a tunnel.
    """
    wanted = [f"message {number:04}" for number in range(MESSAGES)]
    with subprocess.Popen(
        corporate.client.command(*logger("many")), stdin=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        # The first one alone: it opens the association.
        for start, end in itertools.pairwise([0, 1, *range(BURST, MESSAGES + 1, BURST)]):
            process.stdin.write("".join(f"{line}\n" for line in wanted[start:end]))
            process.stdin.flush()
            wait_until(
                lambda end=end: len(lines_of(messages, "many")) >= end,  # type: ignore[misc]
                f"{end} messages in the server's file",
            )
        process.stdin.close()
        assert process.wait(30) == 0
    # The end of the last line may come a moment after its beginning.
    wait_until(lambda: lines_of(messages, "many") == wanted, "all messages in order")
