"""Many writes in one transaction, each for itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.platform.writer import MOST, Writer
from dsv2.service.store import Store
from dsv2.service.store.errors import ConflictError, FieldError, UnavailableError
from dsv2.service.store.models import users
from dsv2.service.store.users import add_user, list_users

pytestmark = pytest.mark.usefixtures("one_line")


def add(name: str) -> Any:
    return lambda db: add_user(db, f"{name}@example.org", now=1).email


def fail(db: Connection) -> None:
    add_user(db, "failed@example.org", now=1)
    raise ConflictError("no")


async def held_up(writer: Writer, *works: Any) -> list[Any]:
    """Run what has gathered while the writer's thread was busy."""
    leave = threading.Event()

    def wait(db: Connection) -> None:
        leave.wait(10)

    first = asyncio.create_task(writer.write(wait))
    await asyncio.sleep(0.05)
    tasks = [asyncio.create_task(writer.write(work)) for work in works]
    await asyncio.sleep(0)
    leave.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


def run(store: Store, work: Coroutine[Any, Any, Any], writer: Writer) -> Any:
    try:
        return asyncio.run(work)
    finally:
        writer.close()


def emails(store: Store) -> set[str]:
    with store.read() as db:
        return {user.email for user in list_users(db)}


@pytest.fixture
def commits(store: Store) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(connection: Connection) -> None:
        seen.append("commit")

    sa.event.listen(store.engine, "commit", note)
    yield seen
    sa.event.remove(store.engine, "commit", note)


def test_what_waits_is_committed_together(store: Store, commits: list[str]) -> None:
    writer = Writer(store)
    works = [add(f"u{i}") for i in range(MOST)]
    results = run(store, held_up(writer, *works), writer)
    assert results == [f"u{i}@example.org" for i in range(MOST)]
    assert len(commits) == 2  # of what held them up, and of all of them


def test_one_that_fails_is_undone_alone(store: Store) -> None:
    writer = Writer(store)
    bad = lambda db: db.execute(sa.select(users).where(users.c.id == "\ud800")).all()  # noqa: E731
    a, b, c, d = run(store, held_up(writer, add("a"), fail, bad, add("d")), writer)
    assert (a, d) == ("a@example.org", "d@example.org")
    assert isinstance(b, ConflictError) and isinstance(c, FieldError)
    assert emails(store) == {"a@example.org", "d@example.org"}


def test_nobody_is_told_of_success_before_the_commit(store: Store) -> None:
    writer = Writer(store)

    def break_commit(db: Connection) -> None:
        raise UnavailableError("the disk is full")

    results = run(store, held_up(writer, add("a"), break_commit, add("c")), writer)
    assert all(isinstance(result, UnavailableError) for result in results)
    assert emails(store) == set()


def test_the_thread_outlives_failures(store: Store) -> None:
    writer = Writer(store)

    async def work() -> str:
        with pytest.raises(ZeroDivisionError):
            await writer.write(lambda db: 1 // 0)
        return await writer.write(add("a"))

    assert run(store, work(), writer) == "a@example.org"


def test_what_nobody_waits_for_any_more_does_not_begin(store: Store) -> None:
    writer = Writer(store)

    async def work() -> None:
        leave = threading.Event()
        first = asyncio.create_task(writer.write(lambda db: leave.wait(10)))
        await asyncio.sleep(0.05)
        second = asyncio.create_task(writer.write(add("second")))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        leave.set()
        await first

    run(store, work(), writer)
    assert emails(store) == set()


def test_a_closed_writer_has_written_what_it_took_and_takes_no_more(store: Store) -> None:
    writer = Writer(store)

    async def work() -> None:
        waiting = [asyncio.create_task(writer.write(add(f"u{i}"))) for i in range(100)]
        await asyncio.sleep(0)
        await asyncio.to_thread(writer.close)
        await asyncio.gather(*waiting)
        with pytest.raises(UnavailableError):
            await writer.write(add("late"))

    asyncio.run(work())
    assert len(emails(store)) == 100


def test_several_event_loops_may_share_it(store: Store) -> None:
    writer = Writer(store)
    threads = [
        threading.Thread(target=lambda i=i: asyncio.run(writer.write(add(f"u{i}"))))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert len(emails(store)) == 4
