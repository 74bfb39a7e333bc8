"""Fault F42: a hundred kills of a platform under traffic, and its books after each of them.

The application, the store and the engine process are those of ``dsv2 serve``, over real sockets and
with a tiny model. They are forked from a process that has imported everything, and the engine is
not a child of the API process: so the next life begins within a quarter of a second, and either can
be killed alone. What belongs to their parenthood is tested in ``test_server.py``.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.soak.platform import Platform
from benchmarks.soak.run import Run, kill_often
from tests.service.store import postgres

SEED = "DSV2_SEED"
"""Environment variable: the dice of a run that has failed, to be thrown again."""


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """A URL of an empty database; nothing for SQLite in the platform's own folder."""
    if request.param == "sqlite":
        yield ""
        return
    with postgres.empty_database(request.getfixturevalue("postgres_server")) as url:
        yield url


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is some: what is killed here are processes, not the machine."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="dsv2-kills-", dir=memory) as made:
        yield Path(made)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_books_survive_a_hundred_kills(database: str, folder: Path, tiny_folder: Path) -> None:
    kills = 100
    seed = int(os.environ.get(SEED) or random.randrange(2**32))

    async def work() -> None:
        with Platform(folder, str(tiny_folder), database=database, renew_seconds=0.1) as platform:
            outcome = await kill_often(Run(platform, seed), kills, (0.0, 0.3))
            log = (folder / "log").read_text(encoding="utf-8", errors="replace")
            assert outcome.problems == [], f"{SEED}={seed}: {outcome.problems}\n{log[-4000:]}"
            assert outcome.kills.total() == kills and outcome.kills["api"] > outcome.kills["engine"]
            # There was something to be killed: answers that were whole, and some that were not.
            assert len(outcome.heard.usage) > 5 and outcome.heard.keys, f"{SEED}={seed}"
            assert (
                outcome.endings["released", "recovered"] + outcome.endings["settled", "recovered"]
            )

    asyncio.run(work())
