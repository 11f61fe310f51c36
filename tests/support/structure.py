"""What does not keep to the shape that the code is to have: sources without a unit test, circles of
imports, files and classes that are too long.

`exceptions.toml` in tests/unit/structure lists what is known. `python -m support.structure` (make
structure) deletes from it what has been mended; it never adds a line.
"""

import ast
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
LIST = ROOT / "tests" / "unit" / "structure" / "exceptions.toml"

PACKAGES = {
    "socks_tunnel": ROOT / "daemon" / "socks_tunnel",
    "socks_tunnel_workers": ROOT / "workers" / "socks_tunnel_workers",
}

LINES_MAX = 500
METHODS_MAX = 25

CORE = ("session", "flow", "streams", "scheduler")
"""The modules of `protocol` whose objects change by their own methods only."""

NOT_OF_THE_CORE = ("memory", "associations", "counters", "relay")
"""What workers call objects of their own that have fields of the same names."""

LONG_FILE = re.compile(r"^This file is long because \S", re.MULTILINE)
LARGE_CLASS = re.compile(r"^ *This class has many methods because \S", re.MULTILINE)


def relative(path: Path, root: Path = ROOT) -> str:
    return str(path.relative_to(root))


def untested(sources: Path, tests: Path, root: Path = ROOT) -> Iterator[str]:
    """Yields the source files whose unit test is not where it belongs.

    `__init__.py` and `__main__.py` have none: the former are tested as what they collect, the latter
    are processes.
    """
    for source in sorted(sources.rglob("*.py")):
        if source.name.startswith("__"):
            continue
        folder = tests / source.relative_to(sources).parent
        if not (folder / f"test_{source.name}").exists():
            yield relative(source, root)


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Returns the groups of nodes that reach each other (Tarjan 1972), each sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group: list[str] = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1 or node in edges.get(node, ()):
                found.append(sorted(group))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return sorted(found)


def python_files() -> Iterator[Path]:
    for folder in ("daemon", "workers", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "node_modules" not in path.parts:
                yield path


def is_long(text: str) -> bool:
    """Whether a file has more lines than it may, and does not say why."""
    if text.count("\n") <= LINES_MAX:
        return False
    return not LONG_FILE.search(ast.get_docstring(ast.parse(text)) or "")


def large_classes(text: str) -> Iterator[str]:
    """Yields the names of classes with more methods than they may have, that do not say why."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            methods = [
                n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
            ]
            reason = LARGE_CLASS.search(ast.get_docstring(node) or "")
            if len(methods) > METHODS_MAX and not reason:
                yield node.name


def own_fields(text: str) -> set[str]:
    """Returns the names of the attributes that the classes of a file set on themselves."""
    return {
        node.attr
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def foreign_writes(text: str, fields: set[str]) -> Iterator[str]:
    """Yields the statements' targets that set one of the fields, or a part of it, on another object."""
    for node in ast.walk(ast.parse(text)):
        target: ast.AST = node
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load):
            target = node.value
        elif not isinstance(node, ast.Attribute) or isinstance(node.ctx, ast.Load):
            continue
        if isinstance(target, ast.Attribute) and target.attr in fields:
            owner = ast.unparse(target.value).rpartition(".")[2]
            if owner not in {"self", *NOT_OF_THE_CORE}:
                yield ast.unparse(node)


# --- the lists --------------------------------------------------------------------------------


def without_unit_test() -> set[str]:
    """Returns the sources of workers/ and peer/ whose unit test is missing."""
    unit = ROOT / "tests" / "unit"
    peer = PACKAGES["socks_tunnel"] / "peer"
    return {
        *untested(PACKAGES["socks_tunnel_workers"], unit / "workers"),
        *untested(peer, unit / "peer"),
    }


def in_circles() -> set[str]:
    """Returns the modules that import themselves by way of others.

    Imports for type checkers count too: who needs a type knows whoever has it.
    """
    found: set[str] = set()
    for package in PACKAGES:
        graph = grimp.build_graph(package, cache_dir=None)
        edges = {
            module: graph.find_modules_directly_imported_by(module) & graph.modules
            for module in graph.modules
        }
        found.update(module for circle in circles(edges) for module in circle)
    return found


def long_files() -> set[str]:
    """Returns the files with more than :data:`LINES_MAX` lines and no reason for that."""
    return {relative(path) for path in python_files() if is_long(path.read_text())}


def crowded_classes() -> set[str]:
    """Returns the classes with more than :data:`METHODS_MAX` methods and no reason for that."""
    return {
        f"{relative(path)} {name}"
        for path in python_files()
        for name in large_classes(path.read_text())
    }


def core_fields_set_outside() -> set[str]:
    """Returns where workers set a field of the core themselves, instead of calling its method."""
    protocol = PACKAGES["socks_tunnel"] / "protocol"
    fields = {field for name in CORE for field in own_fields((protocol / f"{name}.py").read_text())}
    return {
        f"{relative(path)} {target}"
        for path in sorted(PACKAGES["socks_tunnel_workers"].rglob("*.py"))
        for target in foreign_writes(path.read_text(), fields)
    }


FINDERS: dict[str, Callable[[], Iterable[str]]] = {
    "without_unit_test": without_unit_test,
    "in_circles": in_circles,
    "long_files": long_files,
    "large_classes": crowded_classes,
    "core_fields": core_fields_set_outside,
}


def listed() -> dict[str, list[str]]:
    """Returns the exceptions by what they are excepted from."""
    return tomllib.loads(LIST.read_text())


def prune() -> None:
    """Deletes from the list what is no exception any more."""
    lines = []
    for name, entries in listed().items():
        found = set(FINDERS[name]())
        kept = sorted(found.intersection(entries))
        lines += [f"{name} = [", *(f'    "{entry}",' for entry in kept), "]", ""]
        print(
            f"{name}: {len(entries) - len(kept)} mended, {len(kept)} left, {len(found) - len(kept)} new"
        )
    LIST.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    prune()
