"""What the platform does beside its requests: keep reservations alive, and clear up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import anyio.to_thread
from sqlalchemy import Connection

from dsv2.service.platform.admission import LEASE, StoreAdmission
from dsv2.service.serving import Rates
from dsv2.service.store import idempotency, leases, users
from dsv2.service.store.errors import UnavailableError
from dsv2.service.store.prices import Usage
from dsv2.service.store.settings import load_settings

log = logging.getLogger("dsv2.service")


class Keeper:
    """Looks after an admission's reservations, from :meth:`start` to :meth:`stop`.

    Args:
        admission: of this process.
        renew_seconds: how often reservations are renewed, with what they have produced: what a
            crash can lose of a request.
        clear_seconds: how often is cleared up after dead processes, and old things are dropped.
    """

    def __init__(
        self, admission: StoreAdmission, *, renew_seconds: float = 5.0, clear_seconds: float = 60.0
    ) -> None:
        self.admission = admission
        self.renew_seconds, self.clear_seconds = renew_seconds, clear_seconds
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Read the settings, recover what dead processes have left, and begin.

        Raises:
            StoreError: the database cannot be used.
        """
        await self.renew()
        await self.clear()
        self._tasks = [
            asyncio.create_task(self._again(self.renew, self.renew_seconds)),
            asyncio.create_task(self._again(self.clear, self.clear_seconds)),
        ]

    async def stop(self) -> None:
        """End what is open, and the keeper."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        await self.admission.drain()
        await self.admission.end_again()

    async def renew(self) -> None:
        """Renew this process's reservations, and read the limits of accounts."""
        admission = self.admission
        await admission.end_again()
        produced = admission.produced()
        expires_at = admission.clock() + LEASE
        if produced:
            await admission.writer.write(_renewal(admission.owner, produced, expires_at))
        settings = await anyio.to_thread.run_sync(self._settings)
        admission.account_rates = Rates(
            settings.requests_per_minute, settings.tokens_per_minute, settings.max_concurrent
        )

    async def clear(self) -> None:
        """End what dead processes have left, deliver the outbox, drop what is over."""
        admission = self.admission
        admission.limiter.forget_idle()
        await anyio.to_thread.run_sync(self._recover)
        now = admission.clock()
        await admission.writer.write(lambda db: users.drop_old_sessions(db, now=now))
        await admission.writer.write(lambda db: idempotency.forget_answers(db, now=now))

    def _settings(self) -> Any:
        with self.admission.writer.store.read() as db:
            return load_settings(db)

    def _recover(self) -> None:
        admission = self.admission
        store = admission.writer.store
        # First: the outbox knows more of a request than was written down last.
        delivered = admission.outbox.deliver(store)
        now, known = admission.clock(), admission.produced()
        ended = leases.recover(store, now=now, spare=admission.owner)
        ended += leases.release_strays(
            store, admission.owner, known, made_before=now - LEASE, now=now
        )
        if delivered or ended:
            log.info("settled late: %d from the outbox, %d left behind", len(delivered), len(ended))

    async def _again(self, work: Callable[[], Coroutine[Any, Any, None]], seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except UnavailableError as error:
                log.warning("%s; it will be tried again", error)
            except Exception as error:
                log.error("the keeper failed; it goes on", exc_info=error)


def _renewal(
    owner: str, produced: Mapping[str, Usage], expires_at: int
) -> Callable[[Connection], frozenset[str]]:
    return lambda db: leases.renew(db, owner, produced, expires_at=expires_at)
