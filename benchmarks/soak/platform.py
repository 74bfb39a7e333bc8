"""A platform of two processes, each of which can be killed and begun anew at any moment."""

from __future__ import annotations

import resource
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import msgspec

from benchmarks.soak.books import Account
from benchmarks.soak.life import MODEL, Api, Engine, order_of
from benchmarks.soak.nursery import Nursery
from dsv2.service.platform.admission import LEASE
from dsv2.service.platform.bootstrap import open_platform
from dsv2.service.settings import ServeSettings
from dsv2.service.store import Store, keys, ledger, users
from dsv2.service.store.checks import DAY, now_ms
from dsv2.service.store.prices import set_price
from dsv2.service.worker.process import WorkerOptions

MILLION = 1_000_000
_LATE = 60.0
"""Seconds in which a process has to serve."""


class Platform:
    """In ``with``: both processes run, and end with the block.

    Args:
        folder: of the database and of everything else, with a short path.
        model: that the engine computes.
        database: a URL; empty for SQLite in the folder.
        renew_seconds: how often what is produced is written down.
        threads: of the engine.

    Attributes:
        url: of the API.
        store: the database, beside the API process.
        born: when the API process began, in milliseconds of its own clock.
        pids: of both processes by kind.
    """

    def __init__(
        self, folder: Path, model: str, *, database: str = "", renew_seconds: float = 5.0,
        threads: int = 1,
    ) -> None:  # fmt: skip
        self.folder, self._model, self._database = folder, model, database
        self._renew, self._threads = renew_seconds, threads
        self._lives, self.born = 0, 0
        self.pids: dict[str, int] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Platform:
        try:
            settings = ServeSettings(data=self.folder / "data", database=self._database)
            self.store: Store = open_platform(settings)
            self._stack.callback(self.store.close)
            with self.store.write() as db:
                # Whole micro-units for each token, so that a single one too many is seen.
                set_price(
                    db, MODEL, input=10 * MILLION, cached_input=MILLION, output=20 * MILLION,
                    actor="soak", now=now_ms(),
                )  # fmt: skip
            # The path of a socket must be short, whatever that of the folder is.
            self._sockets = self._stack.enter_context(TemporaryDirectory(prefix="dsv2-"))
            self._nursery = self._stack.enter_context(Nursery(self.folder / "log"))
            with socket.create_server(("127.0.0.1", 0)) as place:
                self._port = int(place.getsockname()[1])
            self.url = f"http://127.0.0.1:{self._port}"
            self.begin("engine")
            self.begin("api")
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def account(self, name: str, *, paid: int = 0, role: str = "user") -> Account:
        """Somebody new with money in micro-units and a key; for an administrator a session."""
        now = now_ms()
        with self.store.write() as db:
            user = users.add_user(db, f"{name}@example.org", now=now, role=role)
            if paid:
                ledger.deposit(
                    db, user.account_id, book="paid", amount=paid, cause=f"soak:{name}",
                    actor="soak", now=now,
                )  # fmt: skip
            if role == "admin":
                secret = users.open_session(db, user.id, now=now, expires_at=now + 365 * DAY)
            else:
                _, secret = keys.create_key(
                    db, account_id=user.account_id, user_id=user.id, name="soak", now=now
                )
        return Account(name, user.id, user.account_id, secret)

    def begin(self, kind: str) -> None:
        """Let a process live; the API is awaited, the engine is not.

        Raises:
            TimeoutError: it does not serve in time.
        """
        life: Api | Engine
        if kind == "engine":
            # A small cache is full soon: what of it was never written is no memory yet.
            options = WorkerOptions(
                model=self._model, folder=self._sockets, device="cpu", threads=self._threads,
                cache_tokens=4096, max_sequences=16, log_level="warning",
            )  # fmt: skip
            life = Engine(msgspec.json.encode(options).decode())
        else:
            self._lives += 1
            ahead = self._lives * (LEASE + 1000)
            life = Api(
                str(self.folder / "data"), self._database, self._model, self._sockets,
                self._port, ahead, self._renew,
            )  # fmt: skip
            self.born = now_ms() + ahead
        self.pids[kind] = self._nursery.begin(order_of(life))
        if kind == "api":
            self._await()

    def kill(self, kind: str) -> int:
        """Kill a process; how it has ended, which is -9 unless it had ended before."""
        return self._nursery.kill(self.pids.pop(kind))

    def fill_disk(self, *, is_full: bool) -> None:
        """Let every write of the API process fail that goes to a file, or let it write again.

        The kernel refuses them as it does on a full disk, under another number: a file may have no
        byte. SQLite's journal, the database, the outbox: nothing can be written.
        """
        soft = 0 if is_full else resource.RLIM_INFINITY
        resource.prlimit(self.pids["api"], resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))

    def outbox(self) -> list[str]:
        """What waits in the outbox or was put aside there; not what a kill left half written."""
        names = [file.name for file in (self.folder / "data" / "outbox").glob("*")]
        return [name for name in names if ".tmp-" not in name]

    def _await(self) -> None:
        end = time.monotonic() + _LATE
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), 5.0).close()
            except OSError:
                if time.monotonic() > end:
                    raise TimeoutError(f"no API after {_LATE} s; see {self.folder}/log") from None
                time.sleep(0.01)
            else:
                return
