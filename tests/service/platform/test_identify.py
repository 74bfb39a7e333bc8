"""Keys, the guest and hosts: F50, F51, F56, F61, F62."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsv2.service.platform.office import Office
from dsv2.service.settings import ServeSettings
from dsv2.service.store import Store, keys, ledger, users
from tests.service.platform.site import Client, Site, add_person, make_app

BALANCE = "/v1/user/balance"


def cookie_of(browser: Client) -> str:
    return f"dsv2-session={browser.http.cookies['dsv2-session']}"


def test_a_key_comes_as_bearer_or_in_the_header_of_anthropics_clients(
    site: Site, store: Store
) -> None:
    secret = add_person(store).secret
    assert site.client(key=secret).get(BALANCE).status_code == 200
    assert site.client(headers={"x-api-key": secret}).get(BALANCE).status_code == 200
    assert site.client(headers={"authorization": f"bearer  {secret}"}).get(BALANCE).is_success


WRONG: list[dict[str, str]] = [
    {},
    {"Authorization": "Bearer sk-" + "0" * 64},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer "},
    {"Authorization": "Basic c2stYTpi"},
    {"Authorization": "Bearer ' OR '1'='1"},
    {"Authorization": "Bearer sk-'; DROP TABLE api_keys; --"},
    {"Authorization": "Bearer sk-%00 UNION SELECT * FROM users"},
    {"Authorization": "Bearer sk-" + "x" * 5000},
    {"x-api-key": "' OR 1=1 --"},
    {"Cookie": "dsv2-session=' OR '1'='1"},
]


@pytest.mark.parametrize("headers", WRONG)
def test_whatever_is_wrong_the_answer_has_one_shape(
    site: Site, store: Store, headers: dict[str, str]
) -> None:
    """F51."""
    add_person(store)
    for path in (BALANCE, "/api/account/me", "/api/admin/users"):
        answer = site.client(headers=headers).get(path)
        assert answer.status_code == 401
        assert answer.json()["error"] == {
            "message": "Authentication fails: the API key or the session is not valid",
            "type": "authentication_error",
            "param": None,
            "code": "invalid_api_key",
        }
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    with store.read() as db:
        assert len(users.list_users(db)) == 1


def test_two_keys_in_one_request_are_none(site: Site, store: Store) -> None:
    secret = add_person(store).secret
    client = site.client()
    doubled = [("Authorization", f"Bearer {secret}"), ("Authorization", "Bearer sk-other")]
    assert client.get(BALANCE, headers=doubled).status_code == 401


def test_bytes_that_are_no_text_are_no_key(site: Site) -> None:
    """F51."""
    answer = site.client().get(BALANCE, headers=[(b"Authorization", b"Bearer sk-\xff\xfe\xed\xa0")])
    assert answer.status_code == 401


def test_a_revoked_key_opens_nothing_from_the_next_request_on(site: Site, store: Store) -> None:
    """F50: also where another process has revoked it."""
    person = add_person(store)
    program = site.client(key=person.secret)
    assert program.get(BALANCE).status_code == 200
    with store.write() as db:
        keys.revoke_key(db, person.account_id, person.key_id, actor="test", now=2)
    assert program.get(BALANCE).status_code == 401


@pytest.mark.parametrize("what", ["user", "account", "expiry"])
def test_a_suspended_user_or_account_and_an_old_key_open_nothing(
    site: Site, store: Store, what: str
) -> None:
    """F50."""
    person = add_person(store)
    browser, program = site.logged_in(person), site.client(key=person.secret)
    with store.write() as db:
        if what == "user":
            users.set_status(db, person.id, "suspended", actor="test", now=2)
        elif what == "account":
            ledger.set_status(db, person.account_id, "suspended", actor="test", now=2)
        else:
            limits = keys.KeyLimits(expires_at=1)
            keys.change_limits(db, person.account_id, person.key_id, limits, actor="test", now=2)
    assert program.get(BALANCE).status_code == 401
    if what == "user":
        assert browser.get("/api/account/me").status_code == 401


def test_programs_paths_look_at_no_cookie(site: Site, store: Store) -> None:
    """F61."""
    browser = site.logged_in(add_person(store))
    assert browser.get("/api/account/balance").status_code == 200
    for path in (BALANCE, "/user/balance"):
        assert browser.get(path).status_code == 401


def test_the_sites_paths_take_no_key(site: Site, store: Store) -> None:
    """A key with a budget could otherwise make one without."""
    program = site.client(key=add_person(store, role="admin").secret)
    for path in ("/api/account/keys", "/api/admin/users"):
        assert program.get(path).status_code == 401


def test_an_unreadable_database_is_told_from_a_wrong_key(site: Site, store: Store) -> None:
    secret = add_person(store).secret
    with store.write() as db:
        db.exec_driver_sql("ALTER TABLE api_keys RENAME TO gone")
    try:
        answer = site.client(key=secret).get(BALANCE)
    finally:
        with store.write() as db:
            db.exec_driver_sql("ALTER TABLE gone RENAME TO api_keys")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert "api_keys" not in answer.text


@pytest.fixture
def guest_site(store: Store, folder: Path) -> Any:
    site = Site(Office(store, folder=folder, guest=True))
    yield site
    site.close()


def test_somebody_on_this_machine_is_the_guest(guest_site: Site, store: Store) -> None:
    """F56."""
    me = guest_site.client().get("/api/account/me").json()
    assert me["guest"] and me["role"] == "user"
    assert guest_site.client().get(BALANCE).json()["is_available"]
    assert guest_site.client(key="EMPTY").get(BALANCE).status_code == 200
    for base in ("http://127.0.0.1:8000", "http://[::1]:8000", "http://LOCALHOST"):
        assert guest_site.client(base=base).get(BALANCE).status_code == 200


def test_without_leave_there_is_no_guest(site: Site) -> None:
    assert site.client().get(BALANCE).status_code == 401


OTHERS: list[dict[str, Any]] = [
    {"base": "http://evil.com:8000"},
    {"base": "http://127.0.0.1.evil.com"},
    {"base": "http://192.168.0.2:8000"},
    {"client": "192.168.0.3"},
    {"headers": {"X-Forwarded-For": "1.2.3.4"}},
    {"headers": {"Forwarded": "for=1.2.3.4"}},
    {"headers": {"Origin": "https://evil.com"}},
    {"headers": {"Origin": "null"}},
    {"headers": {"Sec-Fetch-Site": "cross-site"}},
    {"key": "sk-" + "0" * 64},
]


@pytest.mark.parametrize("options", OTHERS)
def test_others_are_not_the_guest(guest_site: Site, options: dict[str, Any]) -> None:
    """F56: other machines, rebound names, proxies, pages of other sites, wrong keys."""
    assert guest_site.client(**options).get(BALANCE).status_code == 401


def test_the_guest_can_leave_nothing_behind(guest_site: Site, store: Store) -> None:
    page = guest_site.browser()
    answers = [
        page.post("/api/account/keys", {"name": "for later"}),
        page.put("/api/account/password", {"old_password": "", "new_password": "12345678"}),
        page.post("/api/account/redeem", {"code": "code-1"}),
        page.post("/api/account/log-out-everywhere"),
    ]
    assert {answer.json()["error"]["code"] for answer in answers} == {"guest"}
    assert page.get("/api/admin/users").status_code == 403


def test_a_guest_who_is_made_an_administrator_is_none(guest_site: Site, store: Store) -> None:
    guest_id = guest_site.office.guest_id
    assert guest_id is not None
    with store.write() as db:
        users.set_role(db, guest_id, "admin", actor="test", now=2)
    assert guest_site.browser().get("/api/admin/users").status_code == 403


def test_a_suspended_guest_is_nobody(guest_site: Site, store: Store) -> None:
    guest_id = guest_site.office.guest_id
    assert guest_id is not None
    with store.write() as db:
        users.set_status(db, guest_id, "suspended", actor="test", now=2)
    assert guest_site.client().get(BALANCE).status_code == 401


def test_there_is_one_guest_after_many_starts(store: Store, folder: Path) -> None:
    first, second = (Office(store, folder=folder, guest=True).guest_id for _ in range(2))
    assert first == second is not None


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 401),
        ("127.0.0.1", 401),
        ("[::1]:8000", 401),
        ("evil.com", 421),
        ("localhost.evil.com", 421),
        ("10.0.0.1:8000", 421),
        ("", 421),
    ],
)
def test_a_server_for_this_machine_answers_by_its_names_only(
    office: Office, host: str, status: int
) -> None:
    """F56: a page of evil.com that has its name point here gets nothing."""
    site = Site(office, make_app(office, hosts=ServeSettings().host_names))
    assert site.client().get(BALANCE, headers={"Host": host}).status_code == status
    site.close()


def test_a_server_for_others_answers_by_the_names_it_was_given(office: Office) -> None:
    site = Site(office, make_app(office, hosts=["api.example.org"]))
    client = site.client()
    assert client.get(BALANCE, headers={"Host": "API.example.org:443"}).status_code == 401
    assert client.get(BALANCE, headers={"Host": "localhost"}).status_code == 421
    site.close()


def test_no_other_site_is_let_in(site: Site, store: Store) -> None:
    """F62."""
    secret = add_person(store).secret
    headers = {
        "Origin": "https://evil.com",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    for path in (BALANCE, "/api/account/keys"):
        for answer in (
            site.client().ask("OPTIONS", path, headers=headers),
            site.client(key=secret).get(path, headers={"Origin": "https://evil.com"}),
        ):
            assert not [name for name in answer.headers if name.startswith("access-control")]
