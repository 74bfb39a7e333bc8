"""What the processes of the concurrency tests do; started fresh, they share nothing but the URL."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from dsv2.service.store import (
    Store,
    StoreError,
    codes,
    leases,
    migrations,
    open_store,
    reservations,
)
from dsv2.service.store.errors import ConflictError, UnavailableError
from dsv2.service.store.prices import Usage
from tests.forking import PROCESSES
from tests.service.store.make import LEASE, NOW, Customer, deposit, reserve


def run_all(work: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    """Run ``work`` in one process for each of the arguments, all at a time; their results."""
    results = PROCESSES.Queue()
    gate = PROCESSES.Barrier(len(arguments))
    processes = [
        PROCESSES.Process(target=_report, args=(results, gate, work, one)) for one in arguments
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=100) for _ in processes]
    for process in processes:
        process.join()
    results.close()
    results.join_thread()
    for one in found:
        if isinstance(one, str):
            raise AssertionError(one)
    return found


def _report(results: Any, gate: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    gate.wait(timeout=60)
    try:
        results.put([work(*arguments)])
    except BaseException as error:
        results.put(f"{type(error).__name__}: {error}")


def start(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process to be killed."""
    process = PROCESSES.Process(target=work, args=arguments)
    process.start()
    return process


def in_threads(number: int, act: Callable[[int], str]) -> Counter[str]:
    """What so many threads, let go at one moment, have each brought home."""
    gate = threading.Barrier(number)
    found: list[str] = []

    def go(place: int) -> None:
        gate.wait()
        try:
            found.append(act(place))
        except StoreError as error:
            found.append(type(error).__name__)

    threads = [threading.Thread(target=go, args=(place,)) for place in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Counter(found)


def _opened(url: str, act: Callable[[Store], Any]) -> Any:
    store = open_store(url, timeout=60, pool_size=25)
    try:
        return act(store)
    finally:
        store.close()


def upgrade(url: str) -> None:
    """Make the tables."""
    _opened(url, migrations.upgrade)


def reserve_many(url: str, who: Customer, name: str, number: int) -> Counter[str]:
    """Reserve for so many requests at a time."""

    def act(store: Store) -> Counter[str]:
        def one(place: int) -> str:
            with store.write() as db:
                return reserve(db, who, f"{name}:{place}").state

        return in_threads(number, one)

    return _opened(url, act)


def settle_one(url: str, number: int, completion_tokens: int) -> set[int]:
    """Settle the request r1 so many times at a time; what it was said to cost."""

    def act(store: Store) -> set[int]:
        charges = set()

        def one(place: int) -> str:
            with store.write() as db:
                usage = Usage(10, 0, completion_tokens)
                ended = reservations.settle(db, "r1", usage, finish="stop", now=NOW)
            charges.add(ended.charge)
            return ended.state

        assert in_threads(number, one) == {"settled": number}
        return charges

    return _opened(url, act)


def redeem(url: str, token: str, account_ids: list[str], cause: str) -> Counter[str]:
    """Redeem a code for every account and make one deposit, all at a time."""

    def act(store: Store) -> Counter[str]:
        def one(place: int) -> str:
            with store.write() as db:
                deposit(db, account_ids[0], "paid", 5, cause)
            with store.write() as db:
                codes.redeem(db, token, account_ids[place], actor="u", now=NOW)
            return "redeemed"

        return in_threads(len(account_ids), one)

    return _opened(url, act)


def usage_of(request_id: str) -> Usage:
    """What a request of ``live`` takes, by its name."""
    chance = random.Random(request_id)
    prompt = chance.randint(1, 10)
    return Usage(prompt, chance.randint(0, prompt), chance.randint(1, 5))


def live(url: str, people: list[Customer], name: str, ready: str) -> None:
    """Serve requests for ever: reserve, write down what was produced, settle or release."""
    store = open_store(url, timeout=60)
    chance = random.Random(name)
    Path(ready).touch()
    for number in count():
        request_id = f"{name}:{number}"
        who = chance.choice(people)
        with store.write() as db:
            deposit(db, who.account_id, chance.choice(["granted", "paid"]), 300, request_id)
        try:
            with store.write() as db:
                reserve(db, who, request_id, owner=name)
        except StoreError as error:
            if isinstance(error, (UnavailableError, ConflictError)):
                raise
            continue
        usage = usage_of(request_id)
        fate = chance.choice(["settle", "write", "write", "release"])
        with store.write() as db:
            if fate == "release":
                reservations.release(db, request_id, finish="abort", now=NOW)
                continue
            if fate == "write":
                leases.renew(db, name, {request_id: usage}, expires_at=NOW + LEASE)
        for _ in range(2):
            with store.write() as db:
                reservations.settle(db, request_id, usage, finish="stop", now=NOW)


def finish_and_wait(url: str, who: Customer, name: str, ready: str) -> None:
    """Serve one request to its end, and get stuck before it is settled."""
    store = open_store(url, timeout=60)
    with store.write() as db:
        reserve(db, who, name, owner=name)
        leases.renew(db, name, {name: usage_of(name)}, expires_at=NOW + LEASE)
    Path(ready).touch()
    try:
        with store.write() as db:
            reservations.settle(db, name, usage_of(name), finish="stop", now=NOW)
            time.sleep(60)
    finally:
        os._exit(1)
