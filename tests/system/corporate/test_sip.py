"""SIP and RTP: sipp as phone, registrar and called party, who sends the audio back."""

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.corporate import Corporate, need, ssh_server
from support.corporate_rtp import RtpMeter, Stream, rtp_on
from support.hosts import TARGET_ADDRESS

SCENARIOS = Path(__file__).with_name("sip")
RELAY = Path(__file__).parents[2] / "support" / "corporate_relay.py"

PACKETS = 500
"""Ten seconds of 20 ms each."""

RTP_PORT = 6000

SOCKS_HEADER = 10
"""Bytes before each datagram between a client under socksify and the relay (RFC 1928 section 7)."""

_ports = itertools.count(5070)


@pytest.fixture(scope="module", autouse=True)
def audio(folder: Path) -> None:
    (folder / "audio.ulaw").write_bytes(os.urandom(PACKETS * 160))


@contextlib.contextmanager
def called_party(
    corporate: Corporate, folder: Path, rtp_host: str, rtp_port: int
) -> Iterator[None]:
    """For one call; the address is where the caller is told to send its audio."""
    with corporate.serve(
        *(need("sipp"), "-sf", SCENARIOS / "answer.xml", "-i", TARGET_ADDRESS, "-p", "5060"),
        *("-mi", TARGET_ADDRESS, "-mp", str(RTP_PORT), "-rtp_echo", "-nostdin"),
        *("-key", "rtp_host", rtp_host, "-key", "rtp_port", str(rtp_port)),
        directory=folder,
        udp=[5060, RTP_PORT],
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
        assert (stream.received, stream.repeated, stream.out_of_order) == (PACKETS, 0, 0)


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
        assert process.poll() is None, "the download ended before the call"
    finally:
        process.terminate()
        process.communicate()


@contextlib.contextmanager
def one_reliable_channel(corporate: Corporate, folder: Path, rtp: int, http: int) -> Iterator[None]:
    """Datagrams and downloads in one SSH connection through the tunnel, so in one TCP flow.

    Its ports on the client's host: `rtp` takes datagrams for the called party's RTP port, `http`
    leads to the HTTP server.
    """
    relay: list[str | Path] = [sys.executable, RELAY]
    with contextlib.ExitStack() as stack:
        options = stack.enter_context(ssh_server(corporate, folder))
        office_relay, client_relay = folder / "office", folder / "client"
        for directory in (office_relay, client_relay):
            directory.mkdir()
        target = f"{TARGET_ADDRESS}:{RTP_PORT}"
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


def forwarded_call(corporate: Corporate, folder: Path, rtp_port: int) -> RtpMeter:
    """A call over the forward for SIP, its audio sent to a port of the client's own host."""
    with (
        called_party(corporate, folder, "127.0.0.1", rtp_port),
        rtp_on(corporate.client, "lo") as client,
    ):
        call(corporate, folder, "127.0.0.1:5060")
    return client


@pytest.mark.timeout(240)
def test_one_percent_loss_beside_a_bulk_download(corporate: Corporate, folder: Path) -> None:
    """Datagrams do not wait for retransmissions; on one reliable channel they do, and for the bulk."""
    size = 4_000_000_000
    with corporate.loss():
        path = f":{corporate.site.ports['http']}/bytes/{size}"
        url = f"http://{TARGET_ADDRESS}{path}"
        with bulk_download(corporate, "--socks5-hostname", corporate.socks, url):
            datagrams = forwarded_call(corporate, folder, RTP_PORT)
        with (
            one_reliable_channel(corporate, folder, 6001, 8000),
            bulk_download(corporate, f"http://127.0.0.1:8000/bytes/{size}"),
        ):
            reliable = forwarded_call(corporate, folder, 6001)
    late: dict[str, float] = {}
    for name, meter in (("as datagrams", datagrams), ("on one reliable channel", reliable)):
        report(f"1 % loss and a download, RTP there and back, {name}", meter.returned)
        half, late[name] = (meter.returned.delay(meter.sent, share) for share in (0.5, 0.99))
        print(f"under way p50 {half:.1f} p99 {late[name]:.1f} ms")
    # Lost twice with 1 % each; a busy machine drops some more as too late.
    assert datagrams.returned.received > 0.9 * PACKETS
    assert datagrams.returned.repeated == 0
    # Nothing is lost, but the last of it may still be under way when the call ends.
    assert reliable.returned.received > 0.8 * PACKETS
    assert late["as datagrams"] < late["on one reliable channel"]
