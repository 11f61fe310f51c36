"""Listening sockets: bound here, passed by systemd, and refused with advice."""

import errno
import os
import socket
import subprocess
import sys

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.supervisor import listeners
from socks_tunnel.supervisor.listeners import (
    ListenError,
    activated_sockets,
    bind,
    listens_at,
    open_forwards,
    open_listeners,
)

ANY_PORT = HostPort("127.0.0.1", 0)


def listening(host: str = "127.0.0.1") -> tuple[socket.socket, HostPort]:
    sock = socket.create_server((host, 0))
    return sock, HostPort(*sock.getsockname()[:2])


def test_a_bound_listener_accepts_and_says_where_it_is() -> None:
    listener = bind("socks.listen", ANY_PORT)
    assert listener.address.port != 0
    assert not listener.activated
    assert not listener.socket.get_inheritable()
    with socket.create_connection(listener.address):
        listener.socket.accept()[0].close()
    listener.close()


def test_an_occupied_port_is_named_with_what_to_do() -> None:
    sock, address = listening()
    with sock, pytest.raises(ListenError) as caught:
        bind("socks.listen", address)
    assert str(caught.value).startswith(f"socks.listen: cannot listen on {address}: another")
    assert "choose another port" in str(caught.value)


def test_an_address_of_another_host_is_named() -> None:
    with pytest.raises(ListenError, match="this host has no such address"):
        bind("socks.listen", HostPort("192.0.2.1", 0))


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EACCES, "CAP_NET_BIND_SERVICE"), (errno.EIO, "Input/output")]
)
def test_other_errors_are_explained(
    monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(ListenError, match=words):
        bind("socks.listen", ANY_PORT)


def test_one_failure_leaves_nothing_bound() -> None:
    free_port = bind("x", ANY_PORT)
    free = free_port.address
    free_port.close()
    sock, occupied = listening()
    with sock, pytest.raises(ListenError):
        open_listeners("socks.listen", [free, occupied], [])
    bind("x", free).close()


def test_a_host_without_ipv6_serves_the_other_default_listener(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = bind

    def without_ipv6(setting: str, address: HostPort) -> listeners.Listener:
        if ":" in address.host:
            raise ListenError("no IPv6") from OSError(errno.EADDRNOTAVAIL, "x")
        return real(setting, address)

    monkeypatch.setattr(listeners, "bind", without_ipv6)
    (only,) = open_listeners("socks.listen", [ANY_PORT, HostPort("::1", 0)], [])
    assert only.address.host == "127.0.0.1"
    only.close()
    assert "no IPv6; the other listeners are used" in caplog.text
    with pytest.raises(ListenError):
        open_listeners("socks.listen", [HostPort("::1", 0)], [])


def test_sockets_of_systemd_are_matched_by_address_and_then_taken_in_order() -> None:
    (a, address_a), (b, _), (c, address_c) = listening(), listening(), listening()
    activated = [a, b, c]
    opened = open_listeners("socks.listen", [address_c, ANY_PORT, address_a, ANY_PORT], activated)
    assert [listener.socket for listener in opened[:3]] == [c, b, a]
    assert [listener.activated for listener in opened] == [True, True, True, False]
    assert activated == []
    for listener in opened:
        listener.close()


def test_sockets_of_systemd_that_nobody_asks_for_are_left_in_the_list() -> None:
    (a, address_a), (b, _) = listening(), listening()
    activated = [a, b]
    (opened,) = open_listeners("socks.listen", [address_a], activated)
    assert opened.socket is a
    assert activated == [b]
    a.close()
    b.close()


def test_addresses_are_compared_as_addresses() -> None:
    sock, (_, port) = listening()
    with sock:
        assert listens_at(sock, HostPort("127.0.0.1", port))
        assert not listens_at(sock, HostPort("127.0.0.1", port + 1))
        assert not listens_at(sock, HostPort("127.0.0.2", port))


def test_refusing_ends_accepting_for_all_who_share_the_socket() -> None:
    listener = bind("socks.listen", ANY_PORT)
    shared = listener.socket.dup()
    listener.refuse()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.address)
    listener.refuse()
    shared.close()
    listener.close()


def test_refusing_leaves_systemd_s_socket_listening() -> None:
    sock, address = listening()
    (listener,) = open_listeners("socks.listen", [address], [sock])
    listener.refuse()
    socket.create_connection(address).close()
    listener.close()


ACTIVATED = """
import os, socket, sys
sys.path[:0] = {path!r}
tcp = socket.create_server(("127.0.0.1", 0))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
idle = socket.socket()
fds = [os.dup(s.fileno()) for s in (tcp, idle, udp)]
for number, fd in enumerate(fds, 3):
    os.dup2(fd, number)
os.environ["LISTEN_FDS"] = "3"
os.environ["LISTEN_PID"] = str(os.getpid() + {shift})
from socks_tunnel.supervisor.listeners import activated_sockets
found = activated_sockets(os.environ)
print([(s.fileno(), s.type.name, s.get_inheritable()) for s in found])
for s in found: s.detach()
os._exit(0) if not sys.stdout.flush() else None
"""


@pytest.mark.parametrize(
    ("shift", "expected"), [(0, "[(3, 'SOCK_STREAM', False), (5, 'SOCK_DGRAM', False)]"), (1, "[]")]
)
def test_only_usable_sockets_that_were_passed_to_this_process_are_taken(
    shift: int, expected: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ACTIVATED.format(path=sys.path, shift=shift)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == expected
    assert ("file descriptor 4, which no listener can use" in done.stderr) == (shift == 0)


def test_without_activation_there_are_none() -> None:
    assert activated_sockets({}) == []
    assert activated_sockets({"LISTEN_FDS": "1"}) == []


# --- forwards ---------------------------------------------------------------------------------

TARGET = HostPort("10.77.1.2", 53)


def datagrams(host: str = "127.0.0.1") -> tuple[socket.socket, HostPort]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    return sock, HostPort(*sock.getsockname()[:2])


def test_forwards_of_both_kinds_are_bound_and_lead_to_their_targets() -> None:
    tcp, udp = open_forwards([("tcp", ANY_PORT, TARGET), ("udp", ANY_PORT, TARGET)], [])
    assert (tcp.kind, udp.kind) == ("forward-tcp", "forward-udp")
    assert tcp.target == udp.target == TARGET
    assert not tcp.socket.getblocking()
    assert not udp.socket.getblocking()
    tcp.refuse()
    udp.refuse()  # a UDP socket refuses nobody, and this is no error
    tcp.close()
    udp.close()


def test_a_forwards_socket_of_systemd_is_taken_only_at_its_address_and_kind() -> None:
    tcp, tcp_address = listening()
    udp, udp_address = datagrams()
    activated = [tcp, udp]
    wanted = [("udp", udp_address, TARGET), ("tcp", tcp_address, TARGET), ("udp", ANY_PORT, TARGET)]
    opened = open_forwards(wanted, activated)
    assert [listener.activated for listener in opened] == [True, True, False]
    assert opened[0].socket is udp
    assert opened[1].socket is tcp
    assert activated == []
    for listener in opened:
        listener.close()


def test_a_udp_socket_of_systemd_never_serves_socks() -> None:
    udp, _ = datagrams()
    activated = [udp]
    (listener,) = open_listeners("socks.listen", [ANY_PORT], activated)
    assert not listener.activated
    assert activated == [udp]
    listener.close()
    udp.close()


def test_a_forward_that_cannot_be_bound_is_named_and_leaves_nothing_bound() -> None:
    taken, address = datagrams()
    with taken, pytest.raises(ListenError, match=r"^forwards\[1\]\.listen: cannot listen on"):
        open_forwards([("udp", ANY_PORT, TARGET), ("udp", address, TARGET)], [])
