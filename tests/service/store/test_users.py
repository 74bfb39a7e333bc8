"""Addresses, and passwords that change while somebody logs in."""

from __future__ import annotations

import pytest
from argon2 import PasswordHasher

from dsv2.service.store import Store, settings, users
from dsv2.service.store.errors import AuthenticationError
from tests.service.store.make import NOW, PASSWORD, cheap_passwords


@pytest.mark.parametrize(
    "email", ["Ann@Example.ORG", "A\u00df\u0301b@x.org", "a\u03aa\u0301b@x.org"]
)
def test_the_normal_address_stays_what_it_is(email: str) -> None:
    plain = users.normal_email(email)
    assert users.normal_email(plain) == plain


@pytest.mark.parametrize("change", ["password", "status"])
def test_who_changes_while_logging_in_gets_no_session(
    store: Store, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    cheap_passwords(store)
    user = users.sign_up(store, "a@example.org", PASSWORD, now=NOW)
    verify = PasswordHasher.verify

    def verify_and_change(self: PasswordHasher, known: str, secret: bytes) -> bool:
        found = verify(self, known, secret)
        with store.write() as db:
            if change == "status":
                users.set_status(db, user.id, "suspended", actor="admin", now=NOW)
            else:
                fresh = users.hash_password(settings.load_settings(db), "another horse")
                users.set_password_hash(db, user.id, fresh, actor=user.id, now=NOW + 1)
        return found

    monkeypatch.setattr(PasswordHasher, "verify", verify_and_change)
    with pytest.raises(AuthenticationError):
        users.log_in(store, "a@example.org", PASSWORD, now=NOW)


def test_no_settings_lock_everybody_out(store: Store) -> None:
    cheap_passwords(store)
    users.sign_up(store, "a@example.org", PASSWORD, now=NOW)
    with store.write() as db:
        settings.change_setting(db, "argon2_parallelism", 2, actor="admin", now=NOW)
    users.log_in(store, "a@example.org", PASSWORD, now=NOW)
    users.sign_up(store, "b@example.org", PASSWORD, now=NOW)
