"""What tokens cost. Prices are never changed, only followed by newer ones.

A price is given for a million tokens in micro-units, so a token's may be a fraction of a unit. A
request is therefore rounded once, in total: half a micro-unit goes up. All of it is integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from dsv2.service.store import audit
from dsv2.service.store.checks import MAX_TOKENS, check_integer, check_text
from dsv2.service.store.errors import ConflictError, FieldError, NotFoundError
from dsv2.service.store.models import prices

PER_TOKENS = 1_000_000
"""A price is for so many tokens."""
MAX_PRICE = 10**12
"""Highest price: one unit of the currency for a token."""


@dataclass(frozen=True)
class Usage:
    """Tokens that a request has taken.

    Attributes:
        prompt_tokens: tokens of the prompt, counted once however many answers it has.
        cached_tokens: those of them that were found in the prefix cache.
        completion_tokens: tokens generated, of all answers together.

    Raises:
        FieldError: a count is negative, no integer or above ``MAX_TOKENS``, or more tokens were
            found in the cache than the prompt has.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def __post_init__(self) -> None:
        check_integer("prompt_tokens", self.prompt_tokens, most=MAX_TOKENS)
        check_integer("cached_tokens", self.cached_tokens, most=self.prompt_tokens)
        check_integer("completion_tokens", self.completion_tokens, most=MAX_TOKENS)


@dataclass(frozen=True)
class Price:
    """Micro-units for a million tokens of one model.

    Attributes:
        id: what a reservation remembers.
        model: its name in the API.
        version: 1, 2, ... for each model.
        input: prompt tokens that were computed.
        cached_input: prompt tokens found in the prefix cache, never dearer than ``input``.
        output: generated tokens.
    """

    id: int
    model: str
    version: int
    input: int
    cached_input: int
    output: int


def cost(price: Price, usage: Usage) -> int:
    """Micro-units that tokens cost, rounded half up once."""
    computed = usage.prompt_tokens - usage.cached_tokens
    scaled = (
        computed * price.input
        + usage.cached_tokens * price.cached_input
        + usage.completion_tokens * price.output
    )
    return (scaled + PER_TOKENS // 2) // PER_TOKENS


def worst_cost(price: Price, prompt_tokens: int, max_tokens: int) -> int:
    """Most that a request can cost: nothing in the cache, every answer as long as it may be.

    Args:
        price: the model's.
        prompt_tokens: tokens of the prompt.
        max_tokens: most tokens of all answers together.
    """
    return cost(price, Usage(prompt_tokens, 0, max_tokens))


def split(charge: int, granted: int) -> tuple[int, int]:
    """What of a charge the granted and what the paid balance bears: granted money goes first."""
    from_granted = min(charge, granted)
    return from_granted, charge - from_granted


def set_price(
    db: Connection,
    model: str,
    *,
    input: int,
    cached_input: int,
    output: int,
    actor: str,
    now: int,
) -> Price:
    """Follow a model's price by a new one; what is under way keeps the price it began with.

    Raises:
        FieldError: a price is negative or too high, or a hit would cost more than a miss.
        ConflictError: somebody else has just set one.
    """
    check_text("model", model)
    for name, value in (("input", input), ("output", output)):
        check_integer(name, value, most=MAX_PRICE)
    if isinstance(cached_input, bool) or not isinstance(cached_input, int):
        raise FieldError("cached_input", f"is {cached_input!r:.60}, allowed is an integer")
    if not 0 <= cached_input <= input:
        # A reservation assumes that nothing is found in the cache; a hit must not cost more.
        raise FieldError(
            "cached_input", f"is {cached_input}, allowed is from 0 to the input price, {input}"
        )
    last = db.execute(sa.select(sa.func.max(prices.c.version)).where(prices.c.model == model))
    version = (last.scalar_one() or 0) + 1
    row = {"model": model, "version": version, "input": input, "output": output}
    row |= {"cached_input": cached_input, "actor": actor, "created_at": now}
    try:
        number = db.execute(sa.insert(prices).values(row).returning(prices.c.id)).scalar_one()
    except sa.exc.IntegrityError as error:
        raise ConflictError(f"version {version} of the price of {model!r} exists") from error
    detail = {"version": version, "input": input, "cached_input": cached_input, "output": output}
    audit.record(db, actor=actor, action="price.set", subject=model, detail=detail, now=now)
    return Price(number, model, version, input, cached_input, output)


def current_price(db: Connection, model: str) -> Price:
    """The price of requests that begin now.

    Raises:
        NotFoundError: the model has none, so it cannot be sold.
    """
    query = (
        sa.select(prices).where(prices.c.model == model).order_by(prices.c.version.desc()).limit(1)
    )
    row = db.execute(query).one_or_none()
    if row is None:
        raise NotFoundError("price for the model", model)
    return price_of(row)


def price_by_id(db: Connection, number: int) -> Price:
    """The price that a reservation remembers."""
    return price_of(db.execute(sa.select(prices).where(prices.c.id == number)).one())


def list_prices(db: Connection) -> list[Price]:
    """All prices there ever were, by model and version."""
    rows = db.execute(sa.select(prices).order_by(prices.c.model, prices.c.version))
    return [price_of(row) for row in rows]


def price_of(row: Any) -> Price:
    """A price from the columns of its table."""
    return Price(row.id, row.model, row.version, row.input, row.cached_input, row.output)
