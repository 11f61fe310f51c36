"""Listening sockets: bound here, passed by systemd, and refused with advice.

This file is long because each kind of socket is bound, passed on and refused in the same ways.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.supervisor import listeners
from socks_tunnel.supervisor.listeners import (
    Address,
    Listener,
    ListenError,
    RemoteListenerError,
    activated_sockets,
    bind,
    bind_unix,
    check_reach,
    listens_at,
    open_forwards,
    open_listeners,
    reaches_beyond,
)

ANY_PORT = HostPort("127.0.0.1", 0)


def listening(host: str = "127.0.0.1") -> tuple[socket.socket, HostPort]:
    sock = socket.create_server((host, 0))
    return sock, HostPort(*sock.getsockname()[:2])


def address_of(listener: listeners.Listener) -> HostPort:
    assert isinstance(listener.address, HostPort)
    return listener.address


def test_a_bound_listener_accepts_and_says_where_it_is() -> None:
    listener = bind("socks.listen", ANY_PORT)
    assert address_of(listener).port != 0
    assert not listener.activated
    assert not listener.socket.get_inheritable()
    with socket.create_connection(address_of(listener)):
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
    free = address_of(free_port)
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
    assert address_of(only).host == "127.0.0.1"
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
        socket.create_connection(address_of(listener))
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
unix, unix_udp = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
unix.bind("")
unix.listen()
fds = [os.dup(s.fileno()) for s in (tcp, idle, udp, unix, unix_udp)]
for number, fd in enumerate(fds, 3):
    os.dup2(fd, number)
os.environ["LISTEN_FDS"] = "5"
os.environ["LISTEN_PID"] = str(os.getpid() + {shift})
from socks_tunnel.supervisor.listeners import activated_sockets
found = activated_sockets(os.environ)
print([(s.fileno(), s.family.name, s.get_inheritable()) for s in found])
for s in found: s.detach()
os._exit(0) if not sys.stdout.flush() else None
"""


