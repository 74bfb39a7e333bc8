"""Keys, money and usage of members: F47, F59, F60, F64."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from dsv2.service.serving import Caller
from dsv2.service.store import Store, codes, ledger
from dsv2.service.store.settings import change_setting
from tests.service.platform.site import Client, Person, Site, add_person


@pytest.fixture
def person(store: Store) -> Person:
    return add_person(store, paid=1_000_000, granted=230_000)


@pytest.fixture
def browser(site: Site, person: Person) -> Client:
    return site.logged_in(person)


def use(site: Site, person: Person, request_id: str = "r1", key: bool = True) -> None:
    async def work() -> None:
        caller = Caller(person.id, person.account_id, "user", person.key_id if key else None)
        ticket = await site.office.admission.admit(
            caller, request_id=request_id, model="tiny", prompt_tokens=10, completion_tokens=5
        )
        ticket.note(10, 4, 3)
        await ticket.close("stop")

    site.run(work())


def test_a_key_is_shown_once_and_works(site: Site, browser: Client) -> None:
    answer = browser.post("/api/account/keys", {"name": "mine", "max_concurrent": 2})
    made = answer.json()
    secret = made.pop("secret")
    assert answer.status_code == 201 and secret.startswith("sk-")
    assert made["prefix"] == secret[:7] and made["max_concurrent"] == 2
    assert site.client(key=secret).get("/user/balance").status_code == 200
    assert browser.get(f"/api/account/keys/{made['id']}").json() == made
    listed = browser.get("/api/account/keys").text
    assert secret not in listed and secret[7:] not in listed


def test_some_limits_change_and_the_others_stay(browser: Client) -> None:
    body = {"name": "mine", "models": ["tiny"], "budget": 5, "budget_period": "day"}
    path = f"/api/account/keys/{browser.post('/api/account/keys', body).json()['id']}"
    changed = browser.patch(path, {"budget": None, "requests_per_minute": 3}).json()
    assert (changed["models"], changed["budget"], changed["budget_period"]) == (
        ["tiny"], None, "day",
    )  # fmt: skip
    assert changed["requests_per_minute"] == 3
    renamed = browser.patch(path, {"name": "ours"}).json()
    assert (renamed["name"], renamed["requests_per_minute"]) == ("ours", 3)
    assert browser.patch(path, {"name": ""}).status_code == 422
    assert browser.get(path).json()["name"] == "ours"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "\ud800"}, "name"),
        ({}, "name"),
        ({"name": "a", "budget": -1}, "budget"),
        ({"name": "a", "budget": 1.5}, "budget"),
        ({"name": "a", "budget": True}, "budget"),
        ({"name": "a", "budget": 10**30}, "budget"),
        ({"name": "a", "budget_period": "week"}, "budget_period"),
        ({"name": "a", "max_concurrent": 0}, "max_concurrent"),
        ({"name": "a", "models": []}, "models"),
        ({"name": "a", "models": [""]}, "models[0]"),
        ({"name": "a", "account_id": "acct_1"}, "account_id"),
        ({"name": "a", "user_id": "user_1"}, "user_id"),
        ({"name": "a", "spent": -5}, "spent"),
        ({"name": "a", "secret": "sk-mine"}, "secret"),
    ],
)
def test_a_key_that_may_not_be_is_refused_by_name(
    browser: Client, body: dict[str, Any], param: str
) -> None:
    """F60."""
    content = json.dumps(body)
    answer = browser.ask(
        "POST", "/api/account/keys", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == param
    assert len(browser.get("/api/account/keys").json()["keys"]) == 1


def test_what_is_anothers_is_not_found(site: Site, store: Store, person: Person) -> None:
    """F59: with the same words as what is nobody's."""
    other = site.logged_in(add_person(store, "other@example.org", paid=5))
    path = f"/api/account/keys/{person.key_id}"
    nobodys = other.get("/api/account/keys/key_0").json()["error"]["message"]
    for answer in (
        other.get(path),
        other.patch(path, {"budget": 1}),
        other.patch(path, {"name": "x"}),
        other.delete(path),
    ):
        assert answer.status_code == 404
        assert answer.json()["error"]["message"].replace(person.key_id, "key_0") == nobodys
    assert site.client(key=person.secret).get("/user/balance").status_code == 200


def test_nothing_of_others_is_in_what_one_sees(site: Site, store: Store, person: Person) -> None:
    """F59: also when it is asked for by name."""
    use(site, person)
    other = site.logged_in(add_person(store, "other@example.org", paid=5))
    assert other.get("/api/account/requests").json() == {"requests": []}
    for query in ("", f"?key={person.key_id}", f"?account_id={person.account_id}"):
        assert other.get(f"/api/account/usage{query}").json() == {"usage": []}
        assert other.get(f"/api/account/usage.csv{query}").text.count("\n") == 1
    transfers = other.get("/api/account/transfers?before=1000000").json()["transfers"]
    assert [row["moves"]["paid"] for row in transfers] == [5]


@pytest.mark.parametrize(
    "wild", ["..%2f..%2fetc%2fpasswd", "' OR '1'='1", "%00", "key_1;DROP TABLE users", "%ff"]
)
def test_wild_ids_find_nothing(browser: Client, wild: str) -> None:
    """F51, F64."""
    answer = browser.get(f"/api/account/keys/{wild}")
    assert answer.status_code in (404, 422)
    assert browser.get("/api/account/keys").status_code == 200


