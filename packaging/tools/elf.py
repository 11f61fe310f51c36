"""Reads what an image needs to know of an ELF file: its machine, and the libraries that it names.

Only 64-bit little-endian files, as amd64 and arm64 have them. Source: the ELF-64 object file
format, and elf.h of glibc::

    header   e_ident 16 | type 2 | machine 2 | version 4 | entry 8 | phoff 8 | … | phentsize 2 at 54
    program  type 4 | flags 4 | offset 8 | vaddr 8 | paddr 8 | filesz 8 | memsz 8 | align 8
    dynamic  tag 8 | value 8, until tag 0
"""

import struct
from dataclasses import dataclass
from pathlib import Path

MACHINES = {62: "amd64", 183: "arm64"}

_LOAD, _DYNAMIC, _INTERPRETER = 1, 2, 3
_NEEDED, _STRTAB = 1, 5


@dataclass(frozen=True)
class Elf:
    """The architecture as Debian names it, the libraries, and the loader of a program or None."""

    architecture: str
    needed: tuple[str, ...]
    interpreter: str | None


def read(path: Path) -> Elf | None:
    """Returns what a file says; None if it is no ELF file."""
    data = path.read_bytes()
    if data[:4] != b"\x7fELF":
        return None
    if data[4:6] != b"\x02\x01":
        raise ValueError(f"{path} is no 64-bit little-endian file")
    (machine,) = struct.unpack_from("<H", data, 18)
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [
        struct.unpack_from("<IIQQQQQQ", data, start + number * size) for number in range(count)
    ]

    def place(address: int) -> int:
        """Returns where in the file an address is."""
        for kind, _, offset, virtual, _, length, _, _ in segments:
            if kind == _LOAD and virtual <= address < virtual + length:
                return int(offset + address - virtual)
        raise ValueError(f"{path} has nothing at {address:#x}")

    def text(at: int) -> str:
        return data[at : data.index(b"\0", at)].decode()

    needed: list[int] = []
    strings = 0
    interpreter = None
    for kind, _, offset, _, _, length, _, _ in segments:
        if kind == _INTERPRETER:
            interpreter = text(offset)
        elif kind == _DYNAMIC:
            for tag, value in struct.iter_unpack("<QQ", data[offset : offset + length]):
                if tag == 0:
                    break
                if tag == _NEEDED:
                    needed.append(value)
                elif tag == _STRTAB:
                    strings = place(value)
    names = tuple(text(strings + name) for name in needed)
    return Elf(MACHINES.get(machine, f"machine {machine}"), names, interpreter)
