"""What a new installation needs before its first request: tables, an administrator, prices."""

from __future__ import annotations

import os

from dsv2.service.settings import ServeSettings
from dsv2.service.store import Store, keys, migrations, open_store, users
from dsv2.service.store.audit import SYSTEM

ADMIN_EMAIL = "admin@localhost"


def open_platform(settings: ServeSettings) -> Store:
    """The store of an installation, with its tables as this program needs them.

    Raises:
        StoreError: the database cannot be used, or was made by a newer program.
        OSError: its folder cannot be made.
    """
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not settings.database and os.stat(settings.data).st_mode & 0o077:
        os.chmod(settings.data, 0o700)
    store = open_store(settings.database_url)
    try:
        migrations.upgrade(store)
    except BaseException:
        store.close()
        raise
    return store


def first_admin_key(store: Store, *, now: int) -> str | None:
    """The secret of the first administrator's key, at the first start; None at any other.

    Nobody can be told it a second time: ``dsv2 admin keys create`` makes another.
    """
    with store.write() as db:
        if users.find_user(db, ADMIN_EMAIL) is not None:
            return None
        admin = users.add_user(db, ADMIN_EMAIL, now=now, role="admin", unlimited=True)
        _, secret = keys.create_key(
            db, account_id=admin.account_id, user_id=admin.id, name="first administrator", now=now,
            actor=SYSTEM,
        )  # fmt: skip
        return secret
