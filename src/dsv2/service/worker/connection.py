"""One connection of an engine process: whose requests are under way, and what is to be sent."""

from __future__ import annotations

import zmq

from dsv2.service.worker.wire import Batch, FromEngine, Tokens, encode, join

STUCK_SECONDS = 30.0
"""After so long without taking anything, a connection counts as gone."""
_RETRY_SECONDS = 0.02
"""Between two tries to send to a connection that takes nothing."""


class GoneError(ConnectionError):
    """Nobody is at the other end any more."""


class Connection:
    """A peer of the engine's ROUTER.

    Outputs are gathered by request until :meth:`flush` sends them as one message. While the peer
    takes nothing they grow together, so that what waits is bounded by the answers' own length.

    Args:
        identity: that the ROUTER knows it by.
        number: of this process's connections.

    Attributes:
        requests: those under way: the engine's ids by the connection's own.
    """

    def __init__(self, identity: bytes, number: int) -> None:
        self.identity, self.number = identity, number
        self.requests: dict[str, str] = {}
        self._waiting: dict[str, Tokens] = {}
        self._stuck_since: float | None = None
        self._next_try = 0.0

    @property
    def has_waiting(self) -> bool:
        """Whether something is still to be sent."""
        return bool(self._waiting)

    def put(self, output: Tokens) -> None:
        """Have an output sent with the next flush; its lists belong to the connection now."""
        before = self._waiting.get(output.id)
        self._waiting[output.id] = output if before is None else join(before, output)

    def flush(self, socket: zmq.Socket[bytes], now: float) -> None:
        """Send what was put, in one message; keep it when the peer takes nothing just now.

        Raises:
            GoneError: the peer is gone, or has been stuck for :data:`STUCK_SECONDS`.
        """
        if not self._waiting or now < self._next_try:
            return
        # Scored prompts may be large: each has a message to itself.
        large = [one for one in self._waiting.values() if one.prompt_logprobs is not None]
        for output in large:
            if not self.send(socket, Batch([output])):
                return self._wait(now)
            del self._waiting[output.id]
        if self._waiting and not self.send(socket, Batch(list(self._waiting.values()))):
            return self._wait(now)
        self._waiting = {}
        self._stuck_since, self._next_try = None, 0.0

    def _wait(self, now: float) -> None:
        if self._stuck_since is None:
            self._stuck_since = now
        if now - self._stuck_since > STUCK_SECONDS:
            raise GoneError(f"connection {self.number} takes nothing")
        self._next_try = now + _RETRY_SECONDS

    def send(self, socket: zmq.Socket[bytes], message: FromEngine) -> bool:
        """Send a message; false when the peer takes nothing just now.

        Raises:
            GoneError: the peer is gone.
        """
        try:
            socket.send_multipart((self.identity, encode(message)), zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            raise GoneError(f"connection {self.number} is closed") from error
        return True

    def probe(self, socket: zmq.Socket[bytes]) -> None:
        """See whether the peer is there, by a message that says nothing.

        Raises:
            GoneError: it is gone.
        """
        self.send(socket, Batch([]))
