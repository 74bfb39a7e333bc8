"""What administrators do: users, money, prices, codes, settings, records."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsv2.service.store import Store, reservations, users
from dsv2.service.store.prices import Usage
from dsv2.service.store.reservations import Ask
from tests.service.platform.site import PASSWORD, Client, Person, Site, add_person


@pytest.fixture
def person(store: Store) -> Person:
    return add_person(store, paid=1000)


@pytest.fixture
def admin(site: Site, store: Store) -> Client:
    return site.logged_in(add_person(store, "root@example.org", role="admin"))


def test_users_are_searched_by_part_of_their_address(
    admin: Client, store: Store, person: Person
) -> None:
    add_person(store, "100%_sure@example.org")
    add_person(store, "100xxsure@example.org")

    def found(search: str) -> list[str]:
        answer = admin.get("/api/admin/users", params={"search": search})
        return [user["email"] for user in answer.json()["users"]]

    assert len(found("")) == 4
    assert found("A@EXAMPLE") == ["a@example.org"]
    assert found("100%_") == ["100%_sure@example.org"]
    assert found("' OR 1=1 --") == []
    page = admin.get("/api/admin/users?limit=2&offset=2").json()["users"]
    assert len(page) == 2


def test_a_suspended_user_is_out_at_once(site: Site, admin: Client, person: Person) -> None:
    """F50."""
    browser, program = site.logged_in(person), site.client(key=person.secret)
    path = f"/api/admin/users/{person.id}/status"
    assert admin.put(path, {"status": "suspended"}).json()["status"] == "suspended"
    assert browser.get("/api/account/me").status_code == 401
    assert program.get("/user/balance").status_code == 401
    admin.put(path, {"status": "active"})
    assert program.get("/user/balance").status_code == 200


def test_a_user_becomes_an_administrator_at_once_and_no_longer_is_one(
    site: Site, admin: Client, person: Person
) -> None:
    browser = site.logged_in(person)
    path = f"/api/admin/users/{person.id}/role"
    assert browser.get("/api/admin/users").status_code == 403
    admin.put(path, {"role": "admin"})
    assert browser.get("/api/admin/users").status_code == 200
    admin.put(path, {"role": "user"})
    assert browser.get("/api/admin/users").status_code == 403


def test_administrators_do_not_lock_themselves_out(admin: Client) -> None:
    own = admin.get("/api/account/me").json()["id"]
    assert admin.put(f"/api/admin/users/{own}/role", {"role": "user"}).status_code == 409
    body = {"status": "suspended"}
    assert admin.put(f"/api/admin/users/{own}/status", body).status_code == 409


def test_users_are_made_by_hand(site: Site, admin: Client) -> None:
    body = {"email": "hand@example.org", "password": PASSWORD, "role": "admin"}
    assert admin.post("/api/admin/users", body).status_code == 201
    assert admin.post("/api/admin/users", body).status_code == 409
    made = site.browser()
    assert made.log_in("hand@example.org").json()["role"] == "admin"
    assert made.get("/api/account/balance").json()["granted"] == 0


def test_money_is_moved_once_for_a_cause(admin: Client, person: Person, store: Store) -> None:
    other = add_person(store, "b@example.org")
    path = f"/api/admin/users/{person.id}/deposit"
    body = {"amount": 500, "cause": "receipt 7", "memo": "by bank"}
    first, again = admin.post(path, body).json(), admin.post(path, body).json()
    assert (first["moved"], again["moved"]) == (True, False)
    assert again["balance"]["paid"] == 1500
    assert admin.post(path, body | {"amount": 501}).status_code == 409
    elsewhere = f"/api/admin/users/{other.id}/deposit"
    assert admin.post(elsewhere, body).status_code == 409
    granted = admin.post(path, {"amount": 3, "book": "granted"}).json()
    assert granted["balance"]["granted"] == 3
    transfers = admin.get(f"/api/admin/users/{person.id}/transfers").json()["transfers"]
    assert transfers[1]["memo"] == "by bank" and transfers[1]["actor"].startswith("user_")


def test_no_more_is_withdrawn_than_there_is(admin: Client, person: Person) -> None:
    path = f"/api/admin/users/{person.id}/withdraw"
    refused = admin.post(path, {"amount": 1001})
    assert refused.status_code == 402
    assert refused.json()["error"]["message"] == (
        "Insufficient Balance: to be taken out are USD 0.001001, USD 0.001 are available"
    )
    granted = admin.post(path, {"amount": 1, "book": "granted"}).json()["error"]["message"]
    assert granted.endswith("USD 0.000001, USD 0.00 are available")
    assert admin.post(path, {"amount": 1000}).json()["balance"]["total"] == 0
    for amount in (0, -5, 1.5, "7"):
        assert admin.post(path, {"amount": amount}).status_code == 422


def test_a_request_is_refunded_once(admin: Client, person: Person, store: Store) -> None:
    with store.write() as db:
        ask = Ask("r1", person.account_id, person.key_id, "tiny", 10, 5)
        reservations.reserve(db, ask, owner="test", now=1, expires_at=2)
        reservations.settle(db, "r1", Usage(10, 0, 5), finish="stop", now=1)
    for _ in range(2):
        assert admin.post("/api/admin/requests/r1/refund").json()["refunded"] == 200
    balance = admin.get(f"/api/admin/users/{person.id}").json()["balance"]
    assert balance["total"] == 1000
    moved = admin.get(f"/api/admin/users/{person.id}/transfers").json()["transfers"]
    assert [(row["kind"], row["model"]) for row in moved[:3]] == [
        ("refund", "tiny"), ("charge", "tiny"), ("top_up", None),
    ]  # fmt: skip
    assert admin.post("/api/admin/requests/r2/refund").status_code == 404
    assert admin.post("/api/admin/verify").json() == {"sound": True, "problems": []}


def test_a_users_key_is_revoked_and_only_theirs(
    site: Site, admin: Client, person: Person, store: Store
) -> None:
    other = add_person(store, "b@example.org")
    wrong = f"/api/admin/users/{other.id}/keys/{person.key_id}"
    assert admin.delete(wrong).status_code == 404
    right = f"/api/admin/users/{person.id}/keys/{person.key_id}"
    assert admin.delete(right).json()["revoked_at"] is not None
    assert site.client(key=person.secret).get("/user/balance").status_code == 401


def test_prices_follow_each_other(admin: Client) -> None:
    body = {"model": "tiny", "input": 7, "cached_input": 1, "output": 9}
    assert admin.put("/api/admin/prices", body).json()["version"] == 2
    assert len(admin.get("/api/admin/prices").json()["prices"]) == 2
    assert admin.get("/api/account/prices").json()["prices"][0]["input"] == 7
    assert admin.put("/api/admin/prices", body | {"cached_input": 8}).status_code == 422


def test_codes_are_made_redeemed_and_revoked(site: Site, admin: Client, person: Person) -> None:
    made = admin.post("/api/admin/codes", {"amount": 70, "max_uses": 5, "book": "paid"}).json()
    browser = site.logged_in(person)
    redeemed = browser.post("/api/account/redeem", {"code": made["secret"]}).json()
    assert (redeemed["amount"], redeemed["paid"]) == (70, 1070)
    [listed] = admin.get("/api/admin/codes").json()["codes"]
    assert listed["uses"] == 1 and "secret" not in listed
    assert admin.delete(f"/api/admin/codes/{made['id']}").json()["revoked_at"] is not None
    other = site.logged_in(add_person(site.office.store, "b@example.org"))
    assert other.post("/api/account/redeem", {"code": made["secret"]}).status_code == 404


def test_settings_are_changed_one_by_one(admin: Client) -> None:
    changed = admin.put("/api/admin/settings/currency", {"value": "EUR"}).json()
    assert changed["currency"] == "EUR" == admin.get("/api/admin/settings").json()["currency"]
    assert admin.put("/api/admin/settings/currency", {"value": 5}).status_code == 422
    assert admin.put("/api/admin/settings/no_such", {"value": 5}).status_code == 422
    assert admin.put("/api/admin/settings/max_concurrent", {"value": 4}).status_code == 200


def test_the_log_says_who_did_what(admin: Client, person: Person) -> None:
    own = admin.get("/api/account/me").json()["id"]
    admin.put(f"/api/admin/users/{person.id}/status", {"status": "suspended"})
    page = admin.get(f"/api/admin/audit?subject={person.id}&limit=1").json()
    [entry] = page["entries"]
    assert (entry["actor"], entry["action"]) == (own, "user.status")
    assert (entry["actor_email"], entry["subject_email"]) == ("root@example.org", person.email)
    older = admin.get(f"/api/admin/audit?subject={person.id}&before={page['next']}").json()
    assert [entry["action"] for entry in older["entries"]] == ["user.create"]
    assert older["entries"][0]["actor_email"] is None  # the system, or somebody who is gone
    money = {"amount": 5, "memo": "by bank"}
    admin.post(f"/api/admin/users/{person.id}/deposit", money)
    admin.delete(f"/api/admin/users/{person.id}/keys/{person.key_id}")
    admin.put("/api/admin/settings/max_concurrent", {"value": 4})
    page = admin.get("/api/admin/audit?limit=3").json()
    assert [(entry["action"], entry["subject_email"]) for entry in page["entries"]] == [
        ("setting.change", None), ("key.revoke", person.email), ("account.top_up", person.email)
    ]  # fmt: skip


def test_an_export_lies_beside_the_data_and_holds_no_secrets(
    admin: Client, person: Person, folder: Path
) -> None:
    made = admin.post("/api/admin/export").json()
    exported = Path(made["folder"])
    assert exported.parent == folder / "exports"
    assert made["rows"]["users"] == 2
    content = "".join(file.read_text("utf-8") for file in exported.iterdir())
    assert "$argon2" not in content and "token_hash" not in content


def test_usage_of_everybody_or_of_one(admin: Client, person: Person, store: Store) -> None:
    other = add_person(store, "b@example.org", paid=1000)
    with store.write() as db:
        for number, one in enumerate((person, other)):
            ask = Ask(f"r{number}", one.account_id, one.key_id if number else None, "tiny", 1, 1)
            reservations.reserve(db, ask, owner="test", now=1, expires_at=2)
            reservations.settle(db, f"r{number}", Usage(1, 0, 1), finish="stop", now=1)
    days = "first=1970-01-01&last=1970-01-02"
    found = admin.get(f"/api/admin/usage?{days}").json()
    assert len(found["usage"]) == 2
    emails = {person.account_id: person.email, other.account_id: other.email}
    assert found["emails"] == emails | {other.key_id: other.email}
    assert found["key_names"] == {other.key_id: "first"}
    one = admin.get(f"/api/admin/usage?{days}&account={person.account_id}").json()["usage"]
    assert [row["account_id"] for row in one] == [person.account_id]
    assert admin.get(f"/api/admin/usage.csv?{days}").text.count("\n") == 3
    assert len(admin.get("/api/admin/requests").json()["requests"]) == 2


def test_no_user_is_no_user(admin: Client, store: Store) -> None:
    for path in ("", "/transfers"):
        assert admin.get(f"/api/admin/users/user_0{path}").status_code == 404
    body = {"amount": 1}
    assert admin.post("/api/admin/users/user_0/deposit", body).status_code == 404
    with store.read() as db:
        assert len(users.list_users(db)) == 1
