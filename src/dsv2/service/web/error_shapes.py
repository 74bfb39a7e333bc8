"""Errors in the shape that an address's clients know: OpenAI's, or Anthropic's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsv2.service.web.errors import ApiError

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}
"""What is not here is an ``invalid_request_error``."""


def is_anthropic(path: str) -> bool:
    """Whether Anthropic's clients ask there."""
    return path.startswith(("/anthropic/", "/v1/messages/")) or path == "/v1/messages"


def anthropic_body(status: int, message: str) -> dict[str, Any]:
    """An error as Anthropic's clients expect it: ``{type: error, error: {type, message}}``."""
    kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def body_for(path: str, error: ApiError) -> dict[str, Any]:
    """The body of an error's answer at an address."""
    return anthropic_body(error.status, str(error)) if is_anthropic(path) else error.body


def body_at(scope: Mapping[str, Any], error: ApiError) -> dict[str, Any]:
    """:func:`body_for` the address of an ASGI scope."""
    return body_for(str(scope.get("path", "")), error)
