"""The API process's side of the replicas of one model."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import msgspec

from dsv2.engine.request import Limits, OverloadedError, Request, RequestError
from dsv2.service.replicas.messages import (
    Beat,
    Description,
    Lost,
    Taken,
    decode_beat,
    decode_description,
    decode_from_replica,
)
from dsv2.service.serving import Canceller, EngineGoneError, Sink
from dsv2.service.worker.streams import pump
from dsv2.service.worker.wire import Stats, Tokens, encode, to_wire
from dsv2.tokenizer import Tokenizer
from dsv2.tokenizer.bpe import FILES

log = logging.getLogger("dsv2.service.replicas")

_TICK = 0.5
"""Seconds between two looks at the board."""
_SILENT = 5.0
"""Seconds without an answer of the board after which nothing is known of the replicas."""
_MOST_TAKEN = 2
"""Replicas that may be lost over one request: a request that kills them kills no more."""
_RETRY_SECONDS = 10.0
"""For a request that no replica has taken, because Ray still knows one that is gone."""
_TOTALS = ("preemptions", "prompt_tokens", "cached_tokens", "generated_tokens", "steps",
           "step_seconds")  # fmt: skip


class RayEngine:
    """The replicas as one engine; see :class:`dsv2.service.serving.Engine`.

    A request whose replica is lost before the first token goes to another one, once; later it ends
    with an :class:`EngineGoneError`.

    Args:
        handle: of the deployment.
        board: that its replicas tell.
    """

    def __init__(self, handle: Any, board: Any) -> None:
        self._handle, self._board = handle, board
        self._streaming = handle.options(stream=True, method_name="generate")
        self._known: Description | None = None
        self._beats: dict[str, Beat] = {}
        self._past = Stats()
        self._heard = 0.0
        self._is_closed = False
        self._open: set[asyncio.Task[Any]] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Learn what the replicas run, and follow them.

        Raises:
            EngineGoneError: no replica tells.
        """
        from ray.exceptions import RayError

        try:
            self._known = decode_description(await self._handle.describe.remote())
        except (RayError, msgspec.MsgspecError) as error:
            raise EngineGoneError(f"no replica tells what it runs: {error!s:.500}") from error
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Take no more requests; open streams end with an :class:`EngineGoneError`."""
        self._is_closed = True
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def tokenizer_files(self) -> dict[str, bytes]:
        """Of the replicas' tokenizer, by name."""
        return self._description.files

    @property
    def limits(self) -> Limits:
        """What a replica can take."""
        known = self._description.welcome
        return Limits(known.vocab_size, known.max_context, known.max_logprobs)

    @property
    def description(self) -> str:
        """What each replica runs, for people."""
        return f"{self._description.welcome.description}, replicas of Ray"

    @property
    def _description(self) -> Description:
        if self._known is None:
            raise EngineGoneError("the replicas are not up yet")
        return self._known

    @property
    def replicas(self) -> tuple[Beat, ...]:
        """The last beats of those that live."""
        return tuple(self._beats.values()) if self._is_heard else ()

    @property
    def _is_heard(self) -> bool:
        return time.monotonic() - self._heard <= _SILENT

    @property
    def is_healthy(self) -> bool:
        """Whether a replica's engine is healthy."""
        return not self._is_closed and any(beat.is_healthy for beat in self.replicas)

    @property
    def stats(self) -> Stats:
        """Of all replicas together; totals hold those of replicas that are gone."""
        return _sum([self._past, *(beat.stats for beat in self._beats.values())])

    def submit(self, request: Request, sink: Sink) -> Canceller:
        """As :meth:`dsv2.service.serving.Engine.submit`."""
        task = pump(self._outputs(request), sink)
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)
        return task.cancel

    async def _outputs(self, request: Request) -> AsyncGenerator[Tokens, None]:
        frame = _frame(request)
        taken, deadline = 0, time.monotonic() + _RETRY_SECONDS
        while True:
            call = _Call(self, self._streaming.remote(frame))
            has_begun = False
            try:
                while (item := await call.next()) is not None:
                    if item.finish_reason == "rejected":
                        raise _refusal(item)
                    has_begun = True
                    yield item
                    if item.finish_reason is not None:
                        call.has_ended = True
                        return
            finally:
                call.close()
            taken += call.was_taken
            is_late = not call.was_taken and time.monotonic() > deadline
            if has_begun or self._is_closed or taken >= _MOST_TAKEN or is_late:
                raise EngineGoneError(call.reason)
            log.warning("a request goes to another replica: %s", call.reason)
            await asyncio.sleep(0.1)

    async def _follow(self) -> None:
        while True:
            try:
                frames = await asyncio.wait_for(_answer(self._board.read.remote()), 2.0)
                beats = {beat.replica: beat for beat in map(decode_beat, frames)}
            except Exception as error:  # Ray's own are many; what counts is that nothing is heard
                log.warning("the replicas' board does not answer: %s", type(error).__name__)
            else:
                gone = [self._beats[name].stats for name in self._beats.keys() - beats.keys()]
                self._past = _only_totals(_sum([self._past, *gone]))
                self._beats, self._heard = beats, time.monotonic()
            await asyncio.sleep(_TICK)


