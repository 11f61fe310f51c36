"""The list of what may be compiled, and what is said of it."""

import ast
import importlib
import os
import sys
import threading
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from socks_tunnel.ops.compiled import MODULES, compiled_state, is_compiled

COMPILED = os.environ.get("SOCKS_TUNNEL_COMPILED") == "1"

# Here and not in a test: to load a library, ctypes may start a process.
for name in MODULES:
    importlib.import_module(name)


def test_these_tests_run_on_what_they_are_meant_for() -> None:
    """`make test-compiled` runs them on compiled modules, everybody else on pure ones."""
    for name in MODULES:
        assert is_compiled(name) == COMPILED, name
    expected = f"compiled ({len(MODULES)} modules)" if COMPILED else "pure Python"
    assert compiled_state() == expected


def test_a_part_is_not_said_to_be_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(MODULES):
        module = ModuleType(name)
        suffix = ".py" if number else EXTENSION_SUFFIXES[0]
        module.__spec__ = ModuleSpec(name, None, origin=f"/somewhere/module{suffix}")
        monkeypatch.setitem(sys.modules, name, module)
    assert compiled_state() == f"only 1 of {len(MODULES)} modules are compiled"


@pytest.mark.parametrize("name", MODULES)
def test_no_class_gives_one_of_its_names_to_another(name: str) -> None:
    """mypyc compiles `abort = close` in a class to a look-up that fails: see the list's docstring."""
    package, *path = name.split(".")
    room = "workers" if package == "socks_tunnel_workers" else "daemon"
    source = Path(__file__).parents[3] / room / package / f"{'/'.join(path)}.py"
    for node in ast.walk(ast.parse(source.read_text())):
        if not isinstance(node, ast.ClassDef):
            continue
        bound: set[str] = set()
        values: list[ast.expr] = []
        for statement in node.body:
            match statement:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    bound.add(statement.name)
                case ast.Assign():
                    bound |= {t.id for t in statement.targets if isinstance(t, ast.Name)}
                    values.append(statement.value)
                case ast.AnnAssign(target=ast.Name() as target, value=value):
                    bound.add(target.id)
                    values += [] if value is None else [value]
        used = {n.id for v in values for n in ast.walk(v) if isinstance(n, ast.Name)}
        assert not used & bound, f"{name}.{node.name}: {', '.join(sorted(used & bound))}"


@pytest.mark.parametrize("name", MODULES)
def test_no_variable_is_of_a_class_that_derives_from_the_locals_of_threads(name: str) -> None:
    """Compiled by mypyc, instances of such a class crash the process in `isinstance(x, Mapping)`."""
    for variable, value in vars(sys.modules[name]).items():
        kind = type(value)
        assert kind is threading.local or threading.local not in kind.__mro__, variable


def test_the_list_is_in_order_and_names_modules() -> None:
    assert list(MODULES) == sorted(set(MODULES))
    assert not is_compiled("socks_tunnel.nowhere")


INTERPRETED_IN_FAST = {
    *("association", "connection", "dtls", "sctp"),  # bases of aiortc's
    *("flights", "guard", "sink", "source"),  # no message passes them
}


def test_each_machine_of_the_fast_path_is_listed() -> None:
    """A module that is taken out of a listed one takes its functions out of the compiled path."""
    folder = Path(__file__).parents[3] / "daemon/socks_tunnel/peer/fast"
    found = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    prefix = "socks_tunnel.peer.fast."
    listed = {name.removeprefix(prefix) for name in MODULES if name.startswith(prefix)}
    assert found - listed == INTERPRETED_IN_FAST


INTERFACES = {"Asker", "ProtocolError", "RemoteProtocolError"}
"""Interpreted bases of listed classes. No message passes what is inherited from them: a listed class
has the methods itself that are called for it, lives only until its flow is open, or is an exception
that ends a link."""


@pytest.mark.skipif(
    COMPILED, reason="says the same of the sources; mypyc's own types cannot be asked"
)
@pytest.mark.parametrize("name", MODULES)
def test_no_listed_class_has_a_base_of_ours_that_is_interpreted(name: str) -> None:
    """All that is inherited from such a base would run interpreted, and attributes be slow."""
    for found in vars(sys.modules[name]).values():
        if isinstance(found, type) and found.__module__ == name:
            for base in found.__mro__[1:]:
                ours = base.__module__.startswith("socks_tunnel")
                assert not ours or base.__module__ in MODULES or base.__name__ in INTERFACES
