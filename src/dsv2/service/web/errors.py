"""Errors as OpenAI's clients expect them: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "insufficient_balance_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    421: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    503: "overloaded_error",
}
"""Statuses that the server uses, and each one's ``type``."""


class ApiError(Exception):
    """Ends a request with a status.

    Args:
        status: an HTTP status of :data:`_TYPES`.
        message: for the caller; never holds secrets or other callers' data.
        param: the parameter that is wrong, by its path in the body.
        code: a stable word for programs.
        headers: to be sent with it, such as ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param, self.code = param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The answer's body."""
        kind = _TYPES.get(self.status, "server_error")
        return {
            "error": {
                "message": str(self),
                "type": kind,
                "param": self.param,
                "code": self.code or kind,
            }
        }


def unknown_model(name: str, allowed: tuple[str, ...]) -> ApiError:
    """404 for a model that is not served."""
    return ApiError(
        404,
        f"The model {name!r:.200} does not exist, allowed are {', '.join(allowed)}",
        param="model",
        code="model_not_found",
    )
