"""The loop of an engine process: messages in, a step, answers out.

It never waits for a socket while there is anything to compute, and no message, request or failed
step ends it as long as the engine can go on.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

import msgspec
import zmq

from dsv2.engine.engine import Engine, TokenOutput
from dsv2.engine.request import OverloadedError, Request, RequestError, SamplingParams
from dsv2.engine.sampler import TokenLogprobs
from dsv2.service.worker.connection import Connection, GoneError
from dsv2.service.worker.process import BEAT_SECONDS, EXIT_BROKEN, EXIT_CLEAN, EXIT_UNFINISHED
from dsv2.service.worker.wire import (
    Ask,
    Cancel,
    Logprobs,
    Stats,
    Submit,
    Tokens,
    Welcome,
    decode_to_engine,
    from_wire,
    refusing,
)

log = logging.getLogger("dsv2.service.worker")

MAX_FAILED_STEPS = 3
"""So many failed steps in a row mean that the engine cannot go on."""
_MAX_AT_ONCE = 256
"""Messages taken in between two steps, so that a flood of them does not stop the answers."""
_decode_any = refusing(msgspec.msgpack.decode)

_STOPPING = "the engine is stopping; try again later"


class StepLoop:
    """Serves an engine to the peers of a ROUTER.

    Args:
        engine: nobody else uses it from now on.
        socket: a bound ROUTER with ``ROUTER_MANDATORY``; the loop's own.
        welcome: for those who ask.
        fatal: errors of a step after which no other step can succeed.
    """

    def __init__(
        self,
        engine: Engine,
        socket: zmq.Socket[bytes],
        welcome: Welcome,
        *,
        fatal: tuple[type[BaseException], ...] = (),
    ) -> None:
        self._engine, self._socket, self._welcome = engine, socket, welcome
        self._fatal = fatal
        self._connections: dict[bytes, Connection] = {}
        self._numbered = 0
        self._live: dict[str, tuple[Connection, str]] = {}
        self._stop_after: float | None = None
        self._deadline: float | None = None
        self._went_round = time.monotonic()
        self._next_probe = 0.0
        self._failures = 0
        self._generated = self._steps = 0
        self._step_seconds = 0.0

    @property
    def age(self) -> float:
        """Seconds since the loop went round."""
        return time.monotonic() - self._went_round

    @property
    def stats(self) -> Stats:
        """The present state, for any thread."""
        now = self._engine.stats
        return Stats(
            running=now.running,
            waiting=now.waiting,
            free_blocks=now.free_blocks,
            total_blocks=now.total_blocks,
            preemptions=now.preemptions,
            prompt_tokens=now.prompt_tokens,
            cached_tokens=now.cached_tokens,
            generated_tokens=self._generated,
            steps=self._steps,
            step_seconds=self._step_seconds,
        )

    def stop(self, drain_seconds: float) -> None:
        """Take no more requests, and end when those under way are done, or when the time is over.

        For any thread and for signal handlers. The earliest end that was asked for holds.
        """
        before = self._stop_after
        self._stop_after = drain_seconds if before is None else min(before, drain_seconds)

    def run(self) -> int:
        """Serve until stopped; the exit status."""
        while True:
            now = self._went_round = time.monotonic()
            self._receive()
            if (status := self._status(now)) is not None:
                return status
            if self._engine.has_work:
                if not self._step():
                    return EXIT_BROKEN
            else:
                waits = any(one.has_waiting for one in self._connections.values())
                self._socket.poll(20 if waits else int(BEAT_SECONDS * 1000))
            self._flush(time.monotonic())

    def _status(self, now: float) -> int | None:
        """The exit status once the loop is to end."""
        if self._stop_after is None:
            return None
        if self._deadline is None:
            log.info("stopping: %d requests under way", len(self._live))
            self._deadline = now + self._stop_after
        waits = any(one.has_waiting for one in self._connections.values())
        if not self._live and not waits:
            return EXIT_CLEAN
        if now < min(self._deadline, now + self._stop_after):
            return None
        self._end_all(_STOPPING)
        self._flush(now)
        return EXIT_UNFINISHED

    def _receive(self) -> None:
        """Take in the messages that are there, without waiting."""
        for _ in range(_MAX_AT_ONCE):
            try:
                identity, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            connection = self._connections.get(identity)
            if connection is None:
                self._numbered += 1
                connection = Connection(identity, self._numbered)
                self._connections[identity] = connection
            try:
                self._obey(connection, frames)
            except GoneError:
                self._forget(connection)

    def _obey(self, connection: Connection, frames: list[bytes]) -> None:
        try:
            if len(frames) != 1:
                raise msgspec.DecodeError(f"a message of {len(frames)} frames")
            message = decode_to_engine(frames[0])
        except msgspec.MsgspecError as error:
            self._refuse(connection, frames, error)
            return
        if isinstance(message, Submit):
            self._submit(connection, message)
        elif isinstance(message, Cancel):
            if (name := connection.requests.pop(message.id, None)) is not None:
                del self._live[name]
                self._engine.abort(name)
        elif isinstance(message, Ask):
            connection.send(self._socket, self._welcome)

    def _refuse(self, connection: Connection, frames: list[bytes], error: Exception) -> None:
        """Answer a frame that does not fit: the request in it, or everything of the connection."""
        log.warning("connection %d sent a bad frame: %.200s", connection.number, error)
        name = _id_within(frames)
        if name is not None and name not in connection.requests:
            connection.put(_rejected(name, "request", f"cannot be read: {error}"))
            return
        for engine_id in list(connection.requests.values()):
            self._engine.abort(engine_id)
            self._fail(engine_id, "its connection sent something that cannot be read")

    def _submit(self, connection: Connection, message: Submit) -> None:
        name = message.id
        if name in connection.requests:
            # The one under way keeps its stream: an answer here would end it.
            log.warning("connection %d used an id twice", connection.number)
            return
        if self._stop_after is not None:
            connection.put(_rejected(name, None, _STOPPING))
            return
        engine_id = f"{connection.number}/{name}"
        try:
            self._engine.add(_request(message, engine_id))
        except RequestError as error:
            text = str(error).removeprefix(f"{error.field} ")
            connection.put(_rejected(name, error.field, text))
        except OverloadedError as error:
            connection.put(_rejected(name, None, str(error)))
        except Exception as error:  # whatever one request does, the others go on
            log.exception("a request could not be taken")
            self._engine.abort(engine_id)
            text = f"the engine could not take the request ({type(error).__name__})"
            connection.put(Tokens(name, finish_reason="error", error=text))
        else:
            connection.requests[name] = engine_id
            self._live[engine_id] = connection, name

    def _step(self) -> bool:
        """One step; false when the engine cannot go on."""
        start = time.perf_counter()
        try:
            outputs = self._engine.step()
        except Exception as error:
            return self._recover(error)
        self._failures = 0
        self._steps += 1
        for output in outputs:
            self._take(output)
        self._step_seconds += time.perf_counter() - start
        return True

    def _recover(self, error: Exception) -> bool:
        """End what was in a step that failed; false when the engine cannot go on."""
        self._failures += 1
        log.error("a step failed", exc_info=error)
        reason = f"the engine failed in a step ({type(error).__name__})"
        try:
            if isinstance(error, self._fatal) or self._failures >= MAX_FAILED_STEPS:
                raise error
            for name in self._engine.abandon():
                self._fail(name, reason)
        except Exception as second:
            if second is not error:
                log.error("the engine cannot go on", exc_info=second)
            for name in list(self._live):
                self._fail(name, reason)
            self._flush(time.monotonic())
            return False
        return True

    def _take(self, output: TokenOutput) -> None:
        """Have the connection of a request told what came of it."""
        found = self._live.get(output.request_id)
        if found is None:
            return
        connection, name = found
        reason, scored = output.finish_reason, output.prompt_logprobs
        tokens: list[int] = []
        logprobs = None
        if output.token is not None:
            self._generated += 1
            tokens.append(output.token)
            if output.logprobs is not None:
                logprobs = [_logprobs(output.logprobs)]
        prompt = None
        if scored is not None:
            prompt = [None if one is None else _logprobs(one) for one in scored]
        error, cached = output.error, output.cached_tokens
        connection.put(Tokens(name, tokens, logprobs, reason, error, None, cached, prompt))
        if reason is not None:
            del self._live[output.request_id], connection.requests[name]

    def _fail(self, engine_id: str, reason: str) -> None:
        """Tell of the end of a request that the engine has no longer."""
        connection, name = self._live.pop(engine_id)
        del connection.requests[name]
        connection.put(Tokens(name, finish_reason="error", error=reason))

    def _end_all(self, reason: str) -> None:
        for engine_id in list(self._live):
            self._engine.abort(engine_id)
            self._fail(engine_id, reason)

    def _flush(self, now: float) -> None:
        """Send what there is, and now and then see who is still there."""
        probes = now >= self._next_probe
        if probes:
            self._next_probe = now + BEAT_SECONDS
        for connection in list(self._connections.values()):
            try:
                connection.flush(self._socket, now)
                if probes:
                    connection.probe(self._socket)
            except GoneError as error:
                log.info("%s: %d requests cancelled", error, len(connection.requests))
                self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        """Cancel what a connection that is gone had under way."""
        self._connections.pop(connection.identity, None)
        for engine_id in connection.requests.values():
            del self._live[engine_id]
            self._engine.abort(engine_id)
        connection.requests.clear()


def _request(message: Submit, engine_id: str) -> Request:
    """The request of a message under the engine's own id.

    Raises:
        RequestError: a parameter is unknown, or the structure is no pair.
    """
    unknown = message.params.keys() - SamplingParams.__dataclass_fields__.keys()
    if unknown:
        raise RequestError(f"{min(unknown):.80}", "is not a parameter of the engine")
    try:
        return replace(from_wire(message), id=engine_id)
    except (TypeError, ValueError) as error:
        raise RequestError("structure", f"cannot be read: {error!s:.200}") from error


def _rejected(name: str, field: str | None, error: str) -> Tokens:
    return Tokens(name, finish_reason="rejected", error=error, field=field)


def _logprobs(found: TokenLogprobs) -> Logprobs:
    return Logprobs(found.chosen, list(found.top))


def _id_within(frames: list[bytes]) -> str | None:
    """The id in a frame that is a request all the same, though not a good one."""
    try:
        found = _decode_any(frames[0]) if len(frames) == 1 else None
    except msgspec.MsgspecError:
        return None
    match found:
        case ["submit", str(name), *_]:
            return name
        case _:
            return None
