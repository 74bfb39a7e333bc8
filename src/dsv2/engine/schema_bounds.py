"""What a JSON schema may ask of the compiler that no limit of its library's covers.

A number that must be a multiple of another becomes an automaton with a state for each remainder:
in a schema of a hundred bytes it takes minutes and gigabytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

MAX_SCHEMA_DEPTH = 64
MAX_MULTIPLE = 10_000
"""States for all ``multipleOf`` of a schema; so many take a tenth of a second."""
_EMBEDDED = re.compile(r"%json\s*")
"""Begins a schema within a grammar."""


def problem_of(schema: Any) -> str | None:
    """What is wrong with a schema that was read from JSON, or None."""
    if not isinstance(schema, (dict, bool)) or _depth(schema) > MAX_SCHEMA_DEPTH:
        return f"must be a schema at most {MAX_SCHEMA_DEPTH} levels deep"
    together = 1
    for value in _multiples(schema):
        if isinstance(value, float) and not math.isfinite(value):
            return f"has multipleOf {value}, allowed are finite numbers"
        together = math.lcm(together, _states(value))
        if together > MAX_MULTIPLE:
            return (
                f"has multipleOf {value!s:.60}: the least common multiple of all, without its "
                f"factors of 2 and 5, would be over {MAX_MULTIPLE}, which is allowed"
            )
    return None


def problem_of_grammar(text: str) -> str | None:
    """:func:`problem_of` the first of the schemas within a grammar that has one, or None."""
    reader = json.JSONDecoder()
    for found in _EMBEDDED.finditer(text):
        try:
            schema, _ = reader.raw_decode(text, found.end())
        except (ValueError, RecursionError):
            continue  # no schema: the compiler says so, or it stands in a string
        if isinstance(schema, (dict, list)) and (problem := problem_of(schema)) is not None:
            return problem
    return None


def _states(value: int | float) -> int:
    """Remainders to tell apart; the last digits alone tell those of 2 and 5."""
    digits = abs(int("".join(map(str, Decimal(repr(value)).as_tuple().digits))))
    for factor in (2, 5):
        while digits and digits % factor == 0:
            digits //= factor
    return max(digits, 1)


def _multiples(schema: Any) -> Iterator[int | float]:
    for level in _levels(schema):
        for one in level:
            value = one.get("multipleOf") if isinstance(one, dict) else None
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                yield value


def _depth(value: Any) -> int:
    """Levels of objects and lists."""
    return sum(1 for _ in _levels(value))


def _levels(value: Any) -> Iterator[list[Any]]:
    """The values of each depth, without recursion."""
    level = [value]
    while level:
        yield level
        level = [
            child
            for one in level
            if isinstance(one, (dict, list))
            for child in (one.values() if isinstance(one, dict) else one)
        ]
