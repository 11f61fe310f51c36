"""SIP and RTP: sipp as phone, registrar and called party, who sends the audio back."""

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.corporate import Corporate, corporate_tunnel, need, ssh_server
from support.corporate_rtp import INTERVAL, Stream, rtp_on
from support.hosts import TARGET_ADDRESS
from support.tunnels import Site, Tunnel

SCENARIOS = Path(__file__).with_name("sip")
RELAY = Path(__file__).parents[2] / "support" / "corporate_relay.py"

PACKETS = 500
"""Ten seconds of 20 ms each."""

RTP_PORT = 6000

OTHER_SIP_PORT, OTHER_RTP_PORT = 5061, 6010
"""Of a second called party, for two calls at the same time (sipp has its video at RTP_PORT + 2)."""

OTHER_LOOPBACK = "127.0.0.2"
"""Where a second tunnel has its forwards, beside the one that the tests share."""

SOCKS_HEADER = 10
"""Bytes before each datagram between a client under socksify and the relay (RFC 1928 section 7)."""

_ports = itertools.count(5070)


@pytest.fixture(scope="module", autouse=True)
def audio(folder: Path) -> None:
    (folder / "audio.ulaw").write_bytes(os.urandom(PACKETS * 160))


@contextlib.contextmanager
def called_party(
    corporate: Corporate,
    folder: Path,
    rtp_host: str,
    rtp_port: int,
    ports: tuple[int, int] = (5060, RTP_PORT),
) -> Iterator[None]:
    """For one call; the address is where the caller is told to send its audio.

    `ports` are its own, for SIP and RTP.
    """
    sip, rtp = ports
    with corporate.serve(
        *(need("sipp"), "-sf", SCENARIOS / "answer.xml", "-i", TARGET_ADDRESS, "-p", str(sip)),
        *("-mi", TARGET_ADDRESS, "-mp", str(rtp), "-rtp_echo", "-nostdin"),
        *("-key", "rtp_host", rtp_host, "-key", "rtp_port", str(rtp_port)),
        directory=folder,
        udp=[sip, rtp],
    ):
        yield


