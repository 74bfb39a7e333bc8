"""The event loop that server and load generator run in: uvloop's where it is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_MAKE: Callable[[], asyncio.AbstractEventLoop] | None = None
NAME = "asyncio"
"""Which one it is."""

try:
    import uvloop
except ImportError:  # as on Windows, for which there is none
    pass
else:
    _MAKE, NAME = uvloop.new_event_loop, "uvloop"


def run(main: Coroutine[Any, Any, T]) -> T:
    """As :func:`asyncio.run`."""
    with asyncio.Runner(loop_factory=_MAKE) as runner:
        return runner.run(main)
