"""The packages as files: what lintian says, what is inside, and that building again gives the same bytes."""

import gzip
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from socks_tunnel.ops.compiled import MODULES
from support.installed import SUITES
from support.machines import TOOLS, tool
from support.prometheus_files import FOLDER
from support.workshop import Workshop

pytestmark = [pytest.mark.netns, pytest.mark.timeout(1500)]

CHECKOUT = TOOLS.parents[1]
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}


@pytest.fixture(params=SUITES)
def suite(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tree(packages: dict[str, Path], suite: str, tmp_path: Path) -> Path:
    """The package, unpacked."""
    subprocess.run(["dpkg-deb", "--raw-extract", packages[suite], tmp_path / "tree"], check=True)
    return tmp_path / "tree"


def test_lintian_has_nothing_to_say(quality: Workshop) -> None:
    said = quality.linted.result()
    assert not [line for line in said if line.startswith(("E:", "W:"))]


def test_building_again_gives_the_same_bytes(
    packages: dict[str, Path], rebuilt_packages: dict[str, Path], suite: str
) -> None:
    first, second = packages[suite], rebuilt_packages[suite]
    assert first.name == second.name
    digests = {hashlib.sha256(package.read_bytes()).hexdigest() for package in (first, second)}
    assert len(digests) == 1


def test_translators_have_the_question_as_it_is(tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "packaging/debian", tmp_path / "debian")
    template = tmp_path / "debian/po/templates.pot"

    def text() -> list[str]:
        heads = ('"POT-Creation-Date', '"Report-Msgid-Bugs-To', '"Content-Type')
        return [line for line in template.read_text().splitlines() if not line.startswith(heads)]

    committed = text()
    (root,) = tool("root", "trixie", "build")
    tool("in-root", root, tmp_path, "debconf-updatepo", "--podir=debian/po")
    assert text() == committed


def test_what_it_depends_on(tree: Path, suite: str) -> None:
    control = (tree / "DEBIAN" / "control").read_text()
    (depends,) = re.findall(r"^Depends: (.*)$", control, re.MULTILINE)
    assert f"python{PYTHONS[suite]}" in depends
    assert "python3-" not in depends  # its libraries are its own
    assert (tree / "DEBIAN" / "conffiles").read_text().split() == [
        "/etc/logrotate.d/socks-tunnel",
        "/etc/needrestart/conf.d/socks-tunnel.conf",
    ]


def test_no_media_library_is_inside(tree: Path) -> None:
    names = [path.name for path in tree.rglob("*")]
    assert not [n for n in names if re.match(r"lib(av|sw|x26|vpx|aom|opus)|av-", n)]
    files = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
    assert files < 80 << 20


def test_the_data_path_is_compiled_and_its_source_is_beside_it(tree: Path, suite: str) -> None:
    site = tree / f"usr/lib/socks-tunnel/lib/python{PYTHONS[suite]}/site-packages"
    ending = f"cpython-{PYTHONS[suite].replace('.', '')}-x86_64-linux-gnu.so"
    sources = [site / f"{name.replace('.', '/')}.py" for name in MODULES]
    wanted = {source.with_suffix(f".{ending}") for source in sources}
    assert all(source.exists() for source in sources)
    packages = ("socks_tunnel", "socks_tunnel_workers")
    assert {path for name in packages for path in (site / name).rglob("*.so")} == wanted
    library = (site / f"socks_tunnel__mypyc.{ending}").read_bytes()
    # Where it was built is nobody's business.
    assert not re.search(rb"/[\w.+~/-]*socks_tunnel\w*/\w", library)
    assert b"/tmp/" not in library


def test_the_bill_of_materials_is_that_of_the_lock_file(tree: Path, suite: str) -> None:
    packed = tree / "usr/share/doc/socks-tunnel/sbom.cdx.json.gz"
    bill = json.loads(gzip.decompress(packed.read_bytes()))
    assert bill["bomFormat"] == "CycloneDX"
    version = PYTHONS[suite].replace(".", "")
    runtime, dev = (
        set(re.findall(r"^([a-z0-9-]+)==(\S+)", lock.read_text(), re.MULTILINE))
        for kind in ("runtime", "dev")
        for lock in [CHECKOUT / f"requirements/{kind}-py{version}.lock"]
    )
    listed = {(c["name"], c["version"]) for c in bill["components"] if "version" in c}
    # mypyc's run-time library is compiled into the data path.
    expected = {(n, v) for n, v in runtime if n != "av"} | {(n, v) for n, v in dev if n == "mypy"}
    assert listed == expected
    assert all(component["licenses"] for component in bill["components"])
    (stand_in,) = [c for c in bill["components"] if c["name"] == "av"]
    assert "stand-in" in stand_in["description"]
    references = {c["bom-ref"] for c in bill["components"]}
    assert set(bill["dependencies"][0]["dependsOn"]) == references


def test_manual_pages_name_every_command_and_key(tree: Path) -> None:
    def page(path: str) -> str:
        packed = (tree / "usr/share/man" / path).read_bytes()
        return gzip.decompress(packed).decode().replace("\\-", "-")

    commands = page("man1/socks-tunnel.1.gz")
    listing = subprocess.run(
        [sys.executable, "-m", "socks_tunnel", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for command in re.findall(r"^  ([a-z-]+) ", listing.partition("Commands:")[2], re.MULTILINE):
        assert re.search(rf"\b{command}\b", commands), command
    keys = page("man5/socks-tunnel.toml.5.gz")
    for role in ("gateway", "endpoint", "rendezvous"):
        text = (CHECKOUT / f"etc/socks-tunnel/{role}.toml").read_text()
        for key in re.findall(r"^#?(\w+) = ", text, re.MULTILINE):
            assert key in keys, key


def test_completions_are_there_for_three_shells(tree: Path) -> None:
    for path in (
        "bash-completion/completions/socks-tunnel",
        "zsh/vendor-completions/_socks-tunnel",
        "fish/vendor_completions.d/socks-tunnel.fish",
    ):
        assert "_SOCKS_TUNNEL_COMPLETE" in (tree / "usr/share" / path).read_text()


def test_examples_are_configurations(tree: Path) -> None:
    examples = tree / "usr/share/doc/socks-tunnel/examples"
    for role in ("gateway", "endpoint"):
        assert tomllib.loads((examples / f"{role}.toml").read_text())["role"] == role
    assert "CAP_NET_BIND_SERVICE" in (examples / "low-ports.conf").read_text()
    shipped = {path.name for path in FOLDER.iterdir()}
    assert {path.name for path in (examples / "prometheus").iterdir()} == shipped
