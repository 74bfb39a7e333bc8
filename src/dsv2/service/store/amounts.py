"""Amounts of money as people read them; everywhere else they are integer micro-units."""

from __future__ import annotations

MICRO = 1_000_000
"""Micro-units of one of the currency."""


def shown(amount: int) -> str:
    """Micro-units as a decimal of the currency: two places, and more where there is more."""
    sign, amount = ("-", -amount) if amount < 0 else ("", amount)
    text = f"{amount // MICRO}.{amount % MICRO:06d}"
    return sign + text[:-4] + text[-4:].rstrip("0")


def with_currency(amount: int, currency: str) -> str:
    """Micro-units with the three letters of their currency: ``USD 12.50``."""
    return f"{currency} {shown(amount)}"