def test_the_balance_in_deepseeks_form(site: Site, person: Person) -> None:
    for path in ("/user/balance", "/v1/user/balance"):
        assert site.client(key=person.secret).get(path).json() == {
            "is_available": True,
            "balance_infos": [
                {
                    "currency": "USD",
                    "total_balance": "1.23",
                    "granted_balance": "0.23",
                    "topped_up_balance": "1.00",
                }
            ],
        }


def test_the_balance_is_in_the_operators_currency_and_never_rounded_up(
    site: Site, store: Store
) -> None:
    poor = add_person(store, paid=9_999, granted=19_999)
    with store.write() as db:
        change_setting(db, "currency", "CNY", actor="test", now=1)
    [info] = site.client(key=poor.secret).get("/user/balance").json()["balance_infos"]
    assert info == {
        "currency": "CNY", "total_balance": "0.01", "granted_balance": "0.01",
        "topped_up_balance": "0.00",
    }  # fmt: skip
    broke = add_person(store, "b@example.org")
    assert not site.client(key=broke.secret).get("/user/balance").json()["is_available"]


def test_a_balance_counts_what_is_held(site: Site, person: Person, browser: Client) -> None:
    found = browser.get("/api/account/balance").json()
    assert (found["granted"], found["paid"], found["held"]) == (230_000, 1_000_000, 0)
    use(site, person)
    found = browser.get("/api/account/balance").json()
    assert (found["total"], found["spent"]) == (1_230_000 - 124, 124)


def test_a_code_is_redeemed_once_however_many_try(site: Site, store: Store) -> None:
    """F47: by one account as by many."""
    with store.write() as db:
        _, secret = codes.create_code(db, amount=50, actor="test", now=1, max_uses=2)
    browsers = [site.logged_in(add_person(store, f"u{i}@example.org")) for i in range(4)]

    async def work() -> list[int]:
        tries = [
            browser.http.post("/api/account/redeem", json={"code": secret})
            for browser in browsers
            for _ in range(3)
        ]
        return [answer.status_code for answer in await asyncio.gather(*tries)]

    statuses = site.run(work())
    assert statuses.count(200) == 2 and set(statuses) <= {200, 404, 409}
    totals = [browser.get("/api/account/balance").json()["total"] for browser in browsers]
    assert sorted(totals) == [0, 0, 50, 50]


def test_codes_cannot_be_guessed_fast(browser: Client) -> None:
    """F47."""
    statuses = [
        browser.post("/api/account/redeem", {"code": f"code-{i}"}).status_code for i in range(11)
    ]
    assert statuses == [404] * 10 + [429]


def test_transfers_come_in_pages(site: Site, store: Store, person: Person) -> None:
    browser = site.logged_in(person)
    with store.write() as db:
        for number in range(5):
            ledger.deposit(
                db, person.account_id, book="paid", amount=1 + number, cause=f"c{number}",
                actor="user_secret", now=2,
            )  # fmt: skip
    seen: list[int] = []
    path = "/api/account/transfers?limit=3"
    page = browser.get(path).json()
    while True:
        seen += [row["moves"].get("paid", 0) for row in page["transfers"]]
        if page["next"] is None:
            break
        page = browser.get(f"{path}&before={page['next']}").json()
    assert seen[:5] == [5, 4, 3, 2, 1] and len(seen) == 7
    assert "user_secret" not in browser.get("/api/account/transfers").text


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "before=-1", "before=9999999999999999999999"]
)
def test_pages_are_bounded(browser: Client, query: str) -> None:
    assert browser.get(f"/api/account/transfers?{query}").status_code == 400


def test_usage_is_summed_by_day_key_and_model(site: Site, person: Person, browser: Client) -> None:
    use(site, person)
    use(site, person, "r2")
    use(site, person, "r3", key=False)
    rows = browser.get("/api/account/usage").json()["usage"]
    assert [(row["key_id"], row["requests"], row["charge"]) for row in rows] == [
        ("", 1, 124),
        (person.key_id, 2, 248),
    ]
    only = browser.get(f"/api/account/usage?key={person.key_id}").json()["usage"]
    assert only == rows[1:]
    assert browser.get("/api/account/usage?model=other").json()["usage"] == []
    assert browser.get("/api/account/usage?first=2020-01-01&last=2020-01-31").json()["usage"] == []
    assert browser.get("/api/account/usage?first=soon").status_code == 422


def test_usage_for_spreadsheets(site: Site, person: Person, browser: Client) -> None:
    use(site, person)
    answer = browser.get("/api/account/usage.csv")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"].startswith("attachment")
    names, row = answer.text.splitlines()
    assert names.startswith("day,account_id,key_id,model,requests,")
    assert row.endswith(",tiny,1,10,4,3,124")


def test_requests_are_listed_with_what_they_took(
    site: Site, person: Person, browser: Client
) -> None:
    for number in range(3):
        use(site, person, f"r{number}")
    rows = browser.get("/api/account/requests?limit=2").json()["requests"]
    assert len(rows) == 2 and rows[0]["finish"] == "stop" and rows[0]["completion_tokens"] == 3
    rest = browser.get("/api/account/requests?limit=2&offset=2").json()["requests"]
    assert len({row["id"] for row in rows + rest}) == 3
    assert browser.get("/api/account/requests.csv").text.count("\n") == 4


def test_prices_are_the_latest(browser: Client) -> None:
    [price] = browser.get("/api/account/prices").json()["prices"]
    assert (price["model"], price["input"]) == ("tiny", 10_000_000)
