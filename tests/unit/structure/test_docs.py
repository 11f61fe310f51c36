"""Links in the pages lead somewhere, and the files, commands and settings that they name are there."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from socks_tunnel.cli import COMMANDS
from socks_tunnel.config.models import Config
from socks_tunnel.config.rendezvous import RendezvousConfig
from socks_tunnel.protocol import ipc
from support.checkout import ROOT

PAGES = sorted(
    {*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "packaging").rglob("*.md")}
)
SOURCES = (
    "",
    "daemon/socks_tunnel",
    "workers/socks_tunnel_workers",
    "daemon",
    "workers",
    "tests",
    "docs",
    "packaging",
)
HISTORY = {"CHANGELOG.md", "performance.md"}
"""Pages that also tell of what was."""
MADE_BY_A_COMMAND = {"office/endpoint.toml"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that headings have, as on GitHub."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


def files_named(page: Path) -> Iterator[str]:
    """What is in backquotes and looks like a source file, with a directory before it."""
    for code in re.findall(r"`([^`\n]+)`", prose(page)):
        if re.fullmatch(r"[\w./-]+/[\w-]+\.(?:py|md|toml|sh|service|c)", code) and code[0] != "/":
            yield code


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in HISTORY], ids=name_of)
def test_files_are_there(page: Path) -> None:
    missing = [
        code
        for code in files_named(page)
        if code not in MADE_BY_A_COMMAND
        and not any((ROOT / source / code).exists() for source in SOURCES)
    ]
    assert not missing


def test_the_page_of_the_architecture_lists_all_control_messages() -> None:
    table = (
        prose(ROOT / "docs/architecture.md")
        .partition("| direction | control messages |")[2]
        .partition("\n\n")[0]
    )
    assert set(re.findall(r"`([a-z-]+)`", table)) == {kind.OP for kind in ipc.Control.__args__}


def test_the_page_of_the_architecture_says_what_each_file_of_the_supervisor_is_for() -> None:
    table = (
        prose(ROOT / "docs/architecture.md")
        .partition("| file | what it is for |")[2]
        .partition("\n\n")[0]
    )
    named = [
        name
        for line in table.splitlines()
        for name in re.findall(r"`(\w+\.py)`", line.split("|")[1:2][0] if line else "")
    ]
    there = {path.name for path in (ROOT / "daemon/socks_tunnel/supervisor").glob("*.py")} - {
        "__init__.py"
    }
    assert sorted(named) == sorted(there)


def test_the_way_of_a_download_is_there() -> None:
    """Each line of the picture that names a file names functions of it."""
    picture = (
        (ROOT / "docs/architecture.md")
        .read_text("utf-8")
        .partition("## The way of a download")[2]
        .split("```")[1]
    )
    for line in picture.splitlines():
        found = re.match(r"  \|    ([\w., ]+?)(?::.*?)?  +((?:daemon|workers)/\S+\.py)$", line)
        if found is None:
            continue
        text = (ROOT / found[2]).read_text("utf-8")
        for name in found[1].replace(",", " ").split():
            parts = name.split(".")
            for part in parts:
                assert re.search(rf"(?:class|def) {part}\b", text), line


RECORDS = {
    path.name[:4]: path.read_text("utf-8") for path in sorted((ROOT / "docs/adr").glob("0*.md"))
}


@pytest.mark.parametrize("number", RECORDS)
def test_a_record_is_listed_by_its_title(number: str) -> None:
    heading = RECORDS[number].partition("\n")[0]
    found = re.search(
        rf"^\| \[{number}\]\([^)]+\) \| (.*?)(?: \(replaced by \d+\))? \|$",
        (ROOT / "docs/adr/README.md").read_text("utf-8"),
        re.MULTILINE,
    )
    assert found is not None
    assert heading == f"# {number}: {found[1]}"


def named_in_status(number: str, *verbs: str) -> set[str]:
    """The numbers of other records that follow one of these words in the status of a record."""
    status = " ".join(RECORDS[number].partition("\nStatus: ")[2].partition("\n\n")[0].split())
    sentences = re.findall(
        rf"(?:{'|'.join(verbs)}) ((?:\[\d{{4}}\]\([^)]+\)(?: \([^)]*\))?(?:, | and )*)+)", status
    )
    return {other for sentence in sentences for other in re.findall(r"\[(\d{4})\]", sentence)}


@pytest.mark.parametrize("number", RECORDS)
def test_records_that_change_each_other_say_so_both(number: str) -> None:
    for other in named_in_status(number, "Changes", "Replaces"):
        assert other < number
        assert number in named_in_status(other, "Changed by", "replaced by"), other
    for other in named_in_status(number, "Changed by", "replaced by"):
        assert other > number
        assert number in named_in_status(other, "Changes", "Replaces"), other


# --- names that pages use -----------------------------------------------------------------------------


def tables_of(model: type[BaseModel], prefix: str = "") -> dict[str, set[str]]:
    """The tables of a configuration by their names, as `join.group`, each with its keys; "" is the top."""
    found = {prefix: set(model.model_fields)}
    for name, entry in model.model_fields.items():
        inner = next(models_in(entry.annotation), None)
        if inner is not None:
            found |= tables_of(inner, f"{prefix}.{name}".removeprefix("."))
    return found


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


INSTANCE, SERVICE = tables_of(Config), tables_of(RendezvousConfig)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in HISTORY], ids=name_of)
def test_settings_are_there(page: Path) -> None:
    for code in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", prose(page)):
        table, _, key = code.rpartition(".")
        if table in INSTANCE or table in SERVICE:
            known = INSTANCE.get(table, set()) | SERVICE.get(table, set())
            assert key in known or key in {"py", "md", "toml", "json"} or code in NO_SETTINGS, code


NO_SETTINGS = {"transport.write"}
"""What looks like a setting and is not one: a method of asyncio."""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_targets_are_there(page: Path) -> None:
    text = page.read_text("utf-8")
    for command in re.findall(r"(?:`|[$#] )socks-tunnel ([a-z][a-z-]+)", text):
        assert command in COMMANDS
    targets = re.findall(
        r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE
    )
    for target in re.findall(r"(?:`|[$#] )make ([a-z][a-z0-9-]+)", text):
        assert target in targets


def test_headings_that_other_tests_look_for_are_there() -> None:
    headings = {
        line for page in PAGES for line in page.read_text("utf-8").splitlines() if line[:2] == "##"
    }
    wanted = {
        heading
        for source in (ROOT / "tests").rglob("test_*.py")
        for heading in re.findall(r'"(##+ [^"\\{]+)(?:\\n)?"', source.read_text("utf-8"))
    }
    assert wanted, "tests/packaging/test_first_minute.py runs what is below one of them"
    assert {
        heading for heading in wanted if not any(line.startswith(heading) for line in headings)
    } == set()
