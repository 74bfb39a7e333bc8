"""One answer of the chat site under way: a task of the server's own, whoever reads along.

It is computed and paid for as a request of ``/v1`` is. Its text is written down every second and at
its end; how it ends is in the store before anybody is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from dsv2.service.chats.params import TOP_LOGPROBS, chat_body, find_model, kept_params
from dsv2.service.chats.text import GrowingText, token_shape
from dsv2.service.inference.chat_job import chat_job
from dsv2.service.inference.context import Inference, Job
from dsv2.service.inference.failures import as_api_error, queue_timeout
from dsv2.service.inference.generation import Generation, Piece
from dsv2.service.inference.logprobs import chat_entries
from dsv2.service.platform.store_errors import api_error_of
from dsv2.service.platform.writer import Work, Writer
from dsv2.service.serving import Caller, Finish, Ticket
from dsv2.service.store import chat_answers, chat_messages, chats
from dsv2.service.store.chat_answers import Outcome, Progress
from dsv2.service.store.chat_messages import INTERRUPTED, AnswerUsage, Failure, Lease, Message
from dsv2.service.store.chats import Conversation
from dsv2.service.store.errors import StoreError
from dsv2.service.web.errors import ApiError
from dsv2.tokenizer import Tokenizer

log = logging.getLogger("dsv2.service")

SAVE_SECONDS = 0.8
"""Between two writings of a text that grows."""
LEASE_MS = 30_000
"""How long an answer outlives the last word of its process."""
RENEW_SECONDS = LEASE_MS / 1000 / 3
STOPPED = Outcome("stopped")
LOST = Outcome("failed", Failure(*INTERRUPTED))


@dataclass(frozen=True)
class Surroundings:
    """What all answers of a process have in common.

    Attributes:
        inference: models, limits, money.
        writer: to the store.
        owner: this process's name in the store.
        clock: milliseconds since 1970.
        save_seconds: between two writings.
    """

    inference: Inference
    writer: Writer
    owner: str
    clock: Callable[[], int]
    save_seconds: float = SAVE_SECONDS

    def lease(self) -> Lease:
        """For an answer that is renewed now."""
        return Lease(self.owner, self.clock() + LEASE_MS)


class Run:
    """An answer under way. Made in the event loop, and begun by :meth:`start`.

    Args:
        around: what it works with.
        caller: who asked.
        message: the answer, which may have begun.
        tokens: that were kept of what there is, as JSON, or None.

    Attributes:
        message: the answer; its content, status and usage are those of its beginning until it has
            ended.
        text: that grows.
    """

    def __init__(
        self, around: Surroundings, caller: Caller, message: Message, tokens: str | None = None
    ) -> None:
        self.message, self.text = message, GrowingText(message.content)
        self._around, self._caller = around, caller
        self._begun_with = message.usage or AnswerUsage()
        self._kept: list[dict[str, Any]] | None = json.loads(tokens) if tokens else None
        self._usage = AnswerUsage()
        self._model: str | None = message.model
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.time()
        self._first: float | None = None
        self._last = 0.0
        self._changes = self._written = 0
        self._why = LOST
        self._gives_up = asyncio.Event()
        self._is_ours = True
        self._answering: asyncio.Task[Outcome] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin; the task ends when the answer's end is written down."""
        return asyncio.create_task(self._run())

    @property
    def tokens(self) -> str | None:
        """The tokens so far as JSON, where they are kept."""
        return None if self._kept is None else json.dumps(self._kept, ensure_ascii=False)

    def stop(self) -> None:
        """End it; what there is stays."""
        self._end(STOPPED)

    def interrupt(self) -> None:
        """End it because the server does; if its end cannot be written now, it is not."""
        self._gives_up.set()
        self._end(LOST)

    def _end(self, why: Outcome) -> None:
        if self._answering is not None and not self._answering.done():
            self._why = why
            self._answering.cancel()
        elif self._answering is None:
            self._why = why

    async def _run(self) -> None:
        if self._why is not LOST or self._gives_up.is_set():
            outcome = self._why  # it was stopped before it began
        else:
            self._answering = asyncio.create_task(self._answer())
            saving = asyncio.create_task(self._save_often())
            try:
                outcome = await self._ended(self._answering)
            finally:
                self._answering.cancel()
                saving.cancel()
                await asyncio.wait([saving])
        await self._finish(outcome)
        usage = self._progress().usage
        self.message = replace(
            self.message, content=self.text.whole, status=outcome.status, finish=outcome.finish,
            failure=outcome.failure, model=self._model,
            usage=None if usage == AnswerUsage() else usage,
        )  # fmt: skip
        if not self._is_ours:
            with contextlib.suppress(StoreError):  # it was deleted, or cannot be had now
                self.message = await asyncio.to_thread(self._stored)
        self.text.close()

    def _stored(self) -> Message:
        """The answer as somebody else has ended it."""
        with self._around.writer.store.read() as db:
            return chat_messages.get_message(db, self._caller.user_id, self.message.id)

    async def _ended(self, answering: asyncio.Task[Outcome]) -> Outcome:
        await asyncio.wait([answering])
        if answering.cancelled():
            return self._why
        error = answering.exception()
        if error is None:
            return answering.result()
        if isinstance(error, StoreError):
            error = api_error_of(error)
        assert isinstance(error, Exception)
        return Outcome("failed", failure_of(as_api_error(error, prompt="messages", names={})))

    async def _answer(self) -> Outcome:
        inference = self._around.inference
        conversation, path = await asyncio.to_thread(self._read)
        params = kept_params(conversation.params, inference.models)
        model = find_model(inference.models, params.model)
        self._model = model.name
        if not params.logprobs or (self.message.content and self._kept is None):
            self._kept = None  # a part of the tokens would be worth nothing
        else:
            self._kept = self._kept or []
        top = TOP_LOGPROBS if params.logprobs else None
        body = chat_body(conversation, path, params, model)
        job = await chat_job(uuid4().hex, model, body, None, top_logprobs=top)
        try:
            return await self._compute(job, model.tokenizer)
        except Exception as error:
            raise as_api_error(error, prompt=job.prompt_name, names=job.names) from error

    def _read(self) -> tuple[Conversation, list[Message]]:
        user_id, message = self._caller.user_id, self.message
        with self._around.writer.store.read() as db:
            return (
                chats.get_conversation(db, user_id, message.conversation_id),
                chat_messages.path_to(db, user_id, message.id),
            )

    async def _compute(self, job: Job, tokenizer: Tokenizer) -> Outcome:
        inference = self._around.inference
        choices = inference.choices_of(job, self._caller)
        ticket: Ticket = await inference.admit(job, self._caller)
        finish: Finish = "cancelled"
        try:
            generation = Generation(job.model.engine, choices, ticket)
            try:
                with inference.pace.stream():
                    await self._follow(generation, job, tokenizer)
                finish = generation.finish
            except Exception:
                finish = "error"
                raise
            finally:
                generation.close()
                if inference.watch is not None and self._first is not None:
                    tokens, spent = generation.usage.completion_tokens, self._last - self._first
                    inference.watch.answered(job.model.name, finish, tokens, spent)
        finally:
            await ticket.close(finish)
        return Outcome("complete", None, finish)

    async def _follow(self, generation: Generation, job: Job, tokenizer: Tokenizer) -> None:
        inference = self._around.inference
        patience = inference.patience.in_line
        while not generation.is_over:
            if generation.has_begun:
                pieces = await generation.next()
            else:
                try:
                    async with asyncio.timeout_at(self._begun + patience):
                        pieces = await generation.next()
                except TimeoutError as error:
                    raise queue_timeout(patience) from error
            for piece in pieces:
                self._take(piece, tokenizer)
            if pieces:
                usage = generation.usage
                prompt, cached = usage.prompt_tokens, usage.prompt_cache_hit_tokens
                self._usage = AnswerUsage(
                    prompt, min(cached, prompt), usage.completion_tokens,
                    self._timed(job.model.name),
                )  # fmt: skip
                generation.hold(inference.pace.next(generation.now, is_stream=True))

    def _timed(self, model: str) -> int:
        """Milliseconds since the first token, which this may be."""
        self._last = self._loop.time()
        if self._first is None:
            self._first = self._last
            if self._around.inference.watch is not None:
                self._around.inference.watch.first_token(model, self._first - self._begun)
        return round((self._last - self._first) * 1000)

    def _take(self, piece: Piece, tokenizer: Tokenizer) -> None:
        self._changes += 1
        tokens = None
        if self._kept is not None:
            entries = chat_entries(tokenizer, piece.tokens, piece.logprobs, TOP_LOGPROBS)
            tokens = [token_shape(entry) for entry in entries]
            self._kept += tokens
        # No database keeps a NUL in a text, and no page shows one.
        self.text.add(piece.words.replace("\0", "\ufffd"), tokens, count=len(piece.tokens))

    def _progress(self) -> Progress:
        return Progress(self.text.whole, self._begun_with + self._usage, self._model, self.tokens)

    async def _save_often(self) -> None:
        around = self._around
        renewed = self._loop.time()
        while True:
            await asyncio.sleep(around.save_seconds)
            changes, now = self._changes, self._loop.time()
            if changes == self._written and now - renewed < RENEW_SECONDS:
                continue
            try:
                kept = await around.writer.write(self._saving(self._progress(), around.lease()))
            except Exception as error:  # nothing may end the saving but the answer's end
                log.warning("answer %s is not written down yet: %s", self.message.id, error)
                continue
            renewed, self._written = now, changes
            if not kept:
                self._is_ours = False
                self.stop()
                return

    def _saving(self, progress: Progress, lease: Lease) -> Work[bool]:
        return lambda db: chat_answers.save(db, self.message.id, lease, progress)

    async def _finish(self, outcome: Outcome) -> None:
        """Write the end down, however long the store takes, unless the server is stopping."""
        progress, message = self._progress(), self.message
        grown = len(progress.content.encode()) - len(message.content.encode())
        while self._is_ours:
            try:
                await self._around.writer.write(
                    lambda db: chat_answers.finish(
                        db, message.id, self._around.owner, progress, outcome, grown
                    )
                )
                return
            except StoreError as error:
                log.warning("the end of answer %s is not written yet: %s", message.id, error)
                if self._gives_up.is_set():
                    return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._gives_up.wait()


_BY_STATUS = {402: "no_money", 429: "rate_limited"}
_BY_CODE = {
    "context_length_exceeded": "context_length", "engine_unavailable": "engine_lost",
    "overloaded": "overloaded", "queue_timeout": "overloaded",
}  # fmt: skip
FAILURES = frozenset({*_BY_STATUS.values(), *_BY_CODE.values(), "failed", INTERRUPTED[0]})
"""The site's words for why an answer has failed."""


def failure_of(error: ApiError) -> Failure:
    """Why an answer has failed, in the site's words for it."""
    code = _BY_CODE.get(error.code or "") or _BY_STATUS.get(error.status, "failed")
    return Failure(code, str(error)[:1000])
