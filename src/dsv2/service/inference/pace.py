"""How many events all streams together are sent in a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_PER_STREAM = 0.005
_LONGEST = 0.3
_WHOLE = 0.5
_SLOTS = 4
"""Moments in a gap at which events go out."""


class Pace:
    """Seconds between two events of a stream: the more streams, the longer.

    So up to sixty of them together are about 200 events a second at most, of more tokens each where
    the engine is faster. A stream alone gets each token as an event of its own. No event waits for
    more than 0.3 s, and the first and the last of an answer do not wait at all. Those that wait go
    out at the same few moments: waking up for each one costs more than sending it.
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

    def next(self, now: float, *, is_stream: bool) -> float:
        """When the next event may go out, by the clock that says ``now``, in seconds.

        Answers that are sent whole only have their tokens counted then.
        """
        gap = min(_LONGEST, _PER_STREAM * max(self._streams, 1)) if is_stream else _WHOLE
        slot = gap / _SLOTS
        return (now + gap) // slot * slot
