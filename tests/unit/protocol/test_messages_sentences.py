"""What an error about a message says, word for word, and lengths at which it begins to be one."""

import pytest

from socks_tunnel.protocol.addresses import NAME_MAX
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.messages import (
    ANSWERS_MAX,
    Answer,
    Hello,
    Resolve,
    Resolved,
    ResolveKind,
    Resume,
    decode,
    mix32,
)

# (hex, sentence, CONN_ID that the error names)
SENTENCES: list[tuple[str, str, int]] = [
    ("0e 0000 123456", "a message of 6 bytes is shorter than its header", 0),
    # OPEN_CONNECTION
    ("0e 0000 00000001 00000000", "OPEN_CONNECTION is shorter than its layout", 1),
    ("0e 0000 00000001 00000000 01 61 00", "OPEN_CONNECTION is shorter than its layout", 1),
    ("0e 0000 00000001 00000000 01 61 0050 00", "OPEN_CONNECTION has bytes after its end", 1),
    (
        "0e 0000 00000001 00000000 00 0050",
        "OPEN_CONNECTION: bad host name: the host name is empty",
        1,
    ),
    (
        "0e 0000 00000001 00000000 04 612e2e62 0050",
        "OPEN_CONNECTION: bad host name: 'a..b' has an empty label",
        1,
    ),
    # other messages of a flow
    ("0f 0000 00000002 0500", "CLOSE_CONNECTION has bytes after its end", 2),
    ("67 0000 00000007", "CONNECTION_OPENED: the address field is cut short", 7),
    ("67 0000 00000007 00 0a4d", "CONNECTION_OPENED: unknown address type 0x00", 7),
    ("67 0000 00000007 01 0a4d0102 9c40 00", "CONNECTION_OPENED has bytes after its end", 7),
    ("68 0000 00000002 00", "SEND_EOF has bytes after its end", 2),
    ("69 0000 00000007", "DATA has 0 bytes, not 1 to 65529", 7),
    (f"6a 0000 00000007 {'00' * 15}", "WINDOW_UPDATE is shorter than its layout", 7),
    (f"6a 0000 00000007 {'00' * 17}", "WINDOW_UPDATE has bytes after its end", 7),
    (
        "6a 0000 00000007 0000000000000002 0000000000000001",
        "WINDOW_UPDATE has CONSUMED 2 beyond LIMIT 1",
        7,
    ),
    ("c9 0000 00000002 00", "UDP_ASSOCIATE has bytes after its end", 2),
    ("ca 0000 00000002 01 c00002", "UDP_ASSOCIATE_OPENED: the address field is cut short", 2),
    ("ca 0000 00000002 02 c0000201 d431", "UDP_ASSOCIATE_OPENED: unknown address type 0x02", 2),
    ("cc 0000 00000002 1100", "UDP_ASSOCIATE_CLOSED has bytes after its end", 2),
    ("d3 0000 00000009", "BIND: the address field is cut short", 9),
    ("d3 0000 00000009 03 00 0014", "BIND: bad host name: the host name is empty", 9),
    ("d4 0000 00000009", "BIND_LISTENING: the address field is cut short", 9),
    ("d5 0000 00000009 01 0a4d", "BIND_ACCEPTED: the address field is cut short", 9),
    # questions about names
    ("dc 0000 00000009 00", "RESOLVE is shorter than its layout", 9),
    ("dc 0000 00000009 00 00", "RESOLVE: bad host name: the host name is empty", 9),
    ("dc 0000 00000009 00 02 61", "RESOLVE is shorter than its layout", 9),
    ("dc 0000 00000009 00 01 61 00", "RESOLVE has bytes after its end", 9),
    ("dc 0000 00000009 02 01 61", "RESOLVE: 2 is not a valid ResolveKind", 9),
    (
        "dc 0000 00000009 01 01 61",
        "RESOLVE asks for the name of 'a', which is no address",
        9,
    ),
    ("dd 0000 00000009 00", "RESOLVED is shorter than its layout", 9),
    ("dd 0000 00000009 00 01 000000", "RESOLVED is shorter than its layout", 9),
    ("dd 0000 00000009 00 01 00000000", "RESOLVED is shorter than its layout", 9),
    ("dd 0000 00000009 00 01 00000000 03", "RESOLVED is shorter than its layout", 9),
    ("dd 0000 00000009 00 01 00000000 01 0a0000", "RESOLVED is shorter than its layout", 9),
    ("dd 0000 00000009 00 01 00000000 02 0a000001", "RESOLVED: unknown address type 0x02", 9),
    (
        "dd 0000 00000009 00 01 00000000 03 01 20",
        "RESOLVED: bad host name: ' ' has a character that no host name can have",
        9,
    ),
    ("dd 0000 00000009 00 00 00", "RESOLVED has bytes after its end", 9),
    ("dd 0000 00000009 00 41", "RESOLVED has 65 answers; at most 64 fit", 9),
    # messages of the link
    ("01 0000 00000000 01234567", "PING is shorter than its layout", 0),
    ("02 0000 00000000 0123456789abcdef00", "PONG has bytes after its end", 0),
    ("0b 0000 00000000", "GOAWAY is shorter than its layout", 0),
    ("0a 0000 00000000 90", "HELLO is malformed: it is no map but a list", 0),
    ("0a 0000 00000000 80", "HELLO: 'version' is absent", 0),
    ("0c 0000 00000000 07", "RESUME is malformed: it is no map but a number", 0),
    (
        "0c 0000 00000000 81 a5 666c6f7773 01",
        "RESUME has no usable flows or last",
        0,
    ),
    (
        "0c 0000 00000000 81 a5 666c6f7773 91 01",
        "RESUME has a row of another form",
        0,
    ),
    (
        "0c 0000 00000000 81 a5 666c6f7773 91 94 00020300",
        "RESUME has a number out of range",
        0,
    ),
]


