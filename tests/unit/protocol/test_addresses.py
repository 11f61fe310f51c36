"""Hosts, ports and the SOCKS5 address field."""

import re

import pytest

from socks_tunnel.protocol.addresses import (
    HostPort,
    address_length,
    canonical_host,
    decode_address,
    decode_name,
    encode_address,
    parse_host_port,
    parse_ip,
)
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.errors import RemoteProtocolError, Reply

LONGEST_NAME = ".".join(["a" * 63] * 4)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("example.com", "example.com"),
        ("EXAMPLE.Com", "example.com"),
        ("example.com.", "example.com"),
        ("EXAMPLE.COM.", "example.com"),
        ("a", "a"),
        ("_ldap._tcp.dc._msdcs.corp", "_ldap._tcp.dc._msdcs.corp"),
        ("FILE_SERVER", "file_server"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example.", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        (LONGEST_NAME, LONGEST_NAME),
        (LONGEST_NAME + ".", LONGEST_NAME),
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7.", "192.0.2.7"),
        ("１９２.0.2.7", "192.0.2.7"),  # noqa: RUF001 - what an input method may give
        ("2001:DB8::7", "2001:db8::7"),
        ("2001:0db8:0000:0000:0000:0000:0000:0007", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[::1]", "::1"),
    ],
)
def test_canonical_host(written: str, canonical: str) -> None:
    assert canonical_host(written) == canonical
    assert canonical_host(canonical) == canonical


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("", "empty"),
        (".", "empty"),
        ("..", "empty label"),
        ("a..b", "empty label"),
        (".a", "empty label"),
        ("a" * 64, "63"),
        (LONGEST_NAME + "a", "256 characters"),
        ("a b", "character"),
        ("a\0b", "character"),
        ("a/b", "character"),
        ("a@b", "character"),
        ("http://a", "character"),
        ("a:80", "character"),
        ("fe80::1%eth0", "character"),
        ("[192.0.2.7]", "character"),
        ("[a]", "character"),
        ("[::1", "character"),
        ("\N{SNOWMAN}" * 200, "internationalized"),
        ("\N{SNOWMAN}" * 300, "300 characters"),
        ("a.\N{REPLACEMENT CHARACTER}", "internationalized"),
    ],
)
def test_canonical_host_refuses(written: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        canonical_host(written)


@pytest.mark.parametrize(
    "text", ["example.com", "", "0", "1.2.3", "01.2.3.4", "1.2.3.256", "[1.2.3.4]", "fe80::1%1"]
)
def test_parse_ip_refuses_what_is_no_literal(text: str) -> None:
    # Forms that only inet_aton understands are names here: they are resolved, and then checked.
    assert parse_ip(text) is None


# --- host:port --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:1080", "127.0.0.1", 1080),
        ("[::1]:1080", "::1", 1080),
        ("[2001:DB8::7]:0", "2001:db8::7", 0),
        ("Example.COM.:65535", "example.com", 65535),
    ],
)
def test_parse_host_port(text: str, host: str, port: int) -> None:
    assert parse_host_port(text) == HostPort(host, port)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not HOST:PORT"),
        ("example.com", "not HOST:PORT"),
        (":80", "not HOST:PORT"),
        ("::1:80", "brackets"),
        ("::1", "brackets"),
        ("a:", "not a port"),
        ("a:65536", "not a port"),
        ("a:-1", "not a port"),
        ("a:http", "not a port"),
        ("a:８０", "not a port"),  # noqa: RUF001 - int() would take these digits
        ("a b:80", "character"),
    ],
)
def test_parse_host_port_refuses(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_host_port(text)


def test_host_port_is_written_so_that_it_can_be_read_back() -> None:
    for address in (HostPort("a.b", 1), HostPort("192.0.2.7", 2), HostPort("2001:db8::7", 3)):
        assert parse_host_port(str(address)) == address
    assert str(HostPort("::1", 80)) == "[::1]:80"


# --- the address field ------------------------------------------------------------------------

GOLDEN = [
    ("IPv4", "01 c0000207 0050", HostPort("192.0.2.7", 80)),
    ("IPv4, all zeros", "01 00000000 0000", HostPort("0.0.0.0", 0)),
    ("IPv6", "04 20010db8000000000000000000000007 01bb", HostPort("2001:db8::7", 443)),
    ("name", "03 0b 6578616d706c652e636f6d 01bb", HostPort("example.com", 443)),
    ("name of one byte", "03 01 61 ffff", HostPort("a", 65535)),
    ("longest name", "03 ff" + LONGEST_NAME.encode().hex() + "0050", HostPort(LONGEST_NAME, 80)),
]

LENIENT = [
    ("upper case, final dot", "03 05 412e42432e 0050", HostPort("a.bc", 80)),
    ("UTF-8", "03 07 62c3bc2e636f6d 0050", HostPort("xn--b-eha.com", 80)),
    ("IPv4 literal as a name", "03 09 3139322e302e322e37 0050", HostPort("192.0.2.7", 80)),
    ("IPv6 literal as a name", "03 03 3a3a31 0050", HostPort("::1", 80)),
    ("IPv6 literal in brackets", "03 05 5b3a3a315d 0050", HostPort("::1", 80)),
]

MALFORMED = [
    ("nothing", "", "short-address", Reply.GENERAL_FAILURE),
    ("type only", "01", "short-address", Reply.GENERAL_FAILURE),
    ("IPv4 cut short", "01 c0000207 00", "short-address", Reply.GENERAL_FAILURE),
    ("IPv6 cut short", "04 20010db8 0050", "short-address", Reply.GENERAL_FAILURE),
    ("name without length", "03", "short-address", Reply.GENERAL_FAILURE),
    ("name cut short", "03 05 6162 0050", "short-address", Reply.GENERAL_FAILURE),
    ("type 0", "00 c0000207 0050", "address-type", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
    ("type 2", "02 c0000207 0050", "address-type", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
    ("type 255", "ff", "address-type", Reply.ADDRESS_TYPE_NOT_SUPPORTED),
    ("empty name", "03 00 0050", "bad-name", Reply.GENERAL_FAILURE),
    ("a space in a name", "03 03 612062 0050", "bad-name", Reply.GENERAL_FAILURE),
    ("not UTF-8", "03 02 61ff 0050", "bad-name", Reply.GENERAL_FAILURE),
    (
        "an IPv6 zone",
        "03 0c 666538303a3a312565746830 0050",
        "bad-name",
        Reply.GENERAL_FAILURE,
    ),
]


@pytest.mark.parametrize(("name", "wire", "address"), GOLDEN, ids=[row[0] for row in GOLDEN])
def test_encodes_an_address(name: str, wire: str, address: HostPort) -> None:
    assert encode_address(address).hex() == bytes.fromhex(wire).hex()


@pytest.mark.parametrize(
    ("name", "wire", "address"), GOLDEN + LENIENT, ids=[row[0] for row in GOLDEN + LENIENT]
)
def test_decodes_an_address_wherever_it_stands(name: str, wire: str, address: HostPort) -> None:
    raw = bytes.fromhex(wire)

    assert address_length(raw, 0) == len(raw)
    assert decode_address(raw) == (address, len(raw))
    assert decode_address(b"\xff" * 3 + raw + b"\xff", 3) == (address, len(raw) + 3)
    assert decode_address(memoryview(raw)) == (address, len(raw))


@pytest.mark.parametrize(
    ("name", "wire", "kind", "reply"), MALFORMED, ids=[row[0] for row in MALFORMED]
)
def test_refuses_a_malformed_address(name: str, wire: str, kind: str, reply: Reply) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_address(bytes.fromhex(wire))

    assert (caught.value.kind, caught.value.reply) == (kind, reply)


def test_the_length_of_an_address_is_unknown_until_its_first_bytes_are_there() -> None:
    assert address_length(b"", 0) is None
    assert address_length(b"\x03", 0) is None
    assert address_length(b"\x03\x05", 0) == 9


@pytest.mark.parametrize("name", ["", "a" * 256])
def test_a_name_that_does_not_fit_is_our_own_mistake(name: str) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        encode_address(HostPort(name, 80))


def test_decode_name_gives_the_canonical_host() -> None:
    assert decode_name(bytearray(b"WWW.Example.COM.")) == "www.example.com"


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("", "the host name is empty"),
        (".", "the host name is empty"),
        ("a" * 256, "the host name is 256 characters long; at most 255 fit"),
        ("é." * 127, f"'{clip('é.' * 127)}' is no valid internationalized name: Domain too long"),
        ("a..b", "'a..b' has an empty label"),
        ("a" * 64, f"'{'a' * 64}' has a label longer than 63 bytes"),
        ("aXb c", "'aXb c' has a character that no host name can have"),
        ("XaX+", "'XaX+' has a character that no host name can have"),
    ],
)
def test_the_sentence_says_what_is_wrong_with_a_host(written: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        canonical_host(written)


def test_the_sentence_names_what_idna_has_against_a_name() -> None:
    with pytest.raises(ValueError, match="is no valid internationalized name: Codepoint"):
        canonical_host("xn\u2010.é")


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("no-port", "'no-port' is not HOST:PORT"),
        ("::1]:80", "'::1]:80': an IPv6 address must be in brackets, as in [::1]:1080"),
        ("[::1:80", "'[::1:80': an IPv6 address must be in brackets, as in [::1]:1080"),
        ("a:x1", "'a:x1': 'x1' is not a port (0 to 65535)"),
        ("a:000080", "'a:000080': '000080' is not a port (0 to 65535)"),
        ("a:65536", "'a:65536': '65536' is not a port (0 to 65535)"),
    ],
)
def test_the_sentence_says_what_is_wrong_with_host_and_port(written: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        parse_host_port(written)


@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        (b"", "the address field is cut short"),
        (b"\x01\x7f\0\0\x01\0", "the address field is cut short"),
        (b"\x05\0\0", "unknown address type 0x05"),
        (b"\x03\x01 \0\x50", "bad host name: ' ' has a character that no host name can have"),
    ],
)
def test_the_sentence_says_what_is_wrong_with_an_address_field(field: bytes, sentence: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"^{re.escape(sentence)}$"):
        decode_address(field)
