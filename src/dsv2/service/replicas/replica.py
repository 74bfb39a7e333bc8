"""A replica: runs in a process of Ray's, with the engine process as its child."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec

from dsv2.checkpoint import resolve
from dsv2.engine.request import OverloadedError, RequestError
from dsv2.service.replicas.board import NAMESPACE
from dsv2.service.replicas.messages import Beat, Description, Lost, Taken
from dsv2.service.serving import EngineGoneError
from dsv2.service.worker.client import EngineClient
from dsv2.service.worker.process import EXIT_BROKEN, WorkerOptions
from dsv2.service.worker.streams import outputs_of
from dsv2.service.worker.supervisor import Patience, Supervisor
from dsv2.service.worker.wire import Batch, Submit, Tokens, Welcome, encode, from_wire, refusing
from dsv2.tokenizer import Tokenizer

log = logging.getLogger("dsv2.service.replicas")

_BEAT_SECONDS = 0.5

_decode_submit = refusing(msgspec.msgpack.Decoder(Submit).decode)


class EngineReplica:
    """Lives and dies with its engine process: Ray puts another one in its place.

    Args:
        options: :class:`WorkerOptions` as JSON; the folder of the sockets is the replica's own.
        start_seconds: longest that loading may take.
        hang_seconds: a step that takes longer is a hang.
        board: name of the board.

    Raises:
        RuntimeError: the engine process cannot start; the message says why.
    """

    async def __init__(  # type: ignore[misc]
        self, options: bytes, start_seconds: float, hang_seconds: float, board: str
    ) -> None:
        self._board, self._name = board, secrets.token_hex(8)
        self._folder = tempfile.TemporaryDirectory(prefix="dsv2-")
        given = msgspec.json.decode(options, type=WorkerOptions)
        self._options = msgspec.structs.replace(given, folder=self._folder.name, name="engine")
        self._is_up, self._numbered = False, 0
        self._supervisor = Supervisor(
            self._options,
            patience=Patience(ready=start_seconds, hang=hang_seconds, restarts=0),
            on_failed=self._failed,
        )
        self._client = EngineClient(self._folder.name, "engine", hang_after=hang_seconds)
        await self._supervisor.start()
        await self._client.start()
        await self._supervisor.wait_ready()
        await self._client.wait_ready(30.0)
        self._is_up = True
        self._beating = asyncio.create_task(self._beat())

    def _failed(self, reason: str) -> None:
        if self._is_up:
            log.error("the replica ends with its engine: %s", reason)
            os._exit(EXIT_BROKEN)

    def check_health(self) -> None:
        """Ray asks now and then.

        Raises:
            EngineGoneError: the engine is not there.
        """
        if not self._client.is_healthy:
            raise EngineGoneError("the engine is not healthy")

    async def describe(self) -> bytes:
        """A :class:`Description`."""
        limits = self._client.limits
        welcome = Welcome(
            self._client.description, limits.vocab_size, limits.max_context, limits.max_logprobs,
            os.getpid(),
        )  # fmt: skip
        folder = await asyncio.to_thread(resolve, self._options.model)
        tokenizer = await asyncio.to_thread(Tokenizer.from_folder, folder)
        return encode(Description(welcome, tokenizer.files()))

    async def generate(self, frame: bytes) -> AsyncGenerator[bytes, None]:
        """Take a :class:`dsv2.service.worker.wire.Submit` and yield frames of ``FromReplica``."""
        yield encode(Taken(self._name, os.getpid()))
        try:
            submit = _decode_submit(frame)
            request = from_wire(submit)
        except (msgspec.MsgspecError, TypeError, ValueError) as error:
            yield encode(Batch([_rejected("", "request", f"cannot be read: {error!s:.200}")]))
            return
        self._numbered += 1
        try:
            # An attempt that is being cancelled may still hold the request's own id.
            own = replace(request, id=str(self._numbered))
            async with aclosing(outputs_of(self._client, own)) as outputs:
                async for item in outputs:
                    yield encode(Batch([msgspec.structs.replace(item, id=request.id)]))
        except RequestError as error:
            text = str(error).removeprefix(f"{error.field} ")
            yield encode(Batch([_rejected(request.id, error.field, text)]))
        except OverloadedError as error:
            yield encode(Batch([_rejected(request.id, None, str(error))]))
        except EngineGoneError as error:
            yield encode(Lost(str(error)))

    async def _beat(self) -> None:
        """Tell the board, also the next one after a board that is gone."""
        import ray

        board: Any = None
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            client = self._client
            beat = Beat(self._name, os.getpid(), client.is_healthy, client.stats)
            try:
                if board is None:
                    board = await asyncio.to_thread(ray.get_actor, self._board, NAMESPACE)
                await asyncio.wait_for(board.tell.remote(self._name, encode(beat)), 2.0)
            except Exception:  # whatever Ray says: there may be another board soon
                board = None


def _rejected(name: str, field: str | None, error: str) -> Tokens:
    return Tokens(name, finish_reason="rejected", error=error, field=field)
