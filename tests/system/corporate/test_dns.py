"""DNS: BIND's named; dig under socksify, and nslookup against forwards on port 53."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.corporate import OTHER_ADDRESS, Corporate, need
from support.hosts import DOMAIN

ZONE = f"""$TTL 300
@ SOA ns hostmaster 1 3600 600 86400 300
@ NS ns
@ MX 10 mail
ns A {OTHER_ADDRESS}
mail A 10.77.1.25
www A 10.77.1.80
www AAAA fd77:1::80
text TXT "v=spf1 mx -all"
_ldap._tcp SRV 0 100 389 dc1
dc1 A 10.77.1.89
"""

REVERSE = f"""$TTL 300
@ SOA ns.{DOMAIN}. hostmaster.{DOMAIN}. 1 3600 600 86400 300
@ NS ns.{DOMAIN}.
80 PTR www.{DOMAIN}.
"""


def large(name: str, strings: int) -> str:
    """A TXT record set with that many strings of 200 bytes, each its own record."""
    return "".join(f'{name} TXT "{number:03}{"x" * 197}"\n' for number in range(strings))


@pytest.fixture(scope="module", autouse=True)
def named(shared_corporate: Corporate, folder: Path) -> Iterator[None]:
    # 5 records need EDNS, 15 need more than the 1,232 bytes that most servers allow, 30 need TCP.
    zone = ZONE + large("five", 5) + large("fifteen", 15) + large("thirty", 30)
    (folder / "zone").write_text(zone)
    (folder / "reverse").write_text(REVERSE)
    (folder / "named.conf").write_text(
        f'options {{ directory "{folder}"; pid-file none; session-keyfile "{folder}/session.key";\n'
        f"  listen-on {{ {OTHER_ADDRESS}; }}; listen-on-v6 {{ none; }}; recursion no;\n"
        "  allow-query { any; }; max-udp-size 4096; dnssec-validation no; };\n"
        "controls {};\n"
        f'zone "{DOMAIN}" {{ type primary; file "zone"; }};\n'
        'zone "1.77.10.in-addr.arpa" { type primary; file "reverse"; };\n'
    )
    with shared_corporate.serve(
        *(need("named"), "-g", "-n", "1", "-c", folder / "named.conf"), directory=folder
    ) as server:
        # dnsmasq of the site has port 53 on another address of this host.
        server.wait_log("running")
        yield


QUESTIONS = [
    ("A", f"www.{DOMAIN}", "10.77.1.80"),
    ("AAAA", f"www.{DOMAIN}", "fd77:1::80"),
    ("MX", DOMAIN, f"10 mail.{DOMAIN}."),
    ("TXT", f"text.{DOMAIN}", '"v=spf1 mx -all"'),
    ("SRV", f"_ldap._tcp.{DOMAIN}", f"0 100 389 dc1.{DOMAIN}."),
    ("PTR", "80.1.77.10.in-addr.arpa", f"www.{DOMAIN}."),
]


def dig(corporate: Corporate, *arguments: str) -> str:
    """What dig prints under socksify."""
    return corporate.run(
        *corporate.socksify(sendmmsg=False), need("dig"), f"@{OTHER_ADDRESS}", *arguments
    ).stdout


@pytest.mark.parametrize(("kind", "name", "answer"), QUESTIONS)
def test_dig_under_socksify(corporate: Corporate, kind: str, name: str, answer: str) -> None:
    assert dig(corporate, name, kind, "+notcp", "+short").strip() == answer


@pytest.mark.parametrize(("kind", "name", "answer"), QUESTIONS)
def test_nslookup_against_the_forward(
    corporate: Corporate, kind: str, name: str, answer: str
) -> None:
    output = corporate.run(need("nslookup"), f"-type={kind.lower()}", name, "127.0.0.1").stdout
    assert re.search(r"^Address:\s+127\.0\.0\.1#53$", output, re.MULTILINE)
    assert answer in output


def test_name_that_does_not_exist(corporate: Corporate) -> None:
    assert "status: NXDOMAIN" in dig(corporate, f"nobody.{DOMAIN}", "+notcp")
    done = corporate.run(need("nslookup"), f"nobody.{DOMAIN}", "127.0.0.1", check=False)
    assert done.returncode == 1
    assert "NXDOMAIN" in done.stdout


@pytest.mark.parametrize("way", ["socksify", "forward"])
def test_truncated_answer(corporate: Corporate, way: str) -> None:
    question = (f"thirty.{DOMAIN}", "TXT", "+noedns", "+ignore", "+notcp")
    if way == "socksify":
        output = dig(corporate, *question)
    else:
        output = corporate.run(need("dig"), "@127.0.0.1", *question).stdout
    assert re.search(r"flags: qr aa tc", output)
    assert "(UDP)" in output


def test_truncated_answer_is_followed_by_tcp(corporate: Corporate) -> None:
    """From the forward for UDP to the one for TCP.

    Not under socksify: its non-blocking connect and that of libuv, in dig, do not go together.
    """
    name = f"thirty.{DOMAIN}"
    whole = corporate.run(need("dig"), "@127.0.0.1", name, "TXT").stdout
    assert "Truncated, retrying in TCP mode" in whole
    assert "ANSWER: 30" in whole
    assert "(TCP)" in whole
    output = corporate.run(need("nslookup"), "-type=txt", name, "127.0.0.1").stdout
    assert output.count("text = ") == 30


def test_dig_over_tcp_under_proxychains(corporate: Corporate) -> None:
    output = corporate.run(
        *corporate.proxychains(),
        need("dig"),
        f"@{OTHER_ADDRESS}",
        f"thirty.{DOMAIN}",
        "TXT",
        "+tcp",
    ).stdout
    assert "ANSWER: 30" in output


@pytest.mark.parametrize(("name", "size", "records"), [("five", 1232, 5), ("fifteen", 4096, 15)])
@pytest.mark.parametrize("way", ["socksify", "forward"])
def test_edns(corporate: Corporate, name: str, size: int, records: int, way: str) -> None:
    """Answers longer than 512 bytes over UDP, and longer than a packet of the way to the client."""
    arguments = (f"{name}.{DOMAIN}", "TXT", f"+bufsize={size}", "+ignore", "+notcp")
    if way == "socksify":
        output = dig(corporate, *arguments)
    else:
        output = corporate.run(need("dig"), "@127.0.0.1", *arguments).stdout
    assert f"ANSWER: {records}" in output
    assert "(UDP)" in output
    received = re.search(r"MSG SIZE  rcvd: (\d+)", output)
    assert received
    assert 200 * records < int(received[1]) <= size


@pytest.mark.parametrize("way", ["socksify", "forward"])
def test_one_percent_loss(corporate: Corporate, tmp_path: Path, way: str) -> None:
    """A lost question is asked again by who asked it; no answer waits for one that was lost."""
    names = [f"www.{DOMAIN}", f"fifteen.{DOMAIN} TXT"] * 30
    (tmp_path / "names").write_text("".join(f"{name}\n" for name in names))
    program: list[str | Path] = [need("dig"), "@127.0.0.1"]
    if way == "socksify":
        program = [*corporate.socksify(sendmmsg=False), need("dig"), f"@{OTHER_ADDRESS}"]
    with corporate.loss():
        output = corporate.run(
            *(*program, "+bufsize=4096", "+notcp", "+timeout=1", "+tries=8"),
            *("-f", tmp_path / "names"),
        ).stdout
    assert output.count("status: NOERROR") == len(names)
    again = output.count("timed out")
    median = sorted(int(t) for t in re.findall(r"Query time: (\d+) msec", output))[len(names) // 2]
    print(f"\n1 % loss, {way}: {len(names)} answers, {again} asked again, median {median} ms")