def call(
    corporate: Corporate, folder: Path, remote: str, prefix: list[str | Path] | None = None
) -> None:
    """Register and call; sipp fails when an answer is missing or is not what it should be."""
    done = corporate.run(
        *(*(prefix or []), need("sipp"), "-sf", SCENARIOS / "call.xml", "-nostdin"),
        # A port of its own for each call: to a forward it is another client.
        *("-i", "127.0.0.1", "-p", str(next(_ports)), "-m", "1", "-timeout", "60s", remote),
        cwd=folder,
        env={**os.environ, "TERM": "dumb"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "Successful call        |        0                  |        1" in done.stdout


def report(name: str, stream: Stream) -> None:
    print(f"\n{name}: {stream}")


def test_call_under_socksify(corporate: Corporate, folder: Path) -> None:
    """All of it over UDP ASSOCIATE: one association for SIP, one for RTP."""
    with (
        called_party(corporate, folder, TARGET_ADDRESS, RTP_PORT),
        rtp_on(corporate.client, "lo", SOCKS_HEADER) as client,
        rtp_on(corporate.office, "tg0") as office,
    ):
        call(corporate, folder, f"{TARGET_ADDRESS}:5060", corporate.socksify(sendmmsg=False))
    report("RTP to the office", office.sent)
    report("RTP there and back", client.returned)
    for stream in (client.sent, office.sent, client.returned):
        # All of them on an idle machine. A busy one drops some as too late, or ends the call before the
        # last of them.
        assert stream.received > 0.6 * PACKETS
        assert stream.repeated == 0
        assert stream.out_of_order < 0.02 * PACKETS


@contextlib.contextmanager
def bulk_download(corporate: Corporate, *arguments: str | Path) -> Iterator[None]:
    """A download that goes on for the whole of the block."""
    process = subprocess.Popen(
        corporate.client.command(
            *(need("curl"), "-sS", "-o", "/dev/null", "-w", "%{size_download}"), *arguments
        ),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield
        assert process.poll() is None, "the download ended before the calls"
    finally:
        process.terminate()
        process.communicate()


@contextlib.contextmanager
def one_reliable_channel(corporate: Corporate, folder: Path, rtp: int, http: int) -> Iterator[None]:
    """Datagrams and downloads in one SSH connection through the tunnel, so in one TCP flow.

    Its ports on the client's host: `rtp` takes datagrams for the second called party's RTP port,
    `http` leads to the HTTP server.
    """
    relay: list[str | Path] = [sys.executable, RELAY]
    with contextlib.ExitStack() as stack:
        options = stack.enter_context(ssh_server(corporate, folder))
        office_relay, client_relay = folder / "office", folder / "client"
        for directory in (office_relay, client_relay):
            directory.mkdir()
        target = f"{TARGET_ADDRESS}:{OTHER_RTP_PORT}"
        stack.enter_context(
            corporate.serve(
                *(*relay, "tcp", "127.0.0.1:7000", target), directory=office_relay, tcp=[7000]
            )
        )
        stack.enter_context(
            corporate.serve(
                *(need("ssh"), *options, "-N", "-L", "127.0.0.1:7001:127.0.0.1:7000"),
                *("-L", f"127.0.0.1:{http}:127.0.0.1:{corporate.site.ports['http']}"),
                f"root@{TARGET_ADDRESS}",
                directory=folder,
                host=corporate.client,
                tcp=[7001, http],
            )
        )
        stack.enter_context(
            corporate.serve(
                *(*relay, "udp", f"127.0.0.1:{rtp}", "127.0.0.1:7001"),
                directory=client_relay,
                host=corporate.client,
                udp=[rtp],
            )
        )
        yield


@pytest.mark.timeout(240)
def test_one_percent_loss_beside_a_bulk_download(
    office_site: Site, folder: Path, report_logs: Callable[[Tunnel], None]
) -> None:
    """Datagrams do not wait for retransmissions; on one reliable channel they do, and for the bulk.

    Both calls are made at the same time, beside the same download and the same loss, through the
    same two workers, so that whatever else the machine does meets both.
    """
    with (
        corporate_tunnel(office_site, loopback=OTHER_LOOPBACK, workers=1) as corporate,
        corporate.loss(),
        one_reliable_channel(corporate, folder, 6001, 8000),
        bulk_download(corporate, "http://127.0.0.1:8000/bytes/4000000000"),
        called_party(corporate, folder, OTHER_LOOPBACK, RTP_PORT),
        called_party(corporate, folder, "127.0.0.1", 6001, ports=(OTHER_SIP_PORT, OTHER_RTP_PORT)),
        rtp_on(corporate.client, "lo") as client,
        ThreadPoolExecutor() as callers,
    ):
        report_logs(corporate)
        calls = [
            callers.submit(call, corporate, folder, f"{OTHER_LOOPBACK}:{port}")
            for port in (5060, OTHER_SIP_PORT)
        ]
        for made in calls:
            made.result()
    datagrams, reliable = client.call_to(RTP_PORT), client.call_to(6001)
    usual: dict[str, float] = {}
    for name, (sent, returned) in (
        ("as datagrams", datagrams),
        ("on one reliable channel", reliable),
    ):
        report(f"1 % loss and a download, RTP there and back, {name}", returned)
        usual[name], late = (returned.delay(sent, share) for share in (0.5, 0.99))
        print(f"under way p50 {usual[name]:.1f} p99 {late:.1f} ms")
    # Lost twice with 1 % each; a busy machine drops some more as too late.
    assert datagrams[1].received > 0.6 * PACKETS
    assert datagrams[1].repeated == 0
    # Nothing is lost, but the last of it may still be under way when the call ends.
    assert reliable[1].received > 0.6 * PACKETS
    # One may have begun later, because SIP was lost and sent again.
    begun = max(sent.times[0] for sent, _ in (datagrams, reliable))
    ended = min(sent.times[-1] for sent, _ in (datagrams, reliable))
    assert ended - begun > PACKETS * INTERVAL / 2, "the calls were not side by side"
    # A busy machine holds up the slowest of both by as much as a retransmission does, so only the median
    # tells them apart: it is several times higher behind the bulk.
    assert usual["as datagrams"] < usual["on one reliable channel"]
