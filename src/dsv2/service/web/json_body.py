"""Bodies of requests: JSON without its traps, then a pydantic model."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dsv2.service.protocol import Body
from dsv2.service.web.errors import ApiError

MAX_DEPTH = 128
MAX_DIGITS = 400
"""More digits than any number of 8 bytes has, and fewer than Python refuses to read."""

_SMALL_BODY = 65_536
"""Bytes that are read at once, within a few milliseconds; larger bodies go to a thread."""

_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
"""What half a surrogate pair begins with: UTF-8 itself has none, only an escape can bring it in."""

M = TypeVar("M", bound=Body)


class _TrapError(ValueError):
    """JSON that readers do not agree about."""


def parse_json(text: bytes) -> Any:
    """The value of a body.

    Raises:
        ApiError: 400: it is no JSON, too deep, or has what parsers read differently: a key twice,
            NaN, an infinity, a number that is none in 8 bytes, or half a surrogate pair.
    """
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_pairs,
            parse_float=_number,
            parse_int=_integer,
            parse_constant=_constant,
        )
    except _TrapError as error:
        raise ApiError(400, f"The body is refused: {error}", code="invalid_json") from error
    except RecursionError as error:
        raise _too_deep() from error
    except (ValueError, UnicodeDecodeError) as error:
        raise ApiError(
            400, f"The body could not be parsed as JSON: {error!s:.200}", code="invalid_json"
        ) from error
    _check_depth(value)
    if _HALF.search(text):
        _check_texts(value)
    return value


def _too_deep() -> ApiError:
    return ApiError(
        400, f"The body is nested more than {MAX_DEPTH} levels deep", code="invalid_json"
    )


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _TrapError(f"the key {_shown(twice)} is there twice")
    return value


def _number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _TrapError(f"the number {digits:.40} is too large")
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _TrapError(f"a number has {len(digits)} digits")
    return int(digits)


def _constant(name: str) -> float:
    raise _TrapError(f"{name} is no JSON")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep()
        level = [
            child
            for one in level
            if isinstance(one, (dict, list))
            for child in (one.values() if isinstance(one, dict) else one)
            if isinstance(child, (str, dict, list))
        ]


def _check_texts(value: Any) -> None:
    """Lone surrogates, level by level."""
    level: list[tuple[str, Any]] = [("", value)]
    while level:
        below: list[tuple[str, Any]] = []
        for path, one in level:
            if isinstance(one, str):
                _check_text(path, one)
            elif isinstance(one, dict):
                for key, child in one.items():
                    _check_text(path, key)
                    if isinstance(child, (str, dict, list)):
                        below.append((f"{path}.{key}" if path else key, child))
            elif isinstance(one, list):
                below += [
                    (f"{path}[{place}]", child)
                    for place, child in enumerate(one)
                    if isinstance(child, (str, dict, list))
                ]
        level = below


def _check_text(path: str, text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ApiError(
            400,
            f"{_shown(path)}: half a surrogate pair, U+{ord(text[error.start]):04X}, at character "
            f"{error.start}",
            param=_printable(path),
            code="invalid_json",
        ) from error


def _printable(text: str) -> str | None:
    """Text for an answer: no half characters, not long."""
    return text[:200].encode("utf-8", "replace").decode("utf-8") or None


def _shown(text: str) -> str:
    return repr(_printable(text) or "the body")


def validated(model: type[M], value: Any) -> M:
    """The value as a model.

    Raises:
        ApiError: 400 with the name of what is wrong.
    """
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object")
    for name, words in model.refused.items():
        if value.get(name) not in (None, False, [], {}):
            raise ApiError(400, f"{name} {words}", param=name, code="unsupported_parameter")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        # Of a union's branches the one that came farthest is the one that was meant.
        worst = max(errors, key=_reach)
        param = _param(worst, value)
        reasons = [
            "is missing" if one["type"] == "missing" else one["msg"]
            for one in errors
            if _reach(one) == _reach(worst) and _param(one, value) == param
        ]
        message = "; or: ".join(dict.fromkeys(reasons))
        raise ApiError(400, f"{param or 'body'}: {message:.300}", param=param) from error


def _reach(error: ErrorDetails) -> tuple[int, float]:
    """How far the reading came: levels, and places in the last list.

    A list that has too many or too few was right up to there, so it came farther than any that
    stumbled over its first entry.
    """
    *_, last = place = error["loc"]
    if error["type"] in ("too_long", "too_short"):
        return len(place) + 1, math.inf
    return len(place), last if isinstance(last, int) else 0


def _param(error: ErrorDetails, value: Any) -> str | None:
    """The path of a value in the body, without the names of the model's own parts."""
    out = ""
    for place, part in enumerate(error["loc"], 1):
        if isinstance(value, dict) and isinstance(part, str):
            if part in value:
                out, value = f"{out}.{part}" if out else part, value[part]
                continue
            if place < len(error["loc"]):  # the name of one of a union's branches
                continue
            if error["type"] == "missing":
                out += f".{part}" if out else part
            break
        if isinstance(value, list) and isinstance(part, int) and part < len(value):
            out, value = f"{out}[{part}]", value[part]
        elif not (isinstance(value, list) and isinstance(part, str)):  # again a branch's name
            break
    return _printable(out)


def json_body(model: type[M]) -> Callable[[Request], Awaitable[M]]:
    """A dependency that reads and checks the body; it stands behind the one for the caller."""

    async def read(request: Request) -> M:
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
        if kind.lower() != "application/json" and not kind.lower().endswith("+json"):
            raise ApiError(415, f"The content type is {kind!r:.80}, allowed is application/json")
        text = await request.body()
        if len(text) <= _SMALL_BODY:
            return validated(model, parse_json(text))
        return await asyncio.to_thread(lambda: validated(model, parse_json(text)))

    return read