class _Call:
    """One attempt at a request."""

    def __init__(self, engine: RayEngine, response: Any) -> None:
        self._engine, self._response = engine, response
        self.was_taken = self.has_ended = False
        self.reason = ""

    async def next(self) -> Tokens | None:
        """The next output; None when the replica is lost, with the ``reason``.

        Raises:
            OverloadedError: the line is full.
        """
        from ray.exceptions import RayError
        from ray.serve.exceptions import BackPressureError, RayServeException

        while True:
            try:
                message = decode_from_replica(await self._take())
            except BackPressureError as error:
                raise OverloadedError("the line is full; try again later") from error
            except StopAsyncIteration:
                self.lose("the replica has ended an answer without a word")
                return None
            except (RayError, RayServeException, msgspec.MsgspecError) as error:
                self.lose(f"the replica is lost ({type(error).__name__})")
                return None
            if isinstance(message, Taken):
                self.was_taken = True
            elif isinstance(message, Lost):
                self.lose(message.reason)
                return None
            elif message.outputs:
                return message.outputs[0]

    async def _take(self) -> bytes:
        """The next frame, unless the engine is closed meanwhile."""
        if self._engine._is_closed:
            raise EngineGoneError("the server is stopping")
        task: asyncio.Task[bytes] = asyncio.ensure_future(_next(self._response))
        self._engine._open.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if self._engine._is_closed and task.cancelled():
                raise EngineGoneError("the server is stopping") from None
            raise
        finally:
            task.cancel()
            self._engine._open.discard(task)

    def lose(self, reason: str) -> None:
        """There is no more to come, and why."""
        self.has_ended, self.reason = True, reason

    def close(self) -> None:
        """Cancel the request at the replica if it is still under way."""
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        if not self.has_ended:
            # One that Ray has refused or lost by itself raises that here once more.
            with suppress(RayError, RayServeException):
                self._response.cancel()


def tokenizer_of(files: dict[str, bytes]) -> Tokenizer:
    """The tokenizer of replicas, which may run where this machine's files are not.

    Raises:
        TokenizerError: a file is malformed.
    """
    with tempfile.TemporaryDirectory(prefix="dsv2-") as folder:
        for name in FILES:
            if name in files:
                (Path(folder) / name).write_bytes(files[name])
        return Tokenizer.from_folder(Path(folder))


def _frame(request: Request) -> bytes:
    """A request as it is sent; the replica's own client checks its size.

    Raises:
        RequestError: it cannot be sent at all.
    """
    try:
        return encode(to_wire(request))
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError("request", f"cannot be sent: {error!s:.200}") from error


def _refusal(item: Tokens) -> RequestError | OverloadedError:
    if item.field is None:
        return OverloadedError(item.error or "the replica is full; try again later")
    return RequestError(item.field, item.error or "is not allowed")


async def _answer(waits: Any) -> Any:
    return await waits


async def _next(response: Any) -> bytes:
    return cast(bytes, await anext(response))


def _sum(all_stats: list[Stats]) -> Stats:
    names = Stats.__struct_fields__
    return Stats(**{name: sum(getattr(one, name) for one in all_stats) for name in names})


def _only_totals(stats: Stats) -> Stats:
    return Stats(**{name: getattr(stats, name) for name in _TOTALS})
