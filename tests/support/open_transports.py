"""Connections that a test leaves open: found at its end, and not whenever the garbage collector comes by."""

import asyncio
from asyncio import selector_events
from typing import Any
from weakref import WeakKeyDictionary

import pytest

_transport: Any = getattr(selector_events, "_SelectorTransport")  # noqa: B009  private
_opened: "WeakKeyDictionary[Any, str]" = WeakKeyDictionary()
"""The transports of this process, with the peer of each and the task that has opened it."""


class OpenTransports:
    """A plugin for pytest: a test fails whose event loop ends before a transport in it is closed."""

    def pytest_sessionstart(self) -> None:
        """Record each transport that is made from now on."""
        init = _transport.__init__

        def recording(transport: Any, loop: Any, *args: Any) -> None:
            init(transport, loop, *args)
            task: Any = asyncio.current_task(loop)
            opener = getattr(task and task.get_coro(), "__qualname__", "no task")
            _opened[transport] = f"to {transport.get_extra_info('peername')}, opened in {opener}"

        _transport.__init__ = recording

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Any:
        """Look once the fixtures of the test have ended."""
        yield
        found = [transport for transport in _opened if _is_forgotten(transport)]
        texts = [_opened.pop(transport) for transport in found]
        for transport in found:
            transport._sock.close()
            transport._sock = None  # else it warns in another test
        assert not texts, f"left open: {'; '.join(texts)}"


def _is_forgotten(transport: Any) -> bool:
    return transport._sock is not None and transport._loop.is_closed()
