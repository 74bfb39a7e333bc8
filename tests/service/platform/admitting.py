"""Requests that ask to be let in, and what became of their money."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from dsv2.service.platform.admission import StoreAdmission, StoreTicket
from dsv2.service.serving import Caller
from dsv2.service.store import Store, ledger, reservations
from dsv2.service.store.reservations import Reservation
from dsv2.service.store.verify import verify_books
from dsv2.service.web.errors import ApiError
from tests.service.platform.site import Person

# 10 prompt tokens at 10 micro-units and up to 5 more at 20.
HOLD = 200


def caller_of(person: Person, **more: Any) -> Caller:
    return Caller(person.id, person.account_id, "user", person.key_id, **more)


async def admit(
    admission: StoreAdmission, person: Person, request_id: str = "r1", **more: Any
) -> StoreTicket:
    return await admission.admit(
        caller_of(person, **more), request_id=request_id, model="tiny", prompt_tokens=10,
        completion_tokens=5,
    )  # fmt: skip


def refused(work: Coroutine[Any, Any, Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        asyncio.run(work)
    return caught.value


def reservation(store: Store, request_id: str = "r1") -> Reservation:
    with store.read() as db:
        return reservations.reservation(db, request_id)


def balance(store: Store, person: Person) -> ledger.Balance:
    with store.read() as db:
        return ledger.balance(db, person.account_id)


def check_books(store: Store, *people: Person) -> None:
    with store.read() as db:
        assert verify_books(db) == []
    for person in people:
        assert balance(store, person).held == 0
