"""All answers of the chat site that this process computes, and how they begin and end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

from sqlalchemy import Connection

from dsv2.service.chats.params import kept_params
from dsv2.service.chats.run import LEASE_MS, SAVE_SECONDS, Run, Surroundings
from dsv2.service.inference.context import Inference
from dsv2.service.platform.office import Office
from dsv2.service.serving import Caller
from dsv2.service.store import chat_answers, chat_messages, chats
from dsv2.service.store.chat_messages import Attachment, Message
from dsv2.service.store.checks import new_id
from dsv2.service.store.errors import StoreError
from dsv2.service.web.errors import ApiError

log = logging.getLogger("dsv2.service")

MAX_READERS = 64
"""Pages of one user that read answers at a time."""
_CLOSING = 5.0
"""Seconds for answers that are interrupted to write that down."""

_STOPPING = 10.0
"""Seconds that somebody who stops an answer waits for its end to be written down."""


class Runs:
    """The answers under way. Made before the event loop, or in it.

    Args:
        office: store and clock.
        inference: models, limits and money.
        save_seconds: between two writings of a text that grows.
    """

    def __init__(
        self, office: Office, inference: Inference, *, save_seconds: float = SAVE_SECONDS
    ) -> None:
        self.office, self.inference = office, inference
        self._around = Surroundings(
            inference, office.writer, new_id("process"), office.clock, save_seconds
        )
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._readers: dict[str, int] = {}
        self._sweeping: asyncio.Task[None] | None = None
        self._is_stopping = False

    @property
    def open(self) -> int:
        """Answers under way."""
        return len(self._runs)

    async def start(self) -> None:
        """Let answers fail that a process which is no more has left, and go on doing so.

        Raises:
            StoreError: the database cannot be written.
        """
        await self._sweep()
        if not self.office.store.is_sqlite:
            self._sweeping = asyncio.create_task(self._sweep_often())

    async def stop(self) -> None:
        """Interrupt what is under way; nothing new begins."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            await asyncio.wait([self._sweeping])
        await self.interrupt()

    async def wait(self, seconds: float) -> bool:
        """Wait until nothing is under way; False if that takes longer."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        return not self._tasks

    async def interrupt(self) -> None:
        """End what is under way as interrupted, with the text that there is."""
        self._is_stopping = True
        for run in list(self._runs.values()):
            run.interrupt()
        if not await self.wait(_CLOSING):
            log.error("%d answers are cut off without a word", len(self._tasks))
            for task in self._tasks:
                task.cancel()
            await self.wait(_CLOSING)

    def find(self, message_id: str) -> Run | None:
        """The answer, if this process computes it."""
        return self._runs.get(message_id)

    def let_in(self, user_id: str) -> Callable[[], None]:
        """Count a page that reads an answer; what lets it go again.

        Raises:
            ApiError: 429: the user has too many.
        """
        open_now = self._readers.get(user_id, 0)
        if open_now >= MAX_READERS:
            raise ApiError(
                429, f"{MAX_READERS} pages are reading, which is the most", code="limit_reached",
                headers={"Retry-After": "1"},
            )  # fmt: skip
        self._readers[user_id] = open_now + 1

        def leave() -> None:
            self._readers[user_id] -= 1
            if not self._readers[user_id]:
                del self._readers[user_id]

        return leave

    async def ask(
        self, caller: Caller, conversation_id: str, *, parent_id: str | None, content: str,
        attachments: Sequence[Attachment],
    ) -> tuple[Message, Message]:  # fmt: skip
        """Add a message of the caller's and begin to answer it.

        Raises:
            ApiError: what the store refuses; 400 or 404 for parameters that are not allowed any
                more; 503 while the server stops.
        """
        await self._check(caller, conversation_id)

        def add(db: Connection) -> tuple[Message, Message]:
            return chat_messages.ask(
                db, caller.user_id, conversation_id, parent_id=parent_id, content=content,
                attachments=attachments, lease=self._around.lease(), now=self.office.clock(),
            )  # fmt: skip

        question, answer = await self.office.write(add)
        self._begin(caller, answer)
        return question, answer

    async def answer_again(self, caller: Caller, message_id: str) -> Message:
        """Begin another answer beside one; raises as :meth:`ask`."""
        await self._check(caller, await self._conversation_of(caller, message_id))

        def add(db: Connection) -> Message:
            return chat_messages.answer_again(
                db, caller.user_id, message_id, lease=self._around.lease(),
                now=self.office.clock(),
            )  # fmt: skip

        answer = await self.office.write(add)
        self._begin(caller, answer)
        return answer

    async def resume(self, caller: Caller, message_id: str) -> Message:
        """Let an answer go on where it ended; raises as :meth:`ask`."""
        await self._check(caller, await self._conversation_of(caller, message_id))

        def change(db: Connection) -> tuple[Message, str | None]:
            message = chat_messages.resume(
                db, caller.user_id, message_id, lease=self._around.lease(),
                now=self.office.clock(),
            )  # fmt: skip
            return message, chat_messages.tokens_of(db, caller.user_id, message_id)

        answer, tokens = await self.office.write(change)
        self._begin(caller, answer, tokens)
        return answer

    async def stop_answer(self, caller: Caller, message_id: str) -> Message:
        """End an answer, and return it with what there is of it; one that has ended stays so.

        Raises:
            ApiError: 404: there is no such message, or it is another's.
        """
        message = await self._get(caller, message_id)
        run = self.find(message_id)
        if run is not None:
            run.stop()
            with contextlib.suppress(TimeoutError):  # the store may be away: it ends later
                async with asyncio.timeout(_STOPPING):
                    while not run.text.is_closed:
                        await run.text.wait(_STOPPING)
            return run.message
        if message.status == "running":
            await self.office.write(lambda db: chat_answers.stop(db, caller.user_id, message_id))
        return await self._get(caller, message_id)

    async def delete_conversation(self, caller: Caller, conversation_id: str) -> None:
        """Delete a conversation, and end what is under way in it.

        Raises:
            ApiError: 404: there is none, or it is another's.
        """
        await self.office.write(
            lambda db: chats.delete_conversation(db, caller.user_id, conversation_id)
        )
        for run in list(self._runs.values()):
            if run.message.conversation_id == conversation_id:
                run.stop()

    async def _get(self, caller: Caller, message_id: str) -> Message:
        return await self.office.read(
            lambda db: chat_messages.get_message(db, caller.user_id, message_id)
        )

    async def _conversation_of(self, caller: Caller, message_id: str) -> str:
        return (await self._get(caller, message_id)).conversation_id

    async def _check(self, caller: Caller, conversation_id: str) -> None:
        if self._is_stopping:
            raise ApiError(
                503, "The server is stopping; try again later", code="server_is_stopping",
                headers={"Retry-After": "10"},
            )  # fmt: skip
        conversation = await self.office.read(
            lambda db: chats.get_conversation(db, caller.user_id, conversation_id)
        )
        kept_params(conversation.params, self.inference.models)

    def _begin(self, caller: Caller, answer: Message, tokens: str | None = None) -> None:
        run = Run(self._around, caller, answer, tokens)
        self._runs[answer.id] = run
        task = run.start()
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if self._runs.get(answer.id) is run:
                del self._runs[answer.id]
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("the end of answer %s is not written", answer.id, exc_info=error)
            run.text.close()

        task.add_done_callback(ended)

    async def _sweep(self) -> None:
        owner = self._around.owner
        lost = await self.office.writer.write(
            lambda db: chat_answers.interrupt_lost(db, now=self.office.clock(), spare=owner)
        )
        if lost:
            log.info("%d answers were interrupted by the end of their process", lost)

    async def _sweep_often(self) -> None:
        while True:
            await asyncio.sleep(LEASE_MS / 1000 / 3)
            with contextlib.suppress(StoreError):  # it will be tried again
                await self._sweep()


@asynccontextmanager
async def answering(runs: Runs) -> AsyncGenerator[None]:
    """The answers at work: for the application's lifespan, within the office's."""
    await runs.start()
    try:
        yield
    finally:
        await runs.stop()
