"""What the kernel says of a connection to a program that takes everything and answers nothing."""

import socket

from socks_tunnel.ops.tcp_path import why_stalled
from support.processes import wait_until


def test_a_server_that_answers_nothing() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
        assert why_stalled(client, waited=True) is None, "nothing was asked for yet"
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        text = wait_until(lambda: why_stalled(client, waited=True), "the request is acknowledged")
        assert "nothing came back" in text
        assert why_stalled(client, waited=False) is None, "it may still answer"
        accepted, _ = server.accept()
        with accepted:
            accepted.sendall(b"HTTP/1.1 200 OK\r\n")
            assert client.recv(100)
            assert why_stalled(client, waited=True) is None


def test_a_unix_socket_has_no_path() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert why_stalled(ours, waited=True) is None
