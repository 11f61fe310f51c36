"""Writes what the Debian package has inside: a CycloneDX bill of materials, and the licence texts.

inventory.py --lock LOCK --version VERSION --compiler FOLDER --sbom FILE --licences FILE
SITE_PACKAGES

FOLDER has mypy in it, whose run-time library mypyc has put into the compiled data path.

Standard library only: it runs in the build root. Its output depends on nothing but its input and
SOURCE_DATE_EPOCH, so that the package can be built again byte for byte.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

LICENCE_NAME = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)
SHARED_OBJECT = re.compile(r".+\.so[.0-9]*")
STAND_IN = "av"
COMPILER = "mypy"


def canonical(name: str) -> str:
    """The name of a distribution as the package index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked_versions(lock: Path) -> dict[str, str]:
    """The names and versions that the lock file asks for."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^ \\]+)", lock.read_text(), re.MULTILINE)
    return {canonical(name): version for name, version in found}


def distributions(site: Path) -> Iterator[tuple[Path, Message]]:
    """Each installed distribution's folder and metadata, by name."""
    for folder in sorted(site.glob("*.dist-info")):
        yield folder, HeaderParser().parsestr((folder / "METADATA").read_text("utf-8"))


def licences_of(metadata: Message) -> list[dict[str, Any]]:
    """The licence as its authors state it: an SPDX expression, or a name, or classifiers."""
    if expression := metadata["License-Expression"]:
        return [{"expression": expression}]
    classified = [
        classifier.rpartition(" :: ")[2]
        for classifier in metadata.get_all("Classifier", [])
        if classifier.startswith("License :: ")
    ]
    short = (metadata["License"] or "").strip()
    if short and "\n" not in short and len(short) < 80:
        classified = classified or [short]
    return [{"license": {"name": name}} for name in classified or ["see its licence file"]]


def bundled(site: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """The shared libraries that a wheel brings along in its folder NAME.libs, with hashes."""
    name = folder.name.partition("-")[0]
    for file in sorted((site / f"{name}.libs").glob("*")):
        if SHARED_OBJECT.fullmatch(file.name):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            yield {
                "type": "file",
                "bom-ref": f"file:{name}.libs/{file.name}",
                "name": f"{name}.libs/{file.name}",
                "hashes": [{"alg": "SHA-256", "content": digest}],
            }


def component(site: Path, folder: Path, metadata: Message) -> dict[str, Any]:
    """One library."""
    name, version = canonical(metadata["Name"]), metadata["Version"]
    purl = f"pkg:pypi/{name}@{version}"
    entry: dict[str, Any] = {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "licenses": licences_of(metadata),
    }
    if summary := metadata["Summary"]:
        entry["description"] = summary
    if files := list(bundled(site, folder)):
        entry["components"] = files
    return entry


def dependencies(site: Path, refs: dict[str, str]) -> list[dict[str, Any]]:
    """Who needs whom, as far as both are here; extras are left out."""
    edges = []
    for _, metadata in distributions(site):
        needed = set()
        for requirement in metadata.get_all("Requires-Dist", []):
            name = canonical(re.split(r"[ ;<>=!~\[(]", requirement, maxsplit=1)[0])
            if "extra ==" not in requirement and name in refs:
                needed.add(refs[name])
        edges.append({"ref": refs[canonical(metadata["Name"])], "dependsOn": sorted(needed)})
    return edges


def compiler_of(folder: Path) -> tuple[Path, Message]:
    """Returns the folder and metadata of the distribution whose run-time library is compiled in."""
    (found,) = (d for d in distributions(folder) if canonical(d[1]["Name"]) == COMPILER)
    return found


def bill(site: Path, compiler: Path, version: str) -> dict[str, Any]:
    """The whole bill of materials, CycloneDX 1.5."""
    components = [component(site, *distribution) for distribution in distributions(site)]
    refs = {entry["name"]: entry["bom-ref"] for entry in components}
    compiled_in = component(compiler, *compiler_of(compiler)) | {
        "description": "The run-time library of mypyc, which is part of the compiled data path."
    }
    moment = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    itself = f"pkg:deb/debian/socks-tunnel@{version}?arch=amd64"
    stand_in = {
        "type": "library",
        "bom-ref": "socks-tunnel:av-stand-in",
        "name": "av",
        "description": "A stand-in of socks-tunnel's own for PyAV, which is not in the package.",
        "licenses": [{"expression": "Apache-2.0"}],
    }
    body = {
        "metadata": {
            "timestamp": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "application",
                "bom-ref": itself,
                "name": "socks-tunnel",
                "version": version,
                "purl": itself,
                "licenses": [{"expression": "Apache-2.0"}],
            },
        },
        "components": [*components, compiled_in, stand_in],
        "dependencies": [
            {
                "ref": itself,
                "dependsOn": sorted(
                    [*refs.values(), compiled_in["bom-ref"], stand_in["bom-ref"]]
                ),
            },
            *dependencies(site, refs),
        ],
    }
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, digest)}",
        "version": 1,
        **body,
    }


def licence_texts(site: Path, compiler: Path) -> Iterator[str]:
    """The licence texts and notices of every library, under headings."""
    for folder, metadata in (*distributions(site), compiler_of(compiler)):
        for file in sorted(folder.rglob("*")):
            if file.is_file() and LICENCE_NAME.search(file.name):
                heading = f"{metadata['Name']} {metadata['Version']}: {file.name}"
                text = file.read_text("utf-8", "replace").strip("\n")
                yield f"{'=' * 78}\n{heading}\n{'=' * 78}\n\n{text}\n\n"


def main(arguments: list[str]) -> None:
    """Check the installed libraries against the lock file and write both files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--compiler", type=Path, required=True)
    parser.add_argument("--sbom", type=Path, required=True)
    parser.add_argument("--licences", type=Path, required=True)
    parser.add_argument("site", type=Path)
    options = parser.parse_args(arguments)
    expected = locked_versions(options.lock)
    del expected[STAND_IN]
    installed = {canonical(m["Name"]): m["Version"] for _, m in distributions(options.site)}
    if installed != expected:
        sys.exit(f"installed is {installed}, but the lock file asks for {expected}")
    listed = bill(options.site, options.compiler, options.version)
    options.sbom.write_text(json.dumps(listed, indent=1, ensure_ascii=False) + "\n", "utf-8")
    texts = licence_texts(options.site, options.compiler)
    options.licences.write_text("".join(texts), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
