"""``Idempotency-Key``: a request that is sent again has one effect and gets one answer.

The dependency :data:`Repeatable` makes an :class:`Attempt` of a request that names a key; without
the header it is None. The attempt goes to ``Admission.admit``, which claims the key in the
transaction that holds the money:

- the first time, the request goes on, and its answer is kept with ``Ticket.keep`` before
  ``close``, which writes it down in the transaction that charges for it;
- was it answered, ``admit`` raises :class:`AnsweredError`, and the application sends the very
  answer again, with ``Idempotent-Replayed: true``. Nothing is computed, nothing is charged;
- is it under way, 409; is the key known with another body or path, 409;
- was it cut off before there was an answer, by a crash or by a failure of the engine, what it has
  cost is given back, and this attempt goes on in its place; so it does, but the first stays paid,
  where the client itself had left.

A key is its account's: somebody else's with the same name is another one. Answers are kept for a
day, or what ``idempotency_ms`` says.

A streamed answer is not kept. Where its route closes the ticket without ``keep``, and tokens were
noted, what is kept is a 409 that says so: sent again, the request neither runs nor is charged a
second time. A client that wants the text again leaves ``stream`` out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from sqlalchemy import Connection

from dsv2.service.inference.answers import encode
from dsv2.service.store import idempotency
from dsv2.service.store.idempotency import MAX_KEY, Answer
from dsv2.service.store.settings import load_settings
from dsv2.service.web.error_shapes import anthropic_body, is_anthropic
from dsv2.service.web.errors import ApiError

HEADER = "Idempotency-Key"


@dataclass(frozen=True)
class Attempt:
    """A request with an idempotency key.

    Attributes:
        key: the client's own.
        request_hash: of path and body.
        is_streamed: whether the answer is a stream, and is not kept.
    """

    key: str
    request_hash: str
    is_streamed: bool = False

    def claim(self, db: Connection, account_id: str, request_id: str, now: int) -> Answer | None:
        """Claim the key for a request; see :func:`dsv2.service.store.idempotency.claim`."""
        return idempotency.claim(
            db, account_id, self.key, request_hash=self.request_hash, request_id=request_id,
            now=now, expires_at=now + load_settings(db).idempotency_ms,
        )  # fmt: skip


class AnsweredError(Exception):
    """The request was answered before: ``answer`` is to be sent again."""

    def __init__(self, answer: Answer) -> None:
        super().__init__("answered before")
        self.answer = answer


def streamed_before() -> Answer:
    """What is kept of a stream."""
    error = ApiError(
        409,
        f"The request with this {HEADER} was answered before, as a stream, which is not kept",
        code="streamed_before",
    )
    return Answer(error.status, "application/json", json.dumps(error.body).encode())


async def attempt_of(request: Request) -> Attempt | None:
    """The attempt that a request is, if it names a key.

    Raises:
        ApiError: 400 for a key that is not allowed.
    """
    values = request.headers.getlist(HEADER)
    if not values:
        return None
    [key, *more] = values
    if more or not 1 <= len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
        raise ApiError(
            400, f"{HEADER} must be one text of 1 to {MAX_KEY} printable ASCII characters",
            param=HEADER,
        )  # fmt: skip
    body = await request.body()
    return Attempt(key, idempotency.hash_request(request.url.path, body), _is_streamed(body))


Repeatable = Annotated[Attempt | None, Depends(attempt_of)]


def add_replays(app: FastAPI) -> None:
    """Let the application answer :class:`AnsweredError`."""
    app.add_exception_handler(AnsweredError, _replay)


async def _replay(request: Request, error: Exception) -> Response:
    assert isinstance(error, AnsweredError)
    kept, body = error.answer, error.answer.body
    if kept.status != 200 and is_anthropic(request.url.path):
        body = encode(anthropic_body(kept.status, json.loads(body)["error"]["message"]))
    return Response(
        body,
        kept.status,
        headers={"Content-Type": kept.content_type, "Idempotent-Replayed": "true"},
    )


def _is_streamed(body: bytes) -> bool:
    try:
        content: Any = json.loads(body)
    except (ValueError, RecursionError):
        return False  # the route refuses it
    return isinstance(content, dict) and bool(content.get("stream"))
