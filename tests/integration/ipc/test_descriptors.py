"""Descriptors that cross a stream, in as many messages as they need, and streams that break off."""

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from socks_tunnel.ipc.descriptors import PER_MESSAGE, receive_descriptors, send_descriptors
from socks_tunnel.protocol.errors import RemoteProtocolError

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(60)
        yield ours, theirs


def opened() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("count", [0, 1, PER_MESSAGE, PER_MESSAGE + 1])
def test_each_arrives_under_its_name(pair: Pair, count: int) -> None:
    ours, theirs = pair
    files = [os.memfd_create(f"file {number}") for number in range(count)]
    try:
        send_descriptors(ours, files)
        ours.sendall(b"what follows")
        found = receive_descriptors(theirs)
        assert list(found) == files
        for name, fd in found.items():
            assert os.fstat(fd).st_ino == os.fstat(name).st_ino
            assert not os.get_inheritable(fd)
            os.close(fd)
        assert theirs.recv(100) == b"what follows"
    finally:
        for fd in files:
            os.close(fd)


def test_a_stream_that_ends_leaves_nothing_open(pair: Pair) -> None:
    ours, theirs = pair
    file = os.memfd_create("file")
    before = opened()
    socket.send_fds(ours, [struct.pack("!HB", 1, 1) + struct.pack("!I", 7)], [file])
    ours.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectionResetError, match="ended before"):
        receive_descriptors(theirs)
    assert opened() == before
    os.close(file)


def test_fewer_descriptors_than_announced_are_refused(pair: Pair) -> None:
    ours, theirs = pair
    file = os.memfd_create("file")
    before = opened()
    socket.send_fds(ours, [struct.pack("!HBII", 2, 0, 7, 8)], [file])
    with pytest.raises(RemoteProtocolError, match="1 descriptors came where 2 were announced"):
        receive_descriptors(theirs)
    assert opened() == before
    os.close(file)


def test_nobody_who_sends_is_waited_for_in_vain(pair: Pair) -> None:
    _, theirs = pair
    theirs.settimeout(0.05)
    with pytest.raises(TimeoutError):
        receive_descriptors(theirs)