@pytest.mark.parametrize(("wire", "sentence", "conn_id"), SENTENCES)
def test_an_error_says_what_is_wrong(wire: str, sentence: str, conn_id: int) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(bytes.fromhex(wire))

    assert str(caught.value) == sentence
    assert caught.value.conn_id == conn_id


@pytest.mark.parametrize("length", [1, NAME_MAX])
def test_a_question_may_have_a_host_of_this_length(length: int) -> None:
    host = ".".join(["a" * 63] * 4)[:length]
    message = Resolve(1, ResolveKind.ADDRESSES, host)

    assert decode(message.encode()) == message


def test_as_many_answers_as_may_be_are_decoded() -> None:
    message = Resolved(1, 0, (Answer(1, "a"),) * ANSWERS_MAX)

    assert decode(message.encode()) == message


def test_a_resume_without_flows_has_none_and_without_last_is_not_the_last() -> None:
    assert decode(bytes.fromhex("0c 0000 00000000 81 a4 6c617374 c3")) == Resume((), last=True)
    assert decode(bytes.fromhex("0c 0000 00000000 80")) == Resume((), last=False)


def test_of_a_hello_of_another_version_nothing_else_is_read() -> None:
    hello = decode(bytes.fromhex("0a 0000 00000000 81 a7 76657273696f6e 02"))
    assert hello == Hello(version=2, software="", session=b"", window=0, max_data=0)


@pytest.mark.parametrize(
    ("value", "mixed"),
    # Values of the finalizer of MurmurHash3_x86_32.
    [(0, 0), (1, 0x514E28B7), (2, 0x30F4C306), (0xFFFFFFFF, 0x81F16F39), (0x12345678, 0xE37CD1BC)],
)
def test_mix32_is_the_finalizer_of_murmurhash3(value: int, mixed: int) -> None:
    assert mix32(value) == mixed
