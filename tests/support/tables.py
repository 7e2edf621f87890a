"""What the library holds in the memory of this process: its tables, found by walking through its objects, and more."""

import asyncio
import gc
import sys
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import _lru_cache_wrapper
from typing import Any, cast

from spotconn import TokenManager
from support.exported import Exported

LIBRARIES = frozenset({"spotconn", "asyncpg", "httpx", "httpcore", "asyncio", "_asyncio"})


@dataclass(frozen=True)
class Sizes:
    """What the process holds at the end of a day.

    Attributes:
        tables: entries by table, with the tasks, timers, connections of httpx and series of the telemetry.
        objects: by class, of the library and of those that it uses.
        blocks: that Python has allocated.
    """

    tables: Counter[str]
    objects: Counter[str]
    blocks: int


def tables(**starts: object) -> Counter[str]:
    """The number of entries of every table, by the way to it: from some objects, and from the library's modules.

    A table is whatever holds several things: dict, set, list, deque, tuple, those of weak references, and the cache of
    a function. Those in the entries of another table are added up. Objects of other libraries are not looked into.
    """
    sizes: Counter[str] = Counter()
    seen = set[int]()
    waiting: deque[tuple[str, object]] = deque([*starts.items(), *_globals()])
    while waiting:
        path, one = waiting.popleft()
        if isinstance(one, Collection):
            table = cast("Collection[object]", one)
            sizes[path] += len(table)
            waiting += [(f"{path}[]", inner) for inner in _entries(table) if _is_walked(inner)]
        elif isinstance(one, _lru_cache_wrapper):
            sizes[path] += one.cache_info().currsize
        elif id(one) not in seen:
            seen.add(id(one))
            waiting += [(f"{path}.{name}", inner) for name, inner in _attributes(one) if _is_walked(inner)]
    return sizes


def _library_of(kind: type) -> str:
    """The library that a class is of; the test kit is none."""
    module = str(kind.__module__)  # of a metaclass it is a descriptor
    return "" if module.startswith("spotconn.testing") else module.partition(".")[0]


def _globals() -> Iterator[tuple[str, object]]:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "spotconn" and not name.startswith("spotconn.testing"):
            for variable, value in vars(module).items():
                if isinstance(value, _lru_cache_wrapper):
                    is_its_own = value.__module__ == name
                else:
                    is_its_own = not variable.startswith("__") and _is_walked(value)
                if is_its_own:
                    yield f"{name}:{variable}", value


def _is_walked(one: object) -> bool:
    if isinstance(one, str | bytes | range):
        return False
    return isinstance(one, Collection) or (not isinstance(one, type) and _library_of(type(one)) == "spotconn")


def _entries(table: Collection[object]) -> list[object]:
    if isinstance(table, Mapping):
        pairs = cast("Mapping[object, object]", table)
        return [*pairs.keys(), *pairs.values()]
    return [*table]


def _attributes(one: object) -> Iterator[tuple[str, object]]:
    yield from getattr(one, "__dict__", {}).items()
    for kind in type(one).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(one, name):
                yield name, getattr(one, name)


def sizes_of(managers: Mapping[str, TokenManager], exported: Exported, **others: object) -> Sizes:
    """What this process holds now, by the ways to its tables from managers and other objects."""
    held = tables(**managers, **others)
    loop: Any = asyncio.get_running_loop()
    held["tasks"] = len(asyncio.all_tasks())
    held["timers"] = sum(not timer.cancelled() for timer in loop._scheduled)
    held["connections of httpx"] = sum(map(_connections, managers.values()))
    held["series of the telemetry"] = exported.series()
    gc.collect()
    everything: list[object] = gc.get_objects()
    kinds = [type(one) for one in everything]
    objects = Counter(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds if _library_of(kind) in LIBRARIES)
    return Sizes(held, objects, sys.getallocatedblocks())


def _connections(tokens: TokenManager) -> int:
    """The connections of the clients of httpx that a manager uses."""
    own = tokens.accounts._http.own
    assert own is not None
    transports: list[Any] = [client._transport for client in own._calls]
    return sum(len(transport._pool.connections) for transport in transports)
