"""What is fuzzed: everything that reads bytes of a stranger, or of the other process.

Each target takes any bytes, and raises only if the code is wrong. What a decoder says of bytes that mean
nothing is its documented error; whatever else leaves it is a bug. A first byte chooses how the rest is
cut where that may make a difference.
"""

from collections.abc import Callable

from socks_tunnel.peer.sdp import check_sdp
from socks_tunnel.protocol import messages, socks4, socks5
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.frames import FrameReader
from socks_tunnel.protocol.http_proxy import ProxyConnection
from socks_tunnel.signaling.envelope import EnvelopeRejected, Verifier

Target = Callable[[bytes], None]


def pieces(data: bytes) -> list[bytes]:
    """Cuts the bytes behind the first one into pieces of as many bytes as that one says."""
    if not data:
        return []
    size = data[0] or len(data)
    rest = data[1:]
    return [rest[start : start + size] for start in range(0, len(rest), size)]


def _is_short(error: Exception) -> None:
    """A sentence about what a stranger sent must not be as long as what it sent."""
    assert len(str(error)) < 1000, len(str(error))


def _serve(connection: socks5.ServerConnection | socks4.ServerConnection, data: bytes) -> None:
    for piece in pieces(data):
        connection.receive_data(piece)
        try:
            while (event := connection.next_event()) is not socks5.NEED_DATA:
                if isinstance(event, socks5.PasswordOffered):
                    assert isinstance(connection, socks5.ServerConnection)
                    connection.accept_password(ok=True)
                elif not isinstance(event, socks5.GreetingReceived):
                    return
        except RemoteProtocolError:
            return
        connection.data_to_send()


def socks5_server(data: bytes) -> None:
    _serve(socks5.ServerConnection(require_password=bool(data) and data[0] % 2 == 1), data)


def socks4_server(data: bytes) -> None:
    _serve(socks4.ServerConnection(), data)


def socks5_datagram(data: bytes) -> None:
    try:
        socks5.parse_udp_packet(data)
    except RemoteProtocolError:
        return


def http_server(data: bytes) -> None:
    connection = ProxyConnection(require_password=bool(data) and data[0] % 2 == 1)
    for piece in pieces(data):
        connection.receive_data(piece)
        try:
            if connection.next_event() is not socks5.NEED_DATA:
                return
        except RemoteProtocolError:
            return


def tunnel_message(data: bytes) -> None:
    try:
        message = messages.decode(data)
    except RemoteProtocolError:
        return
    if not isinstance(message, messages.UnknownMessage):
        again = messages.decode(message.encode())
        assert again == message, (again, message)


def ipc_stream(data: bytes) -> None:
    reader = FrameReader()
    try:
        for piece in pieces(data):
            reader.get_buffer()[: len(piece)] = piece
            reader.received(len(piece))
    except RemoteProtocolError:
        return


def envelope(data: bytes) -> None:
    try:
        Verifier(bytes(32), {bytes(32): "a"}).open(data, 1_700_000_000.0)
    except EnvelopeRejected as rejected:
        _is_short(rejected)


def sdp(data: bytes) -> None:
    try:
        check_sdp(data.decode("latin-1"))
    except RemoteProtocolError as error:
        _is_short(error)


TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        socks5_server,
        socks5_datagram,
        socks4_server,
        http_server,
        tunnel_message,
        ipc_stream,
        envelope,
        sdp,
    )
}
