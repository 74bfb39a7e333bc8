"""Settlements that the database did not take, kept in a folder until it does.

One file for one request, on disk before ``put`` returns, with the answer that is to be had again by
an idempotency key. Delivering is settling, and a request is settled once, so a crash between the
two repeats nothing. Where even the folder cannot be written, the reservation stays open, and
``recover`` settles it for what was written down last.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from dsv2.service.store.engine import Store
from dsv2.service.store.errors import NotFoundError, UnavailableError
from dsv2.service.store.idempotency import Answer, Kept, keep
from dsv2.service.store.prices import Usage
from dsv2.service.store.reservations import Reservation, settle

SUFFIX = ".settle.json"

log = logging.getLogger("dsv2.service")


@dataclass(frozen=True)
class Outbox:
    """A folder of settlements, on the disk of the process that runs the requests.

    Attributes:
        folder: made when first needed; only its owner can read it.
    """

    folder: Path

    def put(
        self, request_id: str, usage: Usage, *, finish: str, now: int, kept: Kept | None = None
    ) -> None:
        """Keep a settlement, durably, and the answer with it; the first one for a request stays.

        Raises:
            OSError: the folder cannot be written.
        """
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            sync_folder(self.folder.parent)
        final = self.folder / (hashlib.sha256(request_id.encode()).hexdigest() + SUFFIX)
        content = {
            "request_id": request_id,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "finish": finish,
            "now": now,
            "kept": None if kept is None else _written(kept),
        }
        fresh = final.with_name(f"{final.name}.tmp-{uuid4().hex[:12]}")
        try:
            with open(fresh, "x", encoding="utf-8") as file:
                json.dump(content, file)
                file.flush()
                os.fsync(file.fileno())
            if not final.exists():
                fresh.rename(final)
        finally:
            fresh.unlink(missing_ok=True)
        sync_folder(self.folder)

    def __len__(self) -> int:
        """How many settlements wait."""
        return len(self._waiting())

    def deliver(self, store: Store) -> list[Reservation]:
        """Settle what waits, and forget what was settled. Any number may do it at a time.

        Returns:
            What was settled. Settlements of requests that the database does not know, as after a
            restore, stay in the folder under another name, ``*.unknown``; what cannot be read or
            is refused for good is logged and stays as ``*.refused``.

        Raises:
            UnavailableError: the database still takes nothing; what is left waits on.
        """
        done = []
        for file in self._waiting():
            try:
                with store.write() as db:
                    done.append(_settle(db, json.loads(file.read_text(encoding="utf-8"))))
            except UnavailableError:
                raise
            except FileNotFoundError:
                continue  # somebody else was faster
            except NotFoundError:
                _put_aside(file, ".unknown")
            except (ValueError, LookupError, TypeError, IntegrityError) as error:
                log.error("the settlement %s is refused", file, exc_info=error)
                _put_aside(file, ".refused")
            else:
                file.unlink(missing_ok=True)
        return done

    def _waiting(self) -> list[Path]:
        return sorted(self.folder.glob("*" + SUFFIX))


def _settle(db: Connection, content: Mapping[str, Any]) -> Reservation:
    counts = ("prompt_tokens", "cached_tokens", "completion_tokens")
    usage = Usage(*(content[name] for name in counts))
    request_id, finish, now = content["request_id"], content["finish"], content["now"]
    ended = settle(db, request_id, usage, finish=finish, now=now)
    if (written := content.get("kept")) is not None:
        keep(db, request_id, _read(written))
    return ended


def _written(kept: Kept) -> dict[str, Any]:
    answer = kept.answer
    return {
        "account_id": kept.account_id,
        "key": kept.key,
        "status": answer.status,
        "content_type": answer.content_type,
        "body": base64.b64encode(answer.body).decode(),
    }


def _read(written: Mapping[str, Any]) -> Kept:
    body = base64.b64decode(written["body"], validate=True)
    answer = Answer(written["status"], written["content_type"], body)
    return Kept(written["account_id"], written["key"], answer)


def _put_aside(file: Path, suffix: str) -> None:
    with suppress(FileNotFoundError):
        file.rename(file.with_name(file.name + suffix))


def settle_durably(
    store: Store, outbox: Outbox, request_id: str, usage: Usage, *, finish: str, now: int
) -> Reservation | None:
    """Settle now, or keep the settlement for :meth:`Outbox.deliver`.

    Returns:
        The reservation as it ended; None if the database did not take it and the outbox has.
    """
    try:
        with store.write() as db:
            return settle(db, request_id, usage, finish=finish, now=now)
    except UnavailableError:
        outbox.put(request_id, usage, finish=finish, now=now)
        return None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, as ``fsync`` does a file's contents."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
