"""Sign-up, log-in and sessions: F47, F54, F60, F61."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dsv2.service.platform.office import Office
from dsv2.service.store import Store, ledger, users
from dsv2.service.store.settings import change_setting
from tests.service.platform.site import ORIGIN, PASSWORD, Site, add_person

ME = "/api/account/me"


def sign_up(site: Site, email: str = "new@example.org", **more: Any) -> Any:
    browser = site.browser()
    body = {"email": email, "password": PASSWORD} | more
    return browser, browser.post("/api/account/sign-up", body)


def test_signing_up_makes_an_account_with_the_grant_and_a_session(site: Site) -> None:
    browser, answer = sign_up(site)
    assert answer.status_code == 201
    assert browser.get(ME).json()["email"] == "new@example.org"
    assert browser.get("/api/account/balance").json()["granted"] == 5_000_000


def test_the_cookie_is_for_browsers_alone(site: Site) -> None:
    _, answer = sign_up(site)
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("dsv2-session=session-")
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Path=/" in cookie


def test_over_tls_the_cookie_is_bound_to_the_host(store: Store, folder: Any) -> None:
    site = Site(Office(store, folder=folder, secure=True))
    _, answer = sign_up(site)
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-dsv2-session=session-")
    assert "Secure" in cookie and "Domain" not in cookie
    site.close()


def test_an_address_signs_up_once_however_often_it_is_tried_at_a_time(
    site: Site, store: Store
) -> None:
    """F47."""
    browser = site.browser()
    body = {"email": "new@example.org", "password": PASSWORD}

    async def try_all() -> list[int]:
        tries = [browser.http.post("/api/account/sign-up", json=body) for _ in range(8)]
        return [answer.status_code for answer in await asyncio.gather(*tries)]

    assert sorted(site.run(try_all())) == [201] + [409] * 7
    with store.read() as db:
        assert len(users.list_users(db)) == 1
        user = users.list_users(db)[0]
        assert ledger.balance(db, user.account_id).granted == 5_000_000


def test_sign_ups_of_one_address_are_few(site: Site) -> None:
    """F47: no farming of grants; another network is not affected."""
    answers = [sign_up(site, f"u{i}@example.org")[1] for i in range(11)]
    assert [answer.status_code for answer in answers] == [201] * 10 + [429]
    assert int(answers[-1].headers["Retry-After"]) > 60
    other = site.browser(client="10.0.0.7")
    body = {"email": "z@example.org", "password": PASSWORD}
    assert other.post("/api/account/sign-up", body).status_code == 201


def test_neighbours_in_an_ipv6_network_count_as_one(site: Site) -> None:
    """F47: a home has 2^64 addresses."""
    statuses = [
        site.browser(client=f"2001:db8::{i + 1:x}")
        .post("/api/account/sign-up", {"email": f"u{i}@example.org", "password": PASSWORD})
        .status_code
        for i in range(11)
    ]
    assert statuses == [201] * 10 + [429]


def test_closed_sign_up_is_refused(site: Site, store: Store) -> None:
    with store.write() as db:
        change_setting(db, "sign_up_open", False, actor="test", now=1)
    assert sign_up(site)[1].status_code == 403


@pytest.mark.parametrize(
    "more", [{"role": "admin"}, {"unlimited": True}, {"balance": 1}, {"user_id": "user_1"}]
)
def test_nobody_gives_themselves_what_is_not_theirs(site: Site, store: Store, more: Any) -> None:
    """F60."""
    assert sign_up(site, **more)[1].status_code == 422
    with store.read() as db:
        assert users.list_users(db) == []


def test_wrong_passwords_and_unknown_addresses_get_one_answer(site: Site, store: Store) -> None:
    """F54."""
    add_person(store)
    suspended = add_person(store, "b@example.org")
    with store.write() as db:
        users.set_status(db, suspended.id, "suspended", actor="test", now=1)
    answers = [
        site.browser().log_in("a@example.org", "wrong password"),
        site.browser().log_in("nobody@example.org", "wrong password"),
        site.browser().log_in("no address", "wrong password"),
        site.browser().log_in("b@example.org"),
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert len({answer.content for answer in answers}) == 1
    assert not any("set-cookie" in answer.headers for answer in answers)


def test_guessing_is_slowed_down_by_account_and_address(site: Site, store: Store) -> None:
    """F54: also for addresses that nobody has, and not for other people."""
    add_person(store)
    for email in ("a@example.org", "nobody@example.org"):
        statuses = [site.browser().log_in(email, "wrong password").status_code for _ in range(11)]
        assert statuses == [401] * 10 + [429]
    assert site.browser().log_in("A@Example.org ").status_code == 429
    assert site.browser(client="10.0.0.7").log_in("a@example.org").status_code == 200


def test_logging_in_rightly_uses_up_no_attempts(site: Site, store: Store) -> None:
    person = add_person(store)
    assert [site.browser().log_in(person.email).status_code for _ in range(15)] == [200] * 15


def test_one_address_cannot_guess_through_many_accounts(site: Site) -> None:
    """F54."""
    statuses = [site.browser().log_in(f"u{i}@example.org", "x").status_code for i in range(101)]
    assert statuses == [401] * 100 + [429]


def test_a_log_in_takes_another_session_than_was_there(site: Site, store: Store) -> None:
    """F54: a session that somebody planted is not the one that is logged in."""
    person = add_person(store)
    browser = site.browser()
    browser.http.cookies.set("dsv2-session", "session-planted", domain="localhost.local")
    browser.log_in(person.email)
    planted = site.client(headers={"Cookie": "dsv2-session=session-planted"})
    assert planted.get(ME).status_code == 401
    first = browser.http.cookies["dsv2-session"]
    browser.log_in(person.email)
    assert browser.http.cookies["dsv2-session"] != first
    old = site.client(headers={"Cookie": f"dsv2-session={first}"})
    assert old.get(ME).status_code == 401
    assert browser.get(ME).status_code == 200


def test_logging_out_ends_the_session_for_the_server_too(site: Site, store: Store) -> None:
    browser = site.logged_in(add_person(store))
    token = browser.http.cookies["dsv2-session"]
    assert browser.post("/api/account/log-out").status_code == 204
    assert "dsv2-session" not in browser.http.cookies
    assert site.client(headers={"Cookie": f"dsv2-session={token}"}).get(ME).status_code == 401


def test_logging_out_everywhere_ends_all_sessions(site: Site, store: Store) -> None:
    """F54."""
    person = add_person(store)
    here, there = site.logged_in(person), site.logged_in(person)
    assert here.post("/api/account/log-out-everywhere").status_code == 204
    assert there.get(ME).status_code == 401


def test_another_password_needs_the_old_one_and_ends_other_sessions(
    site: Site, store: Store
) -> None:
    person = add_person(store)
    here, there = site.logged_in(person), site.logged_in(person)
    body = {"old_password": "wrong password", "new_password": "battery staple"}
    assert here.put("/api/account/password", body).status_code == 401
    body["old_password"] = PASSWORD
    assert here.put("/api/account/password", body).status_code == 204
    assert here.get(ME).status_code == 200
    assert there.get(ME).status_code == 401
    assert site.browser().log_in(person.email).status_code == 401
    assert site.browser().log_in(person.email, "battery staple").status_code == 200


def test_guessing_the_old_password_is_slowed_down(site: Site, store: Store) -> None:
    browser = site.logged_in(add_person(store))
    body = {"old_password": "wrong password", "new_password": "battery staple"}
    statuses = [browser.put("/api/account/password", body).status_code for _ in range(11)]
    assert statuses == [401] * 10 + [429]


CROSS_SITE = [
    {"Origin": "https://evil.com"},
    {"Origin": "null"},
    {"Origin": "http://localhost:9000"},
    {"Origin": "http://sub.localhost:8000"},
    {"Origin": "http://localhost:8000.evil.com"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": ORIGIN, "Sec-Fetch-Site": "same-site"},
    {"Origin": "https://evil.com", "Sec-Fetch-Site": "same-origin"},
    {},
]


@pytest.mark.parametrize("headers", CROSS_SITE)
def test_other_sites_pages_change_nothing(
    site: Site, store: Store, headers: dict[str, str]
) -> None:
    """F61: with the cookie of somebody who is logged in."""
    person = add_person(store)
    token = site.logged_in(person).http.cookies["dsv2-session"]
    page = site.client(headers={"Cookie": f"dsv2-session={token}"} | headers)
    answers = [
        page.post("/api/account/keys", {"name": "stolen"}),
        page.post("/api/account/keys", content='{"name": "stolen"}'),
        page.post("/api/account/log-out"),
        page.post("/api/account/log-out-everywhere"),
        page.delete(f"/api/account/keys/{person.key_id}"),
        page.log_in(person.email),
    ]
    assert {answer.status_code for answer in answers} == {403}
    assert {answer.json()["error"]["code"] for answer in answers} == {"cross_site"}
    assert len(page.get("/api/account/keys").json()["keys"]) == 1


def test_json_in_the_clothes_of_a_form_is_not_read(site: Site, store: Store) -> None:
    """F61: what a form can send without asking first."""
    browser = site.logged_in(add_person(store))
    answer = browser.ask(
        "POST",
        "/api/account/keys",
        content='{"name": "stolen"}',
        headers={"Content-Type": "text/plain"},
    )
    assert answer.status_code in (400, 422)
