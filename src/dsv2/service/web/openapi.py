"""What ``/openapi.json`` says: bodies, answers, and every status that can happen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from dsv2.service.inference.answers import (
    ChatCompletion,
    Detokenized,
    ModelCard,
    ModelList,
    TextCompletion,
    TokenizerInfo,
    TokenList,
    UserBalance,
)
from dsv2.service.inference.message_answers import Message, TokenCount
from dsv2.service.inference.response_answers import ModelResponse
from dsv2.service.protocol import (
    Body,
    ChatBody,
    CompletionBody,
    CountTokensBody,
    DetokenizeBody,
    MessagesBody,
    ResponsesBody,
    TokenizeBody,
)

BODIES: tuple[type[Body], ...] = (
    ChatBody, CompletionBody, TokenizeBody, DetokenizeBody, MessagesBody, CountTokensBody,
    ResponsesBody,
)  # fmt: skip
ANSWERS: tuple[type[msgspec.Struct], ...] = (
    ChatCompletion, TextCompletion, ModelList, ModelCard, TokenList, Detokenized, TokenizerInfo,
    Message, TokenCount, ModelResponse, UserBalance,
)  # fmt: skip

_REFS = "#/components/schemas/{name}"
ERROR_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ANTHROPIC_ERROR_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "required": ["type", "error"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}
_STATUSES = {
    400: "The body or a parameter is not what it must be",
    401: "There is no valid key",
    402: "The balance is too small",
    403: "The key is not for this",
    404: "There is no such model or address",
    405: "The address does not take that method",
    408: "The request came too slowly",
    409: "It is there already, or something else forbids it now",
    413: "The body is too large",
    415: "The body is no plain JSON",
    421: "The host is not this server",
    422: "A field is not what it must be",
    429: "A limit is reached; Retry-After says when to come again",
    500: "The server failed",
    503: "The server is overloaded or its model not there; Retry-After says when to come again",
}
_ALWAYS = (400, 401, 403, 405, 421, 429, 500, 503)
_WITH_BODY = (*_ALWAYS, 402, 404, 408, 413, 415)
_CHANGES = ("delete", "patch", "post", "put")


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": _REFS.format(name=name)}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(name)}}


def described(
    body: type[Body] | None,
    answer: type[msgspec.Struct],
    *,
    streams: bool = False,
    may_miss: bool = False,
    error: str = "Error",
) -> dict[str, Any]:
    """Arguments of a route that put it into the description.

    Args:
        body: that it takes, or None.
        answer: that it gives.
        streams: whether it can also give events.
        may_miss: whether what it is asked for may not be there.
        error: the schema of its errors.
    """
    content = _json(answer.__name__)
    if streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    statuses = _ALWAYS if body is None else _WITH_BODY
    if may_miss:
        statuses = (*statuses, 404)
    responses: dict[int, Any] = {200: {"description": "The answer", "content": content}}
    for status in statuses:
        responses[status] = {"description": _STATUSES[status], "content": _json(error)}
    extra: dict[str, Any] = {"security": [{"key": []}]}
    if body is not None:
        extra["requestBody"] = {"required": True, "content": _json(body.__name__)}
    return {"responses": responses, "openapi_extra": extra}


def schema_of(app: FastAPI) -> dict[str, Any]:
    """The description of an application, whose routes stay as they are."""
    if app.openapi_schema is None:
        app.openapi_schema = _described(app)
    return app.openapi_schema


def _described(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(title=app.title, version="1", routes=app.routes)
    components = found.setdefault("components", {})
    schemas: dict[str, Any] = components.setdefault("schemas", {})
    _, bodies = models_json_schema(
        [(body, "validation") for body in BODIES], ref_template=_REFS.replace("name", "model")
    )
    schemas.update(bodies.get("$defs", {}))
    _, answers = msgspec.json.schema_components(ANSWERS, ref_template=_REFS)
    schemas.update(answers)
    schemas["Error"], schemas["AnthropicError"] = ERROR_SCHEMA, ANTHROPIC_ERROR_SCHEMA
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path in found["paths"].values():
        for method, operation in path.items():
            _describe_errors(method, operation)
    return found


def _describe_errors(method: str, operation: dict[str, Any]) -> None:
    """Of a route that was not :func:`described`: what it can answer but its own statuses."""
    responses = operation["responses"]
    # FastAPI's own: here what is wrong with the rest of a request is 400, and has another shape.
    responses.pop("422", None)
    if "400" in responses:
        return
    statuses = {*_ALWAYS, 404, 422}
    if method in _CHANGES:
        statuses |= {*_WITH_BODY, 409}
    for status in sorted(statuses):
        described = {"description": _STATUSES[status], "content": _json("Error")}
        responses.setdefault(str(status), described)
