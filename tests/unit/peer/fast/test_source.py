"""The source of what the guard looks at is what the inspect module says, and odd ones are told."""

import functools
import inspect
import operator
import types
from collections.abc import Callable

import pytest

from socks_tunnel.peer.fast import guard
from socks_tunnel.peer.fast.source import source_of

TEXT = """\
import x


@decorated
@decorated(
    twice=True,
)
def function(
    a: int,
) -> int:
    # A comment.

    return a
    # One more.

# Not a part of it.
@dataclass
class Kind(Base):
    a: int

    def method(self) -> None:
        pass


class KindOfAnother: b = 1
""".splitlines(keepends=True)


@pytest.mark.parametrize("name", guard.SOURCES)
def test_what_is_guarded_is_read_as_inspect_reads_it(name: str) -> None:
    root, _, path = name.partition(".")
    found = operator.attrgetter(path)(guard._ROOTS[root])
    assert source_of(found) == inspect.getsource(found)


def made(name: str, line: int) -> Callable[[], None]:
    """A function that says that it begins in that line."""
    code = (lambda: None).__code__.replace(co_firstlineno=line, co_name=name)
    return types.FunctionType(code, {})


def test_decorators_signatures_and_comments_are_parts() -> None:
    assert source_of(made("function", 4), lambda _: TEXT) == "".join(TEXT[3:14])
    assert source_of(made("method", 21), lambda _: TEXT) == "".join(TEXT[20:22])


def test_a_wrapped_function_is_the_one_within() -> None:
    inner = made("method", 21)
    outer = functools.wraps(inner)(made("outer", 1))
    assert source_of(outer, lambda _: TEXT) == "".join(TEXT[20:22])


@pytest.mark.parametrize(("name", "first", "last"), [("Kind", 17, 22), ("KindOfAnother", 25, 25)])
def test_a_class_is_found_by_its_whole_name(name: str, first: int, last: int) -> None:
    kind = type(name, (), {})
    assert source_of(kind, lambda _: TEXT) == "".join(TEXT[first - 1 : last])


def test_what_has_no_source_is_told() -> None:
    with pytest.raises(TypeError, match="neither a function nor a class"):
        source_of(len)
    with pytest.raises(OSError, match="has no file"):
        source_of(int)
    with pytest.raises(OSError, match="not in its file"):
        source_of(type("Other", (), {}), lambda _: TEXT)
    with pytest.raises(OSError, match="another file"):
        source_of(made("f", 99), lambda _: TEXT)
    with pytest.raises(OSError, match="no definition"):
        source_of(made("f", 2), lambda _: TEXT[:2])
