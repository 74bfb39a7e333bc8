"""F53: no key, password, session, code or question is in a log or an answer that is not its own."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from dsv2.service.store import Store, codes
from dsv2.service.store.errors import UnavailableError
from tests.service.platform.site import Site, add_person

CANARY = "canary-5f1e"


def test_nothing_secret_is_logged_or_answered(
    site: Site, store: Store, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    person = add_person(store)
    password = f"{CANARY} password"
    answers: list[Any] = []
    browser = site.browser()
    credentials = {"email": "c@example.org", "password": password}
    answers.append(browser.post("/api/account/sign-up", credentials))
    answers.append(browser.post("/api/account/sign-up", credentials))
    answers.append(browser.post("/api/account/log-in", credentials))
    answers.append(browser.post("/api/account/log-in", credentials | {"password": CANARY}))
    answers.append(browser.post("/api/account/log-in", credentials | {"extra": CANARY}))
    answers.append(browser.post("/api/account/log-in", {"password": [CANARY]}))
    answers.append(browser.post("/api/account/log-in", credentials | {"password": CANARY * 500}))
    answers.append(
        browser.ask(
            "POST",
            "/api/account/log-in",
            content=f'{{"password": "{CANARY}"',
            headers={"Content-Type": "application/json"},
        )
    )
    change = {"old_password": password, "new_password": CANARY[:7]}
    answers.append(browser.put("/api/account/password", change))
    answers.append(browser.post("/api/account/redeem", {"code": f"code-{'ab' * 32}"}))
    wrong = f"sk-{CANARY}"
    answers.append(site.client(key=wrong).get("/user/balance"))
    answers.append(site.client(headers={"x-api-key": wrong}).get("/user/balance"))
    answers.append(site.client(headers={"Cookie": f"dsv2-session={CANARY}"}).get("/api/account/me"))
    made = browser.post("/api/account/keys", {"name": "k"}).json()
    answers.append(browser.get("/api/account/keys"))
    session = browser.http.cookies["dsv2-session"]
    with store.write() as db:
        _, code = codes.create_code(db, amount=1, actor="test", now=1)
    answers.append(browser.post("/api/account/redeem", {"code": code}))
    answers.append(browser.post("/api/account/redeem", {"code": code}))
    broken = _break(site)
    answers.append(browser.post("/api/account/keys", {"name": CANARY}))
    answers.append(browser.put("/api/account/password", change))
    broken()
    secrets = (CANARY, password, made["secret"], person.secret, session, code, "ab" * 5)
    answered = "".join(answer.text for answer in answers)
    logged = caplog.text + "".join(capsys.readouterr())
    assert logged
    for secret in secrets:
        assert secret not in answered
        # httpx logs what the test itself asks for; it asks for no secret by its address
        assert secret not in logged


def _break(site: Site) -> Any:
    """Let the writer fail in a way that nobody foresaw, with whatever it was given."""
    write = site.office.writer.write

    async def fail(work: Any) -> Any:
        raise UnavailableError(f"the database is not available: {CANARY}")

    site.office.writer.write = fail  # type: ignore[method-assign]

    def mend() -> None:
        site.office.writer.write = write  # type: ignore[method-assign]

    return mend


def test_an_unforeseen_error_answers_nothing_of_itself(
    site: Site, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    browser = site.logged_in(add_person(store))

    async def fail(work: Any) -> Any:
        raise ZeroDivisionError(CANARY)

    site.office.writer.write = fail  # type: ignore[method-assign]
    answer = browser.post("/api/account/keys", {"name": "k"})
    assert answer.status_code == 500
    assert CANARY not in answer.text and "ZeroDivision" not in answer.text
