"""F43: requests that are sent again with the same key."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from dsv2.service.platform.admission import LEASE, StoreAdmission
from dsv2.service.platform.desk import Desk, install
from dsv2.service.platform.idempotent import Repeatable
from dsv2.service.platform.office import Office
from dsv2.service.platform.writer import Writer
from dsv2.service.store import Store, ledger
from dsv2.service.store.errors import UnavailableError
from dsv2.service.store.verify import verify_books
from dsv2.service.web.app import create_app
from dsv2.service.web.deps import SignedIn
from tests.service.platform.site import Client, Person, Site, add_person, make_whole_app

HOLD = 200
CHARGE = 140


class Ask(BaseModel):
    text: str
    stream: bool = False
    fail: bool = False
    finish: str = "stop"


def router(runs: list[str], gate: asyncio.Event) -> APIRouter:
    made = APIRouter()

    @made.post("/v1/echo")
    @made.post("/v1/other")
    async def echo(
        body: Ask, request: Request, caller: SignedIn, office: Desk, attempt: Repeatable
    ) -> Response:
        request_id = f"r{len(runs)}"
        runs.append(body.text)
        ticket = await office.admission.admit(
            caller, request_id=request_id, model="tiny", prompt_tokens=10, completion_tokens=5,
            attempt=attempt,
        )  # fmt: skip
        finish = "disconnect"
        try:
            await gate.wait()
            if body.fail:
                raise ValueError("no")
            ticket.note(10, 0, 2)
            if body.finish != "stop" and len(runs) == 1:
                finish = body.finish
                raise ValueError("no")
            content = json.dumps({"text": body.text, "run": request_id}).encode()
            if not body.stream:
                ticket.keep(200, "application/json", content)
            finish = "stop"
            return Response(content, media_type="application/json")
        finally:
            await ticket.close(finish)

    return made


class Away:
    """A writer whose database does not take anything."""

    def __init__(self, writer: Writer) -> None:
        self.store = writer.store

    async def write(self, work: object) -> None:
        raise UnavailableError("it is away")


class Server:
    """The route above, and how often it ran."""

    def __init__(self, office: Office) -> None:
        self.runs: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        app = create_app(office.identify, [router(self.runs, self.gate)])
        install(app, office)
        self.site = Site(office, app)

    def client(self, person: Person) -> Client:
        return self.site.client(key=person.secret)


@pytest.fixture
def server(office: Office) -> Iterator[Server]:
    server = Server(office)
    yield server
    server.site.close()


@pytest.fixture
def person(store: Store) -> Person:
    return add_person(store, paid=10_000)


def spent(store: Store, person: Person) -> int:
    with store.read() as db:
        assert verify_books(db) == []
        found = ledger.balance(db, person.account_id)
        assert found.held == 0
        return found.spent


def key(name: str = "k1") -> dict[str, str]:
    return {"Idempotency-Key": name}


def test_the_same_request_gets_the_same_answer_and_costs_once(
    server: Server, person: Person, store: Store
) -> None:
    client = server.client(person)
    first, again = (client.post("/v1/echo", {"text": "hi"}, headers=key()) for _ in range(2))
    assert first.content == again.content and first.status_code == again.status_code == 200
    assert first.headers["content-type"] == again.headers["content-type"]
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert spent(store, person) == CHARGE


def test_without_a_key_it_runs_each_time(server: Server, person: Person, store: Store) -> None:
    client = server.client(person)
    answers = {client.post("/v1/echo", {"text": "hi"}).json()["run"] for _ in range(2)}
    assert len(answers) == 2 and spent(store, person) == 2 * CHARGE


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/echo", {"text": "ho"}), ("/v1/other", {"text": "hi"})]
)
def test_a_key_is_for_one_request(
    server: Server, person: Person, store: Store, path: str, body: Any
) -> None:
    client = server.client(person)
    client.post("/v1/echo", {"text": "hi"}, headers=key())
    answer = client.post(path, body, headers=key())
    assert answer.status_code == 409
    assert "another request" in answer.json()["error"]["message"]
    assert spent(store, person) == CHARGE


def test_a_key_is_its_accounts(server: Server, person: Person, store: Store) -> None:
    other = add_person(store, "b@example.org", paid=10_000)
    mine = server.client(person).post("/v1/echo", {"text": "hi"}, headers=key())
    theirs = server.client(other).post("/v1/echo", {"text": "hi"}, headers=key())
    assert mine.json()["run"] != theirs.json()["run"]
    assert spent(store, person) == spent(store, other) == CHARGE


def test_of_many_at_a_time_one_runs(server: Server, person: Person, store: Store) -> None:
    client = server.client(person)
    server.gate.clear()

    async def work() -> list[int]:
        tasks = [
            asyncio.create_task(client.http.post("/v1/echo", json={"text": "hi"}, headers=key()))
            for _ in range(20)
        ]
        while sum(task.done() for task in tasks) < 19:
            await asyncio.sleep(0.01)
        server.gate.set()
        return [answer.status_code for answer in await asyncio.gather(*tasks)]

    assert sorted(server.site.run(work())) == [200] + [409] * 19
    assert spent(store, person) == CHARGE
    again = client.post("/v1/echo", {"text": "hi"}, headers=key())
    assert again.headers["Idempotent-Replayed"] == "true"


def test_what_failed_before_anything_was_done_may_be_tried_again(
    server: Server, person: Person, store: Store
) -> None:
    client = server.client(person)
    body = {"text": "hi", "fail": True}
    assert [client.post("/v1/echo", body, headers=key()).status_code for _ in range(2)] == [500] * 2
    assert len(server.runs) == 2 and spent(store, person) == 0


def test_without_money_the_key_stays_free(server: Server, store: Store) -> None:
    poor = add_person(store, "b@example.org", paid=HOLD - 1)
    client = server.client(poor)
    assert client.post("/v1/echo", {"text": "hi"}, headers=key()).status_code == 402
    with store.write() as db:
        ledger.deposit(db, poor.account_id, book="paid", amount=1, cause="c", actor="test", now=1)
    assert client.post("/v1/echo", {"text": "hi"}, headers=key()).status_code == 200


def test_an_answer_is_had_again_without_money(server: Server, person: Person, store: Store) -> None:
    client = server.client(person)
    client.post("/v1/echo", {"text": "hi"}, headers=key())
    with store.write() as db:
        ledger.withdraw(
            db, person.account_id, book="paid", amount=10_000 - CHARGE, cause="c",
            actor="test", now=1,
        )  # fmt: skip
    assert client.post("/v1/echo", {"text": "hi"}, headers=key()).status_code == 200


def test_a_stream_is_neither_had_nor_paid_again(
    server: Server, person: Person, store: Store
) -> None:
    client = server.client(person)
    body = {"text": "hi", "stream": True}
    assert client.post("/v1/echo", body, headers=key()).status_code == 200
    again = client.post("/v1/echo", body, headers=key())
    assert again.status_code == 409 and again.json()["error"]["code"] == "streamed_before"
    assert spent(store, person) == CHARGE


def test_after_a_crash_the_next_attempt_takes_over_and_one_is_paid(
    store: Store, person: Person, folder: Path
) -> None:
    now = 10_000_000
    died = Office(store, folder=folder, clock=lambda: now)
    lives = Server(Office(store, folder=folder, clock=lambda: now))
    half_way = Server(died)
    half_way.gate.clear()
    client = half_way.client(person)

    async def die() -> None:
        task = asyncio.create_task(client.http.post("/v1/echo", json={"text": "hi"}, headers=key()))
        while not died.admission.open:
            await asyncio.sleep(0.01)
        [ticket] = died.admission.open.values()
        ticket.note(10, 0, 5)
        await died.keeper.renew()
        died.admission.writer = None  # type: ignore[assignment]
        task.cancel()
        await asyncio.wait([task])

    half_way.site.run(die())
    lives.runs.append("so that ids differ")
    other = lives.client(person)
    assert other.post("/v1/echo", {"text": "hi"}, headers=key()).status_code == 409
    now += LEASE + 1
    lives.site.run(lives.site.office.keeper.clear())
    assert other.post("/v1/echo", {"text": "hi"}, headers=key()).status_code == 200
    assert spent(store, person) == CHARGE
    lives.site.close()
    half_way.site.close()


@pytest.mark.parametrize(
    ("finish", "paid"), [("error", 1), ("shutdown", 1), ("cancelled", 2), ("dropped", 2)]
)
def test_what_the_server_has_cut_off_is_paid_once(
    server: Server, person: Person, store: Store, finish: str, paid: int
) -> None:
    client, body = server.client(person), {"text": "hi", "finish": finish}
    assert client.post("/v1/echo", body, headers=key()).status_code == 500
    assert spent(store, person) == CHARGE
    first, again = (client.post("/v1/echo", body, headers=key()) for _ in range(2))
    assert first.status_code == 200 and first.content == again.content
    assert spent(store, person) == paid * CHARGE


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_whose_settlement_waits_in_the_outbox_is_had_again(
    server: Server, person: Person, store: Store, stream: bool
) -> None:
    """F48: the disk is full, or the database away, when the answer is whole."""
    client, body = server.client(person), {"text": "hi", "stream": stream}
    admission = server.site.office.admission
    assert isinstance(admission, StoreAdmission)
    writer = admission.writer

    async def lose_the_database() -> httpx.Response:
        server.gate.clear()
        asking = asyncio.create_task(client.http.post("/v1/echo", json=body, headers=key()))
        while not admission.open:
            await asyncio.sleep(0.01)
        admission.writer = Away(writer)  # type: ignore[assignment]
        server.gate.set()
        answer = await asking
        admission.writer = writer
        return answer

    first = server.site.run(lose_the_database())
    assert first.status_code == 200 and len(admission.outbox) == 1
    assert client.post("/v1/echo", body, headers=key()).status_code == 409  # under way
    server.site.run(server.site.office.keeper.clear())
    again = client.post("/v1/echo", body, headers=key())
    if stream:
        assert again.json()["error"]["code"] == "streamed_before"
    else:
        assert again.content == first.content
    assert again.headers["Idempotent-Replayed"] == "true"
    assert spent(store, person) == CHARGE


@pytest.mark.parametrize("name", ["", "x" * 256, "a\tb", "é"])
def test_keys_are_short_plain_texts(server: Server, person: Person, name: str) -> None:
    headers = [(b"Idempotency-Key", name.encode())]
    answer = server.client(person).post("/v1/echo", {"text": "hi"}, headers=headers)
    assert answer.status_code == 400


def test_answers_are_forgotten_in_time(server: Server, person: Person, store: Store) -> None:
    office = server.site.office
    client = server.client(person)
    client.post("/v1/echo", {"text": "hi"}, headers=key())
    later = office.clock() + 2 * 86_400_000
    office.admission.clock = lambda: later
    server.site.run(office.keeper.clear())
    again = client.post("/v1/echo", {"text": "hi"}, headers=key())
    assert "Idempotent-Replayed" not in again.headers


def test_the_served_routes_answer_once(office: Office) -> None:
    """The same through the application that ``dsv2 serve`` runs."""
    app = make_whole_app(office)
    site = Site(office, app)
    person = add_person(office.store, "chat@example.org", paid=10_000)
    client = site.client(key=person.secret, headers={"Idempotency-Key": "one"})
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    first = client.ask("POST", "/v1/chat/completions", json=body)
    again = client.ask("POST", "/v1/chat/completions", json=body)
    other = client.ask("POST", "/v1/chat/completions", json=body | {"max_tokens": 3})
    assert (first.status_code, again.status_code, other.status_code) == (200, 200, 409)
    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"
    with office.store.read() as db:
        spent = 10_000 - ledger.balance(db, person.account_id).total
        assert verify_books(db) == []
    usage = first.json()["usage"]
    assert spent == 10 * usage["prompt_tokens"] + 20 * usage["completion_tokens"]
    site.close()
