"""How many events all streams together are sent in a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_PER_STREAM = 0.004
_LONGEST = 0.2
_WHOLE = 0.5


class Pace:
    """Seconds between two events of a stream: the more streams, the longer.

    So up to fifty of them together are about 250 events a second at most, of more tokens each where
    the engine is faster. A stream alone gets each token as an event of its own. No event waits for
    more than 0.2 s, and the first and the last of an answer do not wait at all.
    """

    def __init__(self) -> None:
        self._streams = 0

    @contextmanager
    def stream(self) -> Iterator[None]:
        """One stream more, as long as the context is open."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def gap(self, *, is_stream: bool) -> float:
        """Seconds; those of an answer that is sent whole only have its tokens counted."""
        return min(_LONGEST, _PER_STREAM * self._streams) if is_stream else _WHOLE