@pytest.mark.parametrize(
    ("shift", "expected"),
    [
        (0, "[(3, 'AF_INET', False), (5, 'AF_INET', False), (6, 'AF_UNIX', False)]"),
        (1, "[]"),
    ],
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
    for unusable in (4, 7):
        words = f"file descriptor {unusable}, which no listener can use"
        assert (words in done.stderr) == (shift == 0)


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


# --- Unix sockets -----------------------------------------------------------------------------


def left_behind(path: Path) -> None:
    """Leave a socket that nobody listens on, as a process that was killed does."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()


def unix_listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def unix_connected(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socks.sock"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_unix_socket_is_for_user_and_group_whatever_the_umask(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        listener = bind_unix("socks.listen", path)
        assert os.umask(umask) == umask, "it is as it was"
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert (listener.kind, listener.address, listener.activated) == ("socks", path, False)
    assert not listener.socket.get_inheritable()
    assert not listener.socket.getblocking()
    assert unix_connected(path)
    listener.close()
    assert not path.exists()
    listener.close()


def test_a_socket_that_a_dead_process_left_is_replaced(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    left_behind(path)
    listener = bind_unix("socks.listen", path)
    assert unix_connected(path)
    listener.close()
    assert f"removing {path}, which an earlier process has left" in caplog.text


def test_a_socket_that_somebody_serves_is_left_alone(path: Path) -> None:
    with unix_listening(path) as served:
        before = path.stat().st_ino
        with pytest.raises(ListenError, match="another program listens there") as caught:
            bind_unix("socks.listen", path)
        assert str(caught.value).startswith(f"socks.listen: cannot listen on unix:{path}: ")
        served.accept()[0].close()
        assert path.stat().st_ino == before


def test_a_full_queue_is_no_sign_of_death(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as clients:
        busy.bind(str(path))
        busy.listen(0)
        waiting = clients.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(str(path))
        with pytest.raises(ListenError, match="another program listens there"):
            bind_unix("socks.listen", path)


def test_a_socket_of_another_kind_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        with pytest.raises(ListenError, match=r"whether it is in use \(Protocol wrong type"):
            bind_unix("socks.listen", path)
        assert path.exists()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_never_removed(path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        left_behind(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")
    with pytest.raises(ListenError, match="that file is no socket, and is left alone"):
        bind_unix("socks.listen", path)
    assert path.exists()
    assert path.is_symlink() == (kind == "link")
    assert kind != "file" or path.read_text() == "precious"


def test_a_directory_that_cannot_be_used_is_named(path: Path) -> None:
    with pytest.raises(ListenError, match=f"there is no directory {path.parent}/none$"):
        bind_unix("socks.listen", path.parent / "none" / "socks.sock")
    path.write_text("")
    with pytest.raises(ListenError, match=f"{path} is not a directory$"):
        bind_unix("socks.listen", path / "socks.sock")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_directory_that_cannot_be_written_to_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(listeners, "_remove_dead", refuse)
    with pytest.raises(ListenError, match=f"no permission to make a socket in {path.parent}; the"):
        bind_unix("socks.listen", path)


def test_a_directory_that_stays_locked_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "LOCK_TIMEOUT", 0.05)
    fd = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(ListenError, match=f"another program has locked {path.parent}"):
        bind_unix("socks.listen", path)
    assert not path.exists()
    os.close(fd)
    bind_unix("socks.listen", path).close()


def test_a_socket_that_took_the_place_is_not_removed_at_the_end(path: Path) -> None:
    listener = bind_unix("socks.listen", path)
    listener.refuse()
    # Nobody is served there any more, so another instance may begin while this one still drains.
    successor = bind_unix("socks.listen", path)
    listener.close()
    assert unix_connected(path)
    successor.close()
    assert not path.exists()


def test_refusing_ends_accepting_and_those_who_wait(path: Path) -> None:
    listener = bind_unix("socks.listen", path)
    shared = listener.socket.dup()
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.settimeout(60)
        waiting.connect(str(path))
        listener.refuse()
        assert waiting.recv(1) == b""
    assert not unix_connected(path)
    listener.refuse()
    shared.close()
    listener.close()


def test_one_failure_leaves_no_file(path: Path) -> None:
    sock, occupied = listening()
    with sock, pytest.raises(ListenError):
        open_listeners("socks.listen", [path, occupied], [])
    assert not path.exists()


def test_a_unix_socket_of_systemd_is_matched_by_its_path(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    tcp, (a, b) = listening()[0], (unix_listening(path), unix_listening(elsewhere))
    activated = [tcp, b, a]
    assert listens_at(a, path)
    assert not listens_at(b, path)
    assert not listens_at(tcp, path)
    assert not listens_at(a, ANY_PORT)
    (listener,) = open_listeners("socks.listen", [path], activated)
    assert listener.socket is a
    assert activated == [tcp, b]
    listener.refuse()
    assert unix_connected(path), "systemd's stays open"
    listener.close()
    assert path.exists(), "and its file is systemd's too"
    tcp.close()
    b.close()


def test_what_stands_in_for_a_listener_is_of_its_kind(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tcp, address), elsewhere = listening(), path.with_name("elsewhere")
    unix = unix_listening(elsewhere)
    opened = open_listeners("socks.listen", [ANY_PORT, path], [unix, tcp])
    assert [listener.address for listener in opened] == [address, elsewhere]
    assert f"unix:{path} is served on systemd's socket unix:{elsewhere}" in caplog.text
    for listener in opened:
        listener.close()


def test_an_abstract_socket_of_systemd_is_shown_as_systemd_writes_it(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0socks-tunnel-test-{os.getpid()}")
        sock.listen()
        (listener,) = open_listeners("socks.listen", [path], [sock])
        assert str(listener.address) == f"@socks-tunnel-test-{os.getpid()}"


# --- where a socket is really bound ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "beyond"),
    [
        (HostPort("127.0.0.1", 1), False),
        (HostPort("127.9.9.9", 1), False),
        (HostPort("::1", 1), False),
        (HostPort("::ffff:127.0.0.1", 1), False),
        (HostPort("0.0.0.0", 1), True),
        (HostPort("::", 1), True),
        (HostPort("::ffff:10.0.0.1", 1), True),
        (HostPort("10.77.0.1", 1), True),
        (HostPort("fe80::1", 1), True),
        (Path("/run/x.sock"), False),
        (Path("@abstract"), False),
    ],
)
def test_which_addresses_other_hosts_reach(address: Address, beyond: bool) -> None:
    assert reaches_beyond(address) is beyond


@pytest.fixture(params=["any4", "dual"])
def beyond(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """A socket of systemd's that stands in for a loopback address and is bound to all."""
    sock = (
        socket.create_server(("0.0.0.0", 0))
        if request.param == "any4"
        else socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    )
    yield sock
    sock.close()


def test_a_socket_of_systemd_is_judged_by_where_it_is_bound(beyond: socket.socket) -> None:
    opened = open_listeners("socks.listen", [ANY_PORT], [beyond])
    with pytest.raises(RemoteListenerError, match=r"systemd's socket is bound to .*allow_remote"):
        check_reach(opened, allow_remote_clients=False, has_users=True)
    with pytest.raises(RemoteListenerError, match=r"set users_file in .socks."):
        check_reach(opened, allow_remote_clients=True, has_users=False)
    check_reach(opened, allow_remote_clients=True, has_users=True)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_forward_asks_nobody_for_a_password(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("0.0.0.0", 0))
        forward = Listener(sock, activated=False, target=HostPort("10.77.1.2", 53))
        with pytest.raises(RemoteListenerError):
            check_reach([forward], allow_remote_clients=False, has_users=True)
        check_reach([forward], allow_remote_clients=True, has_users=False)
