"""Messages and responses cost and repeat as chats do: limits, money and keys know no address."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dsv2.service.platform.office import Office
from dsv2.service.serving import Caller, Ticket
from dsv2.service.store import ledger
from dsv2.service.store.verify import verify_books
from tests.service.platform.site import Client, Person, Site, add_person, make_whole_app

CHAT = [{"role": "user", "content": "x"}]
ASKS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/messages", {"model": "tiny", "messages": CHAT, "max_tokens": 4}),
    ("/v1/responses", {"model": "tiny", "input": "x", "max_output_tokens": 4}),
]


@pytest.fixture
def site(office: Office) -> Iterator[Site]:
    site = Site(office, make_whole_app(office))
    yield site
    site.close()


@pytest.fixture
def person(office: Office) -> Person:
    return add_person(office.store, paid=10_000)


def spent(office: Office, person: Person) -> int:
    with office.store.read() as db:
        assert verify_books(db) == []
        found = ledger.balance(db, person.account_id)
        assert found.held == 0
        return found.spent


def client_of(site: Site, person: Person, key: str = "one") -> Client:
    return site.client(key=person.secret, headers={"Idempotency-Key": key})


@pytest.mark.parametrize(("path", "body"), ASKS)
def test_sent_again_it_is_answered_and_paid_once(
    site: Site, office: Office, person: Person, path: str, body: dict[str, Any]
) -> None:
    client = client_of(site, person)
    first, again = client.post(path, body), client.post(path, body)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"
    usage = first.json()["usage"]
    assert spent(office, person) == 10 * usage["input_tokens"] + 20 * usage["output_tokens"]
    other = client.post(path, body | {"temperature": 0.5})
    assert other.status_code == 409
    assert ("type" in other.json()) == (path == "/v1/messages")


@pytest.mark.parametrize(("path", "body"), ASKS)
def test_a_stream_is_not_paid_again(
    site: Site, office: Office, person: Person, path: str, body: dict[str, Any]
) -> None:
    client = client_of(site, person)
    assert client.post(path, body | {"stream": True}).status_code == 200
    paid = spent(office, person)
    again = client.post(path, body | {"stream": True})
    assert again.status_code == 409
    assert "as a stream" in again.json()["error"]["message"]
    assert ("type" in again.json()) == (path == "/v1/messages")
    assert spent(office, person) == paid > 0


@pytest.mark.parametrize(("path", "body"), ASKS)
def test_without_money_there_is_no_answer(
    site: Site, office: Office, path: str, body: dict[str, Any]
) -> None:
    poor = add_person(office.store, "poor@example.org", paid=1)
    answer = client_of(site, poor).post(path, body)
    assert answer.status_code == 402
    kind = "billing_error" if path == "/v1/messages" else "insufficient_balance_error"
    assert answer.json()["error"]["type"] == kind


def test_a_key_in_anthropics_header(site: Site, office: Office, person: Person) -> None:
    path, body = ASKS[0]
    client = site.client(headers={"x-api-key": person.secret})
    assert client.post(path, body).status_code == 200
    assert spent(office, person) > 0


def test_an_admission_that_stands_before_the_offices_own(office: Office, person: Person) -> None:
    """As that of traces does."""
    asked: list[str] = []

    class Before:
        async def admit(self, caller: Caller, *, model: str, **given: Any) -> Ticket:
            asked.append(model)
            return await office.admission.admit(caller, model=model, **given)

    site = Site(office, make_whole_app(office, Before()))
    assert client_of(site, person).post(*ASKS[0]).status_code == 200
    assert asked == ["tiny"]
    site.close()
