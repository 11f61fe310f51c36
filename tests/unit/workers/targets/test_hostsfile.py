"""/etc/hosts, as it is found in the field."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from socks_tunnel_workers.targets.hostsfile import LINES_PER_TURN, Hosts, reading

TEXT = """\
# comment
127.0.0.1\tlocalhost
192.0.2.1   Wiki.Corp wiki # the wiki
2001:db8::1 wiki
fe80::1%eth0 printer
192.0.2.1   wiki alias
not-an-address name
192.0.2.3
192.0.2.4 b\u00fccher.test bad..name good.test
"""


def read(path: Path) -> tuple[Hosts, int]:
    hosts = Hosts()
    return hosts, sum(1 for _ in reading(path, hosts))


def found(hosts: Hosts, name: str) -> list[str]:
    return [str(address) for address in hosts.addresses(name)]


def test_names_and_addresses(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text(TEXT, "utf-8")
    hosts, turns = read(path)
    assert turns == 0
    assert found(hosts, "wiki") == ["192.0.2.1", "2001:db8::1"]
    assert found(hosts, "wiki.corp") == ["192.0.2.1"]
    assert found(hosts, "alias") == ["192.0.2.1"]
    assert found(hosts, "printer") == ["fe80::1"]
    assert found(hosts, "xn--bcher-kva.test") == ["192.0.2.4"]
    assert found(hosts, "good.test") == ["192.0.2.4"]
    assert found(hosts, "name") == []
    assert hosts.names(ip_address("192.0.2.1")) == ("wiki.corp", "wiki", "alias")
    assert hosts.names(ip_address("192.0.2.9")) == ()


def test_localhost_is_loopback_whatever_the_file_says_of_it(tmp_path: Path) -> None:
    hosts, _ = read(tmp_path / "absent")
    assert found(hosts, "localhost") == ["::1", "127.0.0.1"]
    assert found(hosts, "app.localhost") == ["::1", "127.0.0.1"]
    (tmp_path / "hosts").write_text(TEXT, "utf-8")
    hosts, _ = read(tmp_path / "hosts")
    assert found(hosts, "localhost") == ["127.0.0.1"]


def test_a_long_file_is_read_in_turns(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("".join(f"0.0.0.0 ad{n}.test\n" for n in range(2 * LINES_PER_TURN + 5)))
    hosts, turns = read(path)
    assert turns == 2
    assert found(hosts, f"ad{2 * LINES_PER_TURN + 4}.test") == ["0.0.0.0"]
    assert len(hosts.names(ip_address("0.0.0.0"))) == 2 * LINES_PER_TURN + 5
