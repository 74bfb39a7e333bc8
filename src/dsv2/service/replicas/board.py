"""Where replicas tell that they live, and where the API process reads it: a small actor of Ray."""

from __future__ import annotations

import time

NAMESPACE = "dsv2"
"""Of the boards' names in Ray."""
FORGET_SECONDS = 5.0
"""A replica that is not heard for so long is left out."""


class Board:
    """The last beat of each replica."""

    def __init__(self) -> None:
        self._beats: dict[str, tuple[float, bytes]] = {}

    def tell(self, replica: str, frame: bytes) -> None:
        """Keep a beat of a replica in place of its last one."""
        self._beats[replica] = time.monotonic(), frame

    def read(self) -> list[bytes]:
        """The beats of the replicas that were heard of late."""
        oldest = time.monotonic() - FORGET_SECONDS
        self._beats = {name: beat for name, beat in self._beats.items() if beat[0] >= oldest}
        return [frame for _, frame in self._beats.values()]
