"""Names and values: how they are made, and what is checked before any SQL.

Amounts are integer micro-units, 10^-6 of the installation's currency. Times are integer
milliseconds since 1970 in UTC, and always an argument: what a function does with the clock can be
tested without one.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection

from dsv2.service.store.errors import FieldError

MAX_AMOUNT = 10**15
"""Most micro-units one call moves: a billion of the currency. Sums stay far below 2^63."""
MAX_TOKENS = 10**9
"""Most tokens one request counts."""
MAX_NAME = 200

SECOND = 1000
MINUTE = 60 * SECOND
DAY = 86_400 * SECOND


def now_ms() -> int:
    """Milliseconds since 1970, UTC."""
    return time.time_ns() // 1_000_000


def new_id(kind: str) -> str:
    """An identity nobody can guess: ``kind``, an underline and 96 random bits in hexadecimal."""
    return f"{kind}_{secrets.token_hex(12)}"


def check_text(field: str, value: object, *, most: int = MAX_NAME, least: int = 1) -> str:
    """A text both databases take and give back unchanged.

    Raises:
        FieldError: not a string, too short or long, with a NUL or half of a surrogate pair.
    """
    if not isinstance(value, str) or not least <= len(value) <= most:
        raise FieldError(
            field, f"is {value!r:.60}, allowed is a text of {least} to {most} characters"
        )
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise FieldError(
            field, f"is {value!r:.60}, allowed is text without NUL and lone surrogates"
        )
    return value


def check_integer(field: str, value: object, *, least: int = 0, most: int = MAX_AMOUNT) -> int:
    """An integer within bounds; a bool or a float is none.

    Raises:
        FieldError: naming the bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise FieldError(field, f"is {value!r:.60}, allowed is an integer from {least} to {most}")
    return value


def check_choice(field: str, value: object, allowed: Collection[str]) -> str:
    """One of a few words.

    Raises:
        FieldError: listing them.
    """
    if not isinstance(value, str) or value not in allowed:
        raise FieldError(field, f"is {value!r:.60}, allowed are {', '.join(allowed)}")
    return value
