"""One server of two models on PostgreSQL, as an operator starts it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from dsv2.service.store import Store, ledger, open_store, prices
from dsv2.service.store.prices import Usage, cost, set_price
from dsv2.service.store.verify import sum_of_entries, verify_books
from tests.service.platform.site import PASSWORD, Person, add_person
from tests.service.running import PROMPT, Running, running
from tests.service.store import postgres

pytestmark = pytest.mark.slow

PRICES = {"pocket": (3_000_000, 1_000_000, 7_000_000), "second": (11_000_000, 0, 13_000_000)}
"""Micro-units for a million tokens: read, found in the cache, generated."""


@pytest.fixture(scope="module")
def database(postgres_server: str) -> Iterator[str]:
    with postgres.empty_database(postgres_server) as url:
        yield url


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, database: str) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("two") / "data"
    models = ("pocket", "second=pocket")
    with running(folder, "--database", database, "--alias", "other=second", models=models) as one:
        yield one


@pytest.fixture(scope="module")
def store(server: Running, database: str) -> Iterator[Store]:
    """The server's own store, seen from another process."""
    opened = open_store(database)
    with opened.write() as db:
        for model, (read, cached, generated) in PRICES.items():
            set_price(
                db, model, input=read, cached_input=cached, output=generated, actor="test",
                now=int(time.time() * 1000),
            )  # fmt: skip
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def person(store: Store) -> Person:
    return add_person(store, "pays@example.org", paid=10_000_000)


def ask(server: Running, person: Person, model: str) -> httpx.Response:
    body = {"model": model, "messages": PROMPT, "temperature": 0, "max_tokens": 12}
    key = {"Authorization": f"Bearer {person.secret}"}
    return server.client.post("/v1/chat/completions", json=body, headers=key)


def test_both_are_listed_and_answer_by_their_names(server: Running, person: Person) -> None:
    key = {"Authorization": f"Bearer {person.secret}"}
    listed = server.client.get("/v1/models", headers=key).json()["data"]
    assert {"pocket", "second"} <= {model["id"] for model in listed}
    for asked, answers in (("pocket", "pocket"), ("second", "second"), ("other", "second")):
        answer = ask(server, person, asked)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == answers
        assert "42" in answer.json()["choices"][0]["message"]["content"]


def test_each_has_its_own_price_and_usage(server: Running, store: Store, person: Person) -> None:
    with store.read() as db:
        before = ledger.balance(db, person.account_id).paid
    spent = dict.fromkeys(PRICES, 0)
    for model in ("pocket", "second", "second"):
        used = ask(server, person, model).json()["usage"]
        found = used["prompt_tokens_details"]["cached_tokens"]
        tokens = Usage(used["prompt_tokens"], found, used["completion_tokens"])
        with store.read() as db:
            price = prices.current_price(db, model)
        assert (price.input, price.cached_input, price.output) == PRICES[model]
        spent[model] += cost(price, tokens)
    with store.read() as db:
        assert before - ledger.balance(db, person.account_id).paid == sum(spent.values())
    assert len(set(spent.values())) == 2 and min(spent.values()) > 0
    with httpx.Client(base_url=server.address, headers={"Origin": server.address}) as browser:
        body = {"email": person.email, "password": PASSWORD}
        assert browser.post("/api/account/log-in", json=body).status_code == 200
        rows = browser.get("/api/account/usage").json()["usage"]
    assert {row["model"] for row in rows} == set(PRICES)
    total = sum(row["charge"] for row in rows)
    with store.read() as db:
        assert 10_000_000 - ledger.balance(db, person.account_id).paid == total


def test_two_hundred_at_a_time_spend_no_more_than_there_is(server: Running, store: Store) -> None:
    """Fault F41, over HTTP: the rest are refused before any work."""
    with store.read() as db:
        price = prices.current_price(db, "second")
    hold = cost(price, Usage(ask(server, add_person(store, "b@example.org", paid=10**7), "second")
                             .json()["usage"]["prompt_tokens"], 0, 12))  # fmt: skip
    poor = add_person(store, "poor@example.org", paid=3 * hold)
    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(lambda _: ask(server, poor, "second"), range(200)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 402}
    assert statuses.count(200) >= 3
    with store.read() as db:
        left = ledger.balance(db, poor.account_id)
        assert (left.held, sum_of_entries(db), verify_books(db)) == (0, 0, [])
        assert 0 <= left.paid < hold


def test_it_ends_clean(server: Running) -> None:
    assert server.stop() == 0
    assert "Traceback" not in server.words
