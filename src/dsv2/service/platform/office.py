"""The platform as its routes see it: one object that holds what they work with."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from dsv2.service.platform.admission import StoreAdmission
from dsv2.service.platform.folders import data_folder
from dsv2.service.platform.identify import SessionCookie, StoreIdentify, add_guest
from dsv2.service.platform.keeper import Keeper
from dsv2.service.platform.rates import Throttle
from dsv2.service.platform.store_errors import translated
from dsv2.service.platform.writer import Work, Writer
from dsv2.service.serving import Admission
from dsv2.service.store import Store, prices
from dsv2.service.store.audit import SYSTEM
from dsv2.service.store.checks import now_ms
from dsv2.service.store.errors import NotFoundError
from dsv2.service.store.outbox import Outbox

T = TypeVar("T")

QUARTER = 15 * 60.0
HOUR = 60 * 60.0
PRICE = {"input": 140_000, "cached_input": 14_000, "output": 280_000}
"""DeepSeek's own for V2, in micro-units for a million tokens: $0.14, $0.014 and $0.28."""


class Office:
    """Everything the platform's routes need. Made before the event loop, or in it.

    Args:
        store: the database, with its tables.
        folder: for the outbox and for exports; None for the user's data folder.
        secure: whether browsers reach the server by TLS.
        guest: whether somebody on this machine needs no key; only for a server that listens to
            nobody else: the caller sees to that.
        clock: milliseconds since 1970.

    Attributes:
        identify: for :func:`dsv2.service.web.app.create_app`.
        admission: for the routes of models.
        keeper: to be started and stopped with the application; :func:`running` does.
        log_ins: failed log-ins by account and address, ten in a quarter of an hour.
        log_ins_of_address: failed log-ins by address alone.
        log_ins_of_account: failed log-ins by account alone, far above what its owner needs.
        sign_ups: by address, ten in an hour.
        slow: lets through two threads at a time, for passwords.
    """

    def __init__(
        self,
        store: Store,
        *,
        folder: Path | None = None,
        secure: bool = False,
        guest: bool = False,
        clock: Callable[[], int] = now_ms,
    ) -> None:
        self.store, self.clock = store, clock
        self.folder = folder or data_folder()
        self.writer = Writer(store)
        self.outbox = Outbox(self.folder / "outbox")
        self.cookie = SessionCookie(secure)
        self.guest_id = add_guest(store, now=clock()) if guest else None
        self.identify = StoreIdentify(store, self.cookie, self.guest_id, clock)
        admission = StoreAdmission(self.writer, self.outbox, clock=clock)
        self.admission: Admission = admission
        self.keeper = Keeper(admission)
        self.log_ins = Throttle(10, QUARTER)
        self.log_ins_of_address = Throttle(100, QUARTER)
        self.log_ins_of_account = Throttle(100, QUARTER)
        self.sign_ups = Throttle(10, HOUR)
        self.slow = anyio.CapacityLimiter(2)

    async def read(self, work: Work[T]) -> T:
        """Run ``work`` on one state of the database; what the store refuses is an ApiError."""

        def reading() -> T:
            with self.store.read() as db:
                return work(db)

        with translated():
            return await anyio.to_thread.run_sync(reading)

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction; what the store refuses is an ApiError."""
        with translated():
            return await self.writer.write(work)

    async def slowly(self, work: Callable[[], T]) -> T:
        """Run what hashes passwords, with transactions of its own."""
        with translated():
            return await anyio.to_thread.run_sync(work, limiter=self.slow)

    def close(self) -> None:
        """End the writer; the store stays open."""
        self.writer.close()


@asynccontextmanager
async def running(office: Office) -> AsyncGenerator[None]:
    """The office at work: for the application's lifespan."""
    await office.keeper.start()
    try:
        yield
    finally:
        await office.keeper.stop()
        await anyio.to_thread.run_sync(office.close)


def ensure_prices(store: Store, models: Iterable[str], *, now: int) -> None:
    """Give models that have no price DeepSeek's own for V2: without one they cannot be asked."""
    for model in models:
        with store.write() as db:
            try:
                prices.current_price(db, model)
            except NotFoundError:
                prices.set_price(db, model, **PRICE, actor=SYSTEM, now=now)
