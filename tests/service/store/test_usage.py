"""What was used, per request and day."""

from __future__ import annotations

import csv

import pytest

from dsv2.service.store import Store, usage
from dsv2.service.store.errors import FieldError
from dsv2.service.store.prices import Usage
from dsv2.service.store.usage import DailyUsage, RequestUsage, csv_lines, daily, requests_of
from tests.service.store.make import MODEL, NOW, customer, price, reserve, settle

DAY = 86_400_000
TODAY = usage.day_of(NOW)


def test_days_sum_their_requests(store: Store) -> None:
    with store.write() as db:
        price(db)
        who, other = customer(db, paid=10_000), customer(db, "b@example.org", paid=10_000)
        for name, person, key, at in (
            ("r1", who, True, NOW),
            ("r2", who, True, NOW),
            ("r3", who, False, NOW),
            ("r4", who, True, NOW + DAY),
            ("r5", other, True, NOW),
        ):
            reserve(db, person, name, key=key)
            settle(db, name, Usage(10, 4, 2), now=at)
    tomorrow = usage.day_of(NOW + DAY)
    with store.read() as db:
        mine = daily(db, first=TODAY, last=tomorrow, account_id=who.account_id)
        assert [(one.day, one.key_id, one.requests, one.charge) for one in mine] == [
            (TODAY, "", 1, 104),
            (TODAY, who.key_id, 2, 208),
            (tomorrow, who.key_id, 1, 104),
        ]
        assert (mine[1].prompt_tokens, mine[1].cached_tokens, mine[1].completion_tokens) == (
            20,
            8,
            4,
        )
        assert len(daily(db, first=TODAY, last=TODAY)) == 3
        assert daily(db, first=TODAY, last=TODAY, model="other") == []
        assert len(daily(db, first=TODAY, last=TODAY, key_id="", model=MODEL)) == 1
        rows = requests_of(db, who.account_id)
        assert [row.id for row in rows] == ["r4", "r1", "r2", "r3"]
        assert rows[-1].key_id == ""
        page = requests_of(db, who.account_id, until=NOW + 1, limit=2, offset=1)
        assert [row.id for row in page] == ["r2", "r3"]
        with pytest.raises(FieldError, match="first is 'yesterday'"):
            daily(db, first="yesterday", last=TODAY)


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x", "plain", 'a "b", c'])
def test_csv_can_be_read_again_and_holds_no_formula(name: str) -> None:
    row = DailyUsage("2026-01-01", "acct_1", "", name, 1, 2, 3, 4, 5)
    lines = list(csv_lines([row, row], DailyUsage))
    assert all(line.endswith("\n") for line in lines)
    head, *rest = csv.reader(lines)
    assert head[:4] == ["day", "account_id", "key_id", "model"]
    assert len(rest) == 2
    assert rest[0][3] in (name, "'" + name)
    assert rest[0][3][0] not in "=+-@"
    assert list(csv_lines([], RequestUsage)) == [
        "id,account_id,key_id,model,prompt_tokens,cached_tokens,completion_tokens,cost,charge,"
        "refunded,finish,created_at,finished_at\n"
    ]
