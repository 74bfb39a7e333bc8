"""A platform to ask, without a network: its application, and browsers and programs that use it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from fastapi import FastAPI
from sqlalchemy import Connection

from dsv2.service.platform.desk import install
from dsv2.service.platform.office import Office
from dsv2.service.routes.platform import platform_routers
from dsv2.service.serving import Admission, Models, ServedModel
from dsv2.service.settings import ServeSettings
from dsv2.service.site import make_app as make_public_app
from dsv2.service.store import Store, keys, ledger, users
from dsv2.service.store.settings import load_settings
from dsv2.service.web.app import create_app
from dsv2.service.web.metrics import Metrics
from dsv2.tokenizer import chat_format
from tests.service.fakes import FakeEngine, pocket_tokenizer, words
from tests.service.store.make import price

ORIGIN = "http://localhost:8000"
PASSWORD = "correct horse"
T = TypeVar("T")


def make_app(office: Office, **options: Any) -> FastAPI:
    """The platform's part of the application."""
    app = create_app(office.identify, platform_routers(), **options)
    install(app, office)
    return app


def make_models() -> Models:
    """One, whose engine follows a script."""
    tokenizer = pocket_tokenizer()
    engine = FakeEngine(words(tokenizer, "yes"))
    return Models([ServedModel("tiny", engine, tokenizer, chat_format("v2.5", tokenizer))])


def make_whole_app(office: Office, admission: Admission | None = None) -> FastAPI:
    """What ``dsv2 serve`` answers with, over an engine that follows a script."""
    models = make_models()
    settings = ServeSettings(allowed_hosts=("*",))
    metrics = Metrics(lambda: models.all)
    return make_public_app(settings, office, models, metrics, lambda: True, admission)


@dataclass(frozen=True)
class Person:
    """Somebody with a password, an account and a key."""

    id: str
    account_id: str
    email: str
    key_id: str
    secret: str


def add_person(
    store: Store,
    email: str = "a@example.org",
    *,
    role: str = "user",
    paid: int = 0,
    granted: int = 0,
    limits: keys.KeyLimits | None = None,
) -> Person:
    with store.read() as db:
        hashed = users.hash_password(load_settings(db), PASSWORD)
    with store.write() as db:
        return _add(db, email, hashed, role, paid, granted, limits)


def _add(
    db: Connection,
    email: str,
    hashed: str,
    role: str,
    paid: int,
    granted: int,
    limits: keys.KeyLimits | None,
) -> Person:
    now = 1
    user = users.add_user(db, email, now=now, password_hash=hashed, role=role)
    for book, amount in (("paid", paid), ("granted", granted)):
        if amount:
            ledger.deposit(
                db, user.account_id, book=book, amount=amount, cause=f"first {book} {email}",
                actor="test", now=now,
            )  # fmt: skip
    key, secret = keys.create_key(
        db, account_id=user.account_id, user_id=user.id, name="first", now=now, limits=limits
    )
    return Person(user.id, user.account_id, user.email, key.id, secret)


def add_price(store: Store, model: str = "tiny") -> None:
    """A token costs 10 micro-units, 1 from the cache, 20 where generated."""
    with store.write() as db:
        price(db, model)


class Site:
    """The application and a loop that runs it when it is asked something."""

    def __init__(self, office: Office, app: FastAPI | None = None) -> None:
        self.office = office
        self.app: Any = app or make_app(office)
        self._runner = asyncio.Runner()
        self._clients: list[httpx.AsyncClient] = []

    def run(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return self._runner.run(wait())

    def client(
        self,
        *,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        client: str = "127.0.0.1",
        base: str = ORIGIN,
    ) -> Client:
        sent = dict(headers or {})
        if key is not None:
            sent["Authorization"] = f"Bearer {key}"
        transport = httpx.ASGITransport(self.app, client=(client, 1), raise_app_exceptions=False)
        made = httpx.AsyncClient(transport=transport, base_url=base, headers=sent)
        self._clients.append(made)
        return Client(self, made)

    def browser(self, **options: Any) -> Client:
        """A client that says as browsers do that its own page asks."""
        headers = {"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}
        return self.client(headers=headers | options.pop("headers", {}), **options)

    def logged_in(self, person: Person, **options: Any) -> Client:
        browser = self.browser(**options)
        answer = browser.log_in(person.email)
        assert answer.status_code == 200, answer.text
        return browser

    def close(self) -> None:
        for client in self._clients:
            self.run(client.aclose())
        self._runner.close()
        self.office.close()


class Client:
    """An httpx client for code that does not wait."""

    def __init__(self, site: Site, client: httpx.AsyncClient) -> None:
        self.site, self.http = site, client

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.site.run(self.http.request(method, path, **options))

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.ask("GET", path, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        return self.ask("POST", path, json=json, **options)

    def put(self, path: str, json: Any, **options: Any) -> httpx.Response:
        return self.ask("PUT", path, json=json, **options)

    def patch(self, path: str, json: Any, **options: Any) -> httpx.Response:
        return self.ask("PATCH", path, json=json, **options)

    def delete(self, path: str, **options: Any) -> httpx.Response:
        return self.ask("DELETE", path, **options)

    def log_in(self, email: str, password: str = PASSWORD, **options: Any) -> httpx.Response:
        body = {"email": email, "password": password}
        return self.post("/api/account/log-in", body, **options)
