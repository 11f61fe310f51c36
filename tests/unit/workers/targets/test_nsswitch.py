"""The `hosts` line of nsswitch.conf, as distributions and administrators write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from socks_tunnel_workers.targets.nsswitch import DEFAULT, Source, parse, read

F, D, S = Source.FILES, Source.DNS, Source.SYSTEM


@pytest.mark.parametrize(
    ("line", "names", "single", "local"),
    [
        ("hosts: files dns", (F, D), (F, D), (F, D)),
        ("hosts: dns files", (D, F), (D, F), (D, F)),
        ("  hosts:\tfiles   dns  # comment: sss", (F, D), (F, D), (F, D)),
        ("hosts: files mdns4_minimal [NOTFOUND=return] dns", (F, D), (F, D), (F, S)),
        ("hosts: files mdns4_minimal [ NOTFOUND = return ] dns mdns4", (F, D), (F, D), (F, S)),
        ("hosts: files mdns dns", (F, D), (F, D), (F, S, D)),
        ("hosts: files mymachines dns myhostname", (F, D), (F, S, D), (F, D)),
        ("hosts: files resolve [!UNAVAIL=return] dns", (F, D), (F, D), (F, D)),
        ("hosts: files sss dns", (F, S, D), (F, S, D), (F, S, D)),
        ("hosts: files dns ldap nis", (F, D, S), (F, D, S), (F, D, S)),
        ("hosts: files dns [NOTFOUND=return] sss", (F, D, S), (F, D, S), (F, D, S)),
        ("hosts:", (F, D), (F, D), (F, D)),
    ],
)
def test_plans(
    line: str, names: tuple[Source, ...], single: tuple[Source, ...], local: tuple[Source, ...]
) -> None:
    plan = parse(f"# /etc/nsswitch.conf\npasswd: files sss\n{line}\nnetworks: files\n")
    assert (plan.names, plan.single, plan.local) == (names, single, local)
    assert plan.steps("www.example.com") == names
    assert plan.steps("localhost") == single
    assert plan.steps("printer.local") == local


def test_without_the_line_or_the_file(tmp_path: Path) -> None:
    assert parse("passwd: files\n") == DEFAULT
    assert read(tmp_path / "absent") == DEFAULT
    (tmp_path / "nsswitch.conf").write_bytes(b"hosts: dns \xff\n")
    assert read(tmp_path / "nsswitch.conf").names == (D, S)
