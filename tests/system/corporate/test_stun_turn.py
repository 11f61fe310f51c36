"""STUN and TURN: coturn and its tools."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from aioice import stun

from support.corporate import OTHER_ADDRESS, Corporate, need
from support.hosts import ENDPOINT_INSIDE_ADDRESS, TARGET_ADDRESS
from support.processes import wait_until

MESSAGES = 20


@pytest.fixture(scope="module", autouse=True)
def turnserver(shared_corporate: Corporate, folder: Path) -> Iterator[None]:
    (folder / "turnserver.conf").write_text(
        f"listening-ip={TARGET_ADDRESS}\nlistening-ip={OTHER_ADDRESS}\nrelay-ip={TARGET_ADDRESS}\n"
        "listening-port=3478\nmin-port=50000\nmax-port=50100\n"
        "lt-cred-mech\nuser=alice:secret\nrealm=internal.corp\n"
        "no-cli\nno-tls\nno-dtls\nno-tcp\nrfc5780\nlog-file=stdout\nsimple-log\n"
        f"pidfile={folder}/pid\nuserdb={folder}/db\n"
    )
    with shared_corporate.serve(
        *(need("turnserver"), "-c", folder / "turnserver.conf"), directory=folder, udp=[3478, 3479]
    ):
        yield


def test_reflexive_address_is_the_endpoints(corporate: Corporate) -> None:
    """What a client learns of its own address, and which senders get an answer through to it.

    natdiscovery takes a new socket, so a new association, for each question: it cannot tell the
    mapping. The filtering it can: replies from another port of a known address arrive, those from
    another address do not.
    """
    before = corporate.udp_dropped("filtered", "endpoint")

    def found() -> bool:
        """An answer that is lost, or late on a busy machine, is another finding."""
        output = corporate.run(
            *(*corporate.socksify(), need("turnutils_natdiscovery"), "-f", TARGET_ADDRESS)
        ).stdout
        return (
            f"UDP reflexive addr: {ENDPOINT_INSIDE_ADDRESS}:" in output
            and "NAT with Address Dependent Filtering!" in output
        )

    wait_until(found, "what a client learns of its own address")
    corporate.wait_metric(before + 1, "udp_dropped_total", "endpoint", reason="filtered")


def reflexive_address(sock: socket.socket, server: str) -> tuple[str, int]:
    """The sender's address as the STUN server sees it (aioice's codec)."""
    question = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)

    def asked() -> tuple[bytes, tuple[str, int]] | None:
        """What comes back, if anything does: a datagram may be lost, or be late."""
        sock.sendto(bytes(question), (server, 3478))
        try:
            found: tuple[bytes, tuple[str, int]] = sock.recvfrom(2048)
        except TimeoutError:
            return None
        return found if found[1] == (server, 3478) else None  # not a late one of the other server

    data, _ = wait_until(asked, f"an answer of {server}")
    answer = stun.parse_message(data)
    assert answer.transaction_id == question.transaction_id
    address: tuple[str, int] = answer.attributes["XOR-MAPPED-ADDRESS"]
    return address


def test_two_servers_see_the_same_address(corporate: Corporate) -> None:
    """Endpoint-independent mapping (RFC 4787 section 4.1), as ICE needs it."""
    import socks

    with (
        corporate.client.inside(),
        socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.set_proxy(socks.SOCKS5, *corporate.proxy)
        sock.settimeout(10)
        first = reflexive_address(sock, TARGET_ADDRESS)
        assert first[0] == ENDPOINT_INSIDE_ADDRESS
        assert reflexive_address(sock, OTHER_ADDRESS) == first


def test_turn_relays(corporate: Corporate) -> None:
    """Two clients with an allocation each, who send to one another through the server."""

    def all_came() -> bool:
        """On a busy machine a datagram may be too late, and is dropped then."""
        output = corporate.run(
            *(need("turnutils_uclient"), "-u", "alice", "-w", "secret", "-y", "-c"),
            *("-n", str(MESSAGES), "-m", "2", "127.0.0.1"),
        ).stdout
        sent, received = re.findall(r"tot_send_msgs=(\d+), tot_recv_msgs=(\d+)", output)[-1]
        both = str(2 * MESSAGES)
        return (sent, received) == (both, both) and "Total lost packets 0 " in output

    wait_until(all_came, "all messages of both clients")
