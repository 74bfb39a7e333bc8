"""Anything that can happen to money, in any order, against a memory of plain numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dsv2.service.store import Store, leases, ledger, migrations, open_store, reservations
from dsv2.service.store.errors import BudgetError, InsufficientBalanceError
from dsv2.service.store.keys import KeyLimits, get_key
from dsv2.service.store.prices import Usage
from dsv2.service.store.verify import sum_of_entries, verify_books
from tests.service.store.make import LEASE, NOW, Customer, customer, deposit, price, reserve

BUDGET = 3000


@dataclass
class Open:
    """A reservation that has not ended."""

    who: int
    hold: int
    usage: Usage = field(default_factory=Usage)
    expires_at: int = 0


@dataclass
class Purse:
    """What an account should have."""

    granted: int = 0
    paid: int = 0
    spent: int = 0
    key_spent: int = 0

    def charge(self, amount: int) -> tuple[int, int]:
        first = min(amount, self.granted)
        self.granted -= first
        self.paid -= amount - first
        self.spent += amount
        self.key_spent += amount
        return first, amount - first


@cache
def memory() -> Store:
    """One store for all runs: an engine learns SQLAlchemy's statements once."""
    store = open_store("sqlite://")
    migrations.upgrade(store)
    with store.write() as db:
        price(db)
    return store


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    memory().close()


