"""What a process holds: the size of every container of ours that can be reached from some objects.

Whoever comes and goes must leave nothing behind. A test counts before and after, and compares: so a
container that is added to the product tomorrow is watched, too, without being named here.
"""

import asyncio
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

OURS: Final = ("socks_tunnel", "socks_tunnel_workers")
"""The packages whose objects are looked into."""

_PLAIN: Final = (str, bytes, bytearray, memoryview, int, float, bool, type(None), type)

_CONTAINERS: Final = (Mapping, AbstractSet, list, deque)


def held(*roots: object) -> Counter[str]:
    """Returns how many objects of each class there are, and how many items in each attribute.

    `roots` are where to begin, besides the variables of our modules. What is an attribute of
    several objects is added up. `name[]` are the items of the containers inside the container
    `name`. Memory of functions (`lru_cache`) has a bound by its nature.
    """
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    kept = list(roots)  # an id is good for as long as its object lives
    waiting: deque[tuple[object, str]] = deque((root, "") for root in kept)
    for module in list(sys.modules.values()):
        if _is_ours(module.__name__):
            for name, value in list(vars(module).items()):
                _note(counts, f"{module.__name__}.{name}", value)
                waiting.append((value, f"{module.__name__}.{name}"))
    while waiting:
        item, known_as = waiting.popleft()
        if isinstance(item, _PLAIN) or id(item) in seen:
            continue
        seen.add(id(item))
        kept.append(item)
        if isinstance(item, ModuleType):
            continue
        if _is_ours(type(item).__module__):
            kind = type(item).__qualname__
            counts[kind] += 1
            for name, value in _attributes(item):
                _note(counts, f"{kind}.{name}", value)
                waiting.append((value, f"{kind}.{name}"))
        for part in _inside(item):
            inner = f"{known_as}[]" if known_as and isinstance(item, _CONTAINERS) else ""
            if inner:
                _note(counts, inner, part)
            waiting.append((part, inner))
    return counts


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in OURS


def _note(counts: Counter[str], name: str, value: object) -> None:
    if isinstance(value, (*_CONTAINERS, bytearray)):
        counts[name] += len(value)


def _attributes(item: object) -> Iterator[tuple[str, Any]]:
    names = dict.fromkeys(getattr(item, "__dict__", ()))
    for kind in type(item).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        names.update(dict.fromkeys((slots,) if isinstance(slots, str) else slots))
    for name in names:
        try:
            yield name, object.__getattribute__(item, name)
        except AttributeError:
            continue  # a slot that has no value


def _inside(item: object) -> Iterable[object]:
    """Returns what an object of another package leads to."""
    if isinstance(item, Mapping):
        return [*item.keys(), *item.values()]
    if isinstance(item, AbstractSet | list | tuple | deque):
        return list(item)
    if isinstance(item, MethodType):
        return [item.__self__]
    if isinstance(item, partial):
        return [item.func, *item.args, *item.keywords.values()]
    if isinstance(item, FunctionType):
        return [cell.cell_contents for cell in item.__closure__ or () if _is_full(cell)]
    return ()


def _is_full(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def around() -> Counter[str]:
    """Returns how many tasks and descriptors there are: what has gone must not leave these either."""
    return Counter(
        {
            "tasks": len(asyncio.all_tasks()),
            "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        }
    )


def grown(before: Counter[str], after: Counter[str], bounded: Iterable[str] = ()) -> dict[str, str]:
    """Returns what there is more of than before, but for what is named in `bounded`."""
    but = set(bounded)
    return {
        name: f"{before[name]} to {count}"
        for name, count in sorted(after.items())
        if count > before[name] and name not in but
    }


def grown_each_time(
    sizes: Sequence[Counter[str]], bounded: Iterable[str] = ()
) -> dict[str, list[str]]:
    """Returns what there was more of each time than the time before, but for what `bounded` names.

    What clients leave behind grows each time. What grows once may be something that a busy machine
    has done for the first time, such as a metric of a drop that had not come before.
    """
    steps = [grown(before, after, bounded) for before, after in pairwise(sizes)]
    assert len(steps) > 1
    common = set.intersection(*(set(step) for step in steps))
    return {name: [step[name] for step in steps] for name in sorted(common)}
