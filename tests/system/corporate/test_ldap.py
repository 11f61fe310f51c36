"""LDAP: slapd, and ldapsearch over the forward and under socksify."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.corporate import Corporate, need
from support.hosts import DOMAIN, TARGET_ADDRESS

BASE = "dc=internal,dc=corp"
ENTRIES = 500


@pytest.fixture(scope="module")
def slapd(shared_corporate: Corporate, folder: Path) -> Iterator[None]:
    (folder / "db").mkdir()
    (folder / "slapd.conf").write_text(
        "include /etc/ldap/schema/core.schema\ninclude /etc/ldap/schema/cosine.schema\n"
        "modulepath /usr/lib/ldap\nmoduleload back_mdb\n"
        f'sizelimit unlimited\ndatabase mdb\nsuffix "{BASE}"\nrootdn "cn=admin,{BASE}"\n'
        f"rootpw secret\ndirectory {folder}/db\nmaxsize 33554432\n"
    )
    people = "".join(
        f"\ndn: cn=person {n},{BASE}\nobjectClass: person\ncn: person {n}\nsn: {n}\n"
        f"description: {'x' * 100}\n"
        for n in range(ENTRIES)
    )
    (folder / "people.ldif").write_text(f"dn: {BASE}\nobjectClass: domain\ndc: internal\n{people}")
    subprocess.run(
        [need("slapadd"), "-q", "-f", folder / "slapd.conf", "-l", folder / "people.ldif"],
        check=True,
        capture_output=True,
    )
    with shared_corporate.serve(
        *(need("slapd"), "-d", "0", "-f", folder / "slapd.conf"),
        *("-h", f"ldap://{TARGET_ADDRESS}:389/"),
        directory=folder,
        tcp=[389],
    ):
        yield


@pytest.mark.usefixtures("slapd")
class TestTcp:
    """Searches with a bind, over the forward and by name under socksify."""

    def search(self, corporate: Corporate, way: str, password: str = "secret") -> list[str | Path]:
        url = "ldap://127.0.0.1/" if way == "forward" else f"ldap://www.{DOMAIN}/"
        prefix = [] if way == "forward" else corporate.socksify()
        return [
            *(*prefix, need("ldapsearch"), "-x", "-LLL", "-H", url),
            *("-D", f"cn=admin,{BASE}", "-w", password, "-b", BASE),
        ]

    @pytest.mark.parametrize("way", ["forward", "socksify"])
    def test_search(self, corporate: Corporate, way: str) -> None:
        output = corporate.run(*self.search(corporate, way), "(sn=321)", "cn").stdout
        assert output == f"dn: cn=person 321,{BASE}\ncn: person 321\n\n"

    def test_all_entries(self, corporate: Corporate) -> None:
        output = corporate.run(*self.search(corporate, "forward"), "(objectClass=person)").stdout
        assert output.count("\ndescription: ") == ENTRIES

    def test_wrong_password_is_an_error_of_ldap(self, corporate: Corporate) -> None:
        done = corporate.run(*self.search(corporate, "forward", "wrong"), check=False)
        assert done.returncode == 49
        assert "Invalid credentials" in done.stderr