class Bank(RuleBasedStateMachine):
    """Two new customers of a store in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.store = memory()
        self.tag = uuid4().hex
        self.now = NOW
        self.count = 0
        self.open: dict[str, Open] = {}
        self.settled: dict[str, tuple[int, int, int]] = {}
        self.refunded: set[str] = set()
        with self.store.write() as db:
            self.people: list[Customer] = [
                customer(db, f"{name}@{self.tag}.org", limits=KeyLimits(budget=BUDGET))
                for name in "ab"
            ]
        self.purses = [Purse(), Purse()]

    def teardown(self) -> None:
        for name in sorted(self.open):
            with self.store.write() as db:
                reservations.release(db, name, finish="end", now=self.now)
        with self.store.read() as db:
            assert verify_books(db) == []

    def held(self, who: int) -> int:
        return sum(one.hold for one in self.open.values() if one.who == who)

    @rule(
        who=st.integers(0, 1), book=st.sampled_from(["granted", "paid"]), amount=st.integers(1, 900)
    )
    def deposit(self, who: int, book: str, amount: int) -> None:
        self.count += 1
        with self.store.write() as db:
            for first in (True, False):
                moved = deposit(db, self.people[who].account_id, book, amount, str(self.count))
                assert moved == first
        setattr(self.purses[who], book, getattr(self.purses[who], book) + amount)

    @rule(
        who=st.integers(0, 1), book=st.sampled_from(["granted", "paid"]), amount=st.integers(1, 900)
    )
    def withdraw(self, who: int, book: str, amount: int) -> None:
        self.count += 1
        purse = self.purses[who]
        left = getattr(purse, book) - amount
        allowed = left >= 0 and purse.granted + purse.paid - amount >= self.held(who)
        options = {"cause": f"w:{self.tag}:{self.count}", "actor": "test", "now": self.now}
        account_id = self.people[who].account_id
        if allowed:
            with self.store.write() as db:
                assert ledger.withdraw(db, account_id, book=book, amount=amount, **options)
            setattr(purse, book, left)
        else:
            with pytest.raises(InsufficientBalanceError), self.store.write() as db:
                ledger.withdraw(db, account_id, book=book, amount=amount, **options)

    @rule(who=st.integers(0, 1), prompt=st.integers(0, 40), answer=st.integers(0, 20))
    def reserve(self, who: int, prompt: int, answer: int) -> None:
        self.count += 1
        name, hold, purse = (
            f"{self.tag}:{self.count:03}",
            10 * prompt + 20 * answer,
            self.purses[who],
        )
        options = {"prompt": prompt, "answer": answer, "now": self.now}
        available = purse.granted + purse.paid - self.held(who)
        if hold > available or hold > BUDGET - purse.key_spent - self.held(who):
            wanted = InsufficientBalanceError if hold > available else BudgetError
            with pytest.raises(wanted), self.store.write() as db:
                reserve(db, self.people[who], name, **options)
            return
        with self.store.write() as db:
            assert reserve(db, self.people[who], name, **options).hold == hold
        self.open[name] = Open(who, hold, expires_at=self.now + LEASE)

    @precondition(lambda self: self.open)
    @rule(
        data=st.data(),
        prompt=st.integers(0, 40),
        cached=st.integers(0, 40),
        answer=st.integers(0, 25),
    )
    def settle(self, data: st.DataObject, prompt: int, cached: int, answer: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        usage = Usage(prompt, min(cached, prompt), answer)
        with self.store.write() as db:
            ended = reservations.settle(db, name, usage, finish="stop", now=self.now)
        self._ended(name, usage, ended.charge)

    def _ended(self, name: str, usage: Usage, charge: int) -> None:
        one = self.open.pop(name)
        full = 10 * (usage.prompt_tokens - usage.cached_tokens) + usage.cached_tokens
        assert charge == min(full + 20 * usage.completion_tokens, one.hold)
        self.settled[name] = (one.who, *self.purses[one.who].charge(charge))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        with self.store.write() as db:
            reservations.release(db, name, finish="abort", now=self.now)
        del self.open[name]

    @precondition(lambda self: self.settled)
    @rule(data=st.data())
    def settle_again(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.settled)))
        with self.store.write() as db:
            again = reservations.settle(db, name, Usage(40, 0, 20), finish="again", now=self.now)
        assert again.charge == sum(self.settled[name][1:])

    @precondition(lambda self: self.settled)
    @rule(data=st.data())
    def refund(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.settled)))
        who, granted, paid = self.settled[name]
        with self.store.write() as db:
            after = reservations.refund(db, name, actor="test", now=self.now)
        assert after.refunded == granted + paid
        if name not in self.refunded:
            self.refunded.add(name)
            purse = self.purses[who]
            purse.granted += granted
            purse.paid += paid
            purse.spent -= granted + paid
            purse.key_spent -= granted + paid

    @precondition(lambda self: self.open)
    @rule(data=st.data(), prompt=st.integers(0, 40), answer=st.integers(0, 20))
    def write_down(self, data: st.DataObject, prompt: int, answer: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.open)))
        usage, one = Usage(prompt, 0, answer), self.open[name]
        expires_at = self.now + LEASE
        with self.store.write() as db:
            found = leases.renew(db, "process", {name: usage}, expires_at=expires_at)
        assert found == self.open.keys()
        for other in self.open.values():
            other.expires_at = expires_at
        later = one.usage.prompt_tokens <= prompt and one.usage.completion_tokens <= answer
        one.usage = usage if later else one.usage

    @rule(passed=st.integers(0, LEASE))
    def recover(self, passed: int) -> None:
        self.now += passed
        left = sorted(name for name, one in self.open.items() if one.expires_at <= self.now)
        ended = leases.recover(self.store, now=self.now)
        assert [one.ask.id for one in ended] == left
        for one in ended:
            usage = self.open[one.ask.id].usage
            if usage == Usage():
                assert (one.state, one.charge) == ("released", 0)
                del self.open[one.ask.id]
            else:
                assert one.usage == usage
                self._ended(one.ask.id, usage, one.charge)

    @invariant()
    def the_books_are_as_remembered(self) -> None:
        with self.store.read() as db:
            assert sum_of_entries(db) == 0
            for who, purse in enumerate(self.purses):
                person = self.people[who]
                found = ledger.balance(db, person.account_id)
                assert (found.granted, found.paid, found.spent) == (
                    purse.granted,
                    purse.paid,
                    purse.spent,
                )
                key = get_key(db, person.account_id, person.key_id)
                assert found.held == key.held == self.held(who)
                assert key.spent == purse.key_spent


TestBank = Bank.TestCase
TestBank.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)


class LongBank(Bank):
    """The same for the night."""


TestLongBank = pytest.mark.slow(pytest.mark.timeout(600)(LongBank.TestCase))
LongBank.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
