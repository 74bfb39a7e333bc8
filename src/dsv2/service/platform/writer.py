"""Writes of many requests, a few at a time in one transaction.

A commit of SQLite waits for the disk, some ten milliseconds on a cheap one, and there is one writer
at a time: one commit for each reservation and each settlement would allow some forty requests a
second. So one thread takes whatever waits, writes all of it and commits once. Each piece is atomic
for itself, in a savepoint: one that raises is undone alone. Nobody is answered before the commit.

PostgreSQL commits many transactions at once by itself, so there each piece has its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import anyio.to_thread
from sqlalchemy import Connection

from dsv2.service.store import Store
from dsv2.service.store.engine import translated_errors
from dsv2.service.store.errors import UnavailableError

log = logging.getLogger("dsv2.service")

MOST = 64
"""Pieces in one transaction: what the first of them waits for the others."""

T = TypeVar("T")
Work = Callable[[Connection], T]
_Piece = tuple[Work[Any], "Future[Any]"]


@contextlib.contextmanager
def _alone_undone(db: Connection) -> Iterator[None]:
    """A savepoint around the block.

    As ``db.begin_nested``, which compiles its three statements anew each time: for a request that
    is a tenth of what the database costs.
    """
    db.exec_driver_sql("SAVEPOINT piece")
    try:
        yield
    except BaseException:
        db.exec_driver_sql("ROLLBACK TO SAVEPOINT piece")
        raise
    finally:
        db.exec_driver_sql("RELEASE SAVEPOINT piece")


class Writer:
    """Writes to a store. ``write`` is called in event loops, any number of them.

    Args:
        store: the database.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._waiting: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` on a write transaction; what it wrote is durable when this returns.

        A caller that is cancelled no longer waits; the work may be done nevertheless.

        Raises:
            UnavailableError: the database cannot be written now; nothing was kept.
            StoreError, Exception: what ``work`` raised; nothing of it was kept.
        """
        if not self.store.is_sqlite:
            if self._is_closed:
                raise UnavailableError("the server is shutting down")
            return await anyio.to_thread.run_sync(self._alone, work, abandon_on_cancel=True)
        future: Future[T] = Future()
        with self._lock:
            if self._is_closed:
                raise UnavailableError("the server is shutting down")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="dsv2-writer", daemon=True)
                self._thread.start()
            self._waiting.put((work, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Write what waits, and end the thread. Later writes are refused."""
        with self._lock:
            self._is_closed = True
            thread = self._thread
            self._waiting.put(None)
        if thread is not None:
            thread.join()

    def _alone(self, work: Work[T]) -> T:
        with self.store.write() as db:
            return work(db)

    def _run(self) -> None:
        is_open = True
        while is_open:
            pieces: list[_Piece] = []
            piece = self._waiting.get()
            while piece is not None:
                # From here on it can no longer be cancelled.
                if piece[1].set_running_or_notify_cancel():
                    pieces.append(piece)
                if len(pieces) == MOST:
                    break
                try:
                    piece = self._waiting.get_nowait()
                except queue.Empty:
                    break
            else:
                is_open = False
            if pieces:
                self._write(pieces)

    def _write(self, pieces: list[_Piece]) -> None:
        results: list[tuple[Any, BaseException | None]] = []
        try:
            with self.store.write() as db:
                for work, _ in pieces:
                    try:
                        with translated_errors(), _alone_undone(db):
                            results.append((work(db), None))
                    except UnavailableError:
                        raise  # a full disk, say, may have undone the others' work too
                    except Exception as error:
                        results.append((None, error))
        except BaseException as error:
            # Nothing was kept. Every piece learns it; the thread goes on.
            if not isinstance(error, UnavailableError):
                log.error("a transaction failed as a whole", exc_info=error)
            results = [(None, error)] * len(pieces)
        for (_, future), (result, failure) in zip(pieces, results, strict=True):
            with contextlib.suppress(asyncio.InvalidStateError):
                if failure is None:
                    future.set_result(result)
                else:
                    future.set_exception(failure)
