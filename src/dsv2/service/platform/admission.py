"""Limits and money before any work, and what it cost afterwards.

A request passes the limits of its key and its account, then money is held for the most it can
cost. It ends once, with ``close``: charged for what was noted, or released if nothing was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import anyio.to_thread
from sqlalchemy import Connection

from dsv2.service.platform.idempotent import AnsweredError, Attempt, streamed_before
from dsv2.service.platform.rates import Limiter, Passage
from dsv2.service.platform.store_errors import api_error_of, unauthorized
from dsv2.service.platform.writer import Writer
from dsv2.service.serving import Caller, Finish, Rates
from dsv2.service.store import reservations
from dsv2.service.store.checks import SECOND, new_id, now_ms
from dsv2.service.store.errors import (
    NotFoundError,
    StoreError,
    SuspendedError,
    UnavailableError,
)
from dsv2.service.store.idempotency import Answer, Kept, keep
from dsv2.service.store.outbox import Outbox
from dsv2.service.store.prices import Usage
from dsv2.service.store.reservations import Ask
from dsv2.service.web.errors import ApiError

log = logging.getLogger("dsv2.service")

LEASE = 60 * SECOND
"""How long a reservation outlives the last word of its process."""


@dataclass(frozen=True)
class _Ending:
    """What is to be settled, and the answer to be kept with it."""

    request_id: str
    usage: Usage
    finish: Finish
    now: int
    kept: Kept | None = None

    def write(self, db: Connection) -> None:
        if self.usage == Usage():
            reservations.release(db, self.request_id, finish=self.finish, now=self.now)
        else:
            reservations.settle(db, self.request_id, self.usage, finish=self.finish, now=self.now)
        if self.kept is not None:
            keep(db, self.request_id, self.kept)

    def wait_in(self, outbox: Outbox) -> None:
        outbox.put(self.request_id, self.usage, finish=self.finish, now=self.now, kept=self.kept)


class StoreTicket:
    """A request that was let in; see :class:`dsv2.service.serving.Ticket`."""

    def __init__(
        self, admission: StoreAdmission, ask: Ask, passage: Passage, attempt: Attempt | None = None
    ) -> None:
        self.request_id = ask.id
        self.headers: Mapping[str, str] = MappingProxyType(dict(passage.headers))
        self._admission, self._passage = admission, passage
        self._ask, self._attempt = ask, attempt
        self._answer: Answer | None = None
        self._usage = (0, 0, 0)
        self._closing: asyncio.Task[None] | None = None

    @property
    def usage(self) -> Usage:
        """What was noted last."""
        prompt, cached, completion = self._usage
        return Usage(prompt, min(cached, prompt), completion)

    def note(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> None:
        """What has been produced so far, in total. After ``close`` it says nothing any more."""
        self._usage = (prompt_tokens, cached_tokens, completion_tokens)

    def keep(self, status: int, content_type: str, body: bytes) -> None:
        """The answer that the client is about to get, to be had again by its idempotency key.

        Before ``close``, which writes it down; without a key it does nothing.
        """
        self._answer = Answer(status, content_type, body)

    async def close(self, finish: Finish) -> None:
        """Charge what was noted, once, and give the rest back.

        Where the database does not take it, the outbox keeps it; where that cannot be written
        either, this process tries again, and if it dies, the next one settles what was written
        down last.
        """
        if self._closing is None:
            usage = self.usage
            self._admission.limiter.leave(
                self._passage, usage.prompt_tokens + usage.completion_tokens
            )
            answer, attempt = self._answer, self._attempt
            if answer is None and attempt is not None and attempt.is_streamed and usage != Usage():
                answer = streamed_before()
            kept = None
            if attempt is not None and answer is not None:
                kept = Kept(self._ask.account_id, attempt.key, answer)
            ending = _Ending(self.request_id, usage, finish, self._admission.clock(), kept)
            self._closing = asyncio.create_task(self._admission.end(ending))
        await asyncio.shield(self._closing)


class StoreAdmission:
    """Admission by the store; see :class:`dsv2.service.serving.Admission`.

    Args:
        writer: to the store.
        outbox: for settlements that the database does not take.
        clock: milliseconds since 1970.
        limiter: of this process.

    Attributes:
        owner: this process's name in the store, another one after each start.
        account_rates: limits of every account, which the keeper reads again and again.
        open: tickets by request.
        unsettled: requests that have ended, and neither database nor outbox took it.
    """

    def __init__(
        self,
        writer: Writer,
        outbox: Outbox,
        *,
        clock: Callable[[], int] = now_ms,
        limiter: Limiter | None = None,
    ) -> None:
        self.writer, self.outbox, self.clock = writer, outbox, clock
        self.limiter = limiter or Limiter()
        self.owner = new_id("process")
        self.account_rates = Rates()
        self.open: dict[str, StoreTicket] = {}
        self.unsettled: dict[str, _Ending] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def admit(
        self,
        caller: Caller,
        *,
        request_id: str,
        model: str,
        prompt_tokens: int,
        completion_tokens: int,
        attempt: Attempt | None = None,
    ) -> StoreTicket:
        """Let a request in, or say why not; see :class:`dsv2.service.serving.Admission`.

        With an ``attempt``, its idempotency key is claimed with the money.

        Raises:
            AnsweredError: the same request was answered before.
        """
        if not caller.may_use(model):
            raise ApiError(
                403, f"The API key is not for the model {model!r:.200}", param="model",
                code="model_not_allowed",
            )  # fmt: skip
        limits = {caller.account_id: self.account_rates}
        if caller.key_id is not None:
            limits[caller.key_id] = caller.rates
        passage = self.limiter.enter(limits, prompt_tokens + completion_tokens)
        ask = Ask(
            request_id, caller.account_id, caller.key_id, model, prompt_tokens, completion_tokens
        )
        try:
            answer = await self._reserve(ask, attempt)
            if answer is not None:
                raise AnsweredError(answer)
        except BaseException as error:
            self.limiter.undo(passage)
            if isinstance(error, StoreError):
                raise _refusal(error) from error
            raise
        ticket = StoreTicket(self, ask, passage, attempt)
        self.open[request_id] = ticket
        return ticket

    async def _reserve(self, ask: Ask, attempt: Attempt | None) -> Answer | None:
        def reserve(db: Connection) -> Answer | None:
            now = self.clock()
            if attempt is not None:
                answer = attempt.claim(db, ask.account_id, ask.id, now)
                if answer is not None:
                    return answer
            reservations.reserve(db, ask, owner=self.owner, now=now, expires_at=now + LEASE)
            return None

        reserving = asyncio.ensure_future(self.writer.write(reserve))
        try:
            return await asyncio.shield(reserving)
        except asyncio.CancelledError:
            # It may be held all the same, and nobody would ever close it.
            self._in_background(self._give_up(reserving, ask.id))
            raise

    async def _give_up(self, reserving: asyncio.Future[Any], request_id: str) -> None:
        await asyncio.wait([reserving])
        if reserving.exception() is None and reserving.result() is None:
            await self.end(_Ending(request_id, Usage(), "disconnect", self.clock()))

    async def end(self, ending: _Ending) -> None:
        """Settle a request for its tokens, or release it if there are none. Never raises."""
        await self._end(ending)
        self.open.pop(ending.request_id, None)

    async def end_again(self) -> None:
        """Try once more what neither the database nor the outbox took."""
        for request_id in list(self.unsettled):
            await self._end(self.unsettled.pop(request_id))

    async def _end(self, ending: _Ending) -> None:
        number = ending.request_id
        try:
            try:
                await self.writer.write(ending.write)
            except UnavailableError:
                await anyio.to_thread.run_sync(lambda: ending.wait_in(self.outbox))
        except NotFoundError:
            # As after a restore of an older backup: nobody holds money for it any more.
            log.error("the store does not know request %s, which has ended", number)
        except Exception as error:
            self.unsettled[number] = ending
            log.error("request %s is not settled yet", number, exc_info=error)

    def produced(self) -> dict[str, Usage]:
        """Tokens of all requests that the store may still take for open."""
        ended = {number: ending.usage for number, ending in self.unsettled.items()}
        return ended | {number: ticket.usage for number, ticket in self.open.items()}

    async def drain(self) -> None:
        """Close what is open, as cut off, and wait for what is being ended."""
        for ticket in list(self.open.values()):
            await ticket.close("shutdown")
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _refusal(error: StoreError) -> ApiError:
    if isinstance(error, SuspendedError):
        # The key or its user has ended since the request was identified.
        return unauthorized()
    if isinstance(error, NotFoundError):
        if error.kind.startswith("price"):
            return ApiError(503, f"The model has no price yet: {error}", code="model_not_priced")
        return unauthorized()
    return api_error_of(error)
