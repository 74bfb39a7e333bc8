"""What the store refuses, as answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dsv2.service.store import errors
from dsv2.service.store.errors import StoreError
from dsv2.service.web.errors import ApiError

RETRY = {"Retry-After": "1"}


def unauthorized() -> ApiError:
    """401 in one shape, whatever was wrong with the credentials or whether there were any."""
    return ApiError(
        401,
        "Authentication fails: the API key or the session is not valid",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def api_error_of(error: StoreError) -> ApiError:
    """The answer to an error of the store."""
    match error:
        case errors.AuthenticationError():
            return unauthorized()
        case errors.SuspendedError():
            return ApiError(403, _sentence(error), code=error.code)
        case errors.InsufficientBalanceError():
            return ApiError(402, f"Insufficient Balance: {error}", code="insufficient_balance")
        case errors.BudgetError():
            return ApiError(402, f"Insufficient Balance: {error}", code="budget_exceeded")
        case errors.FieldError():
            # A place in an archive stands as it is there.
            words = str(error) if "[" in error.field else _sentence(error)
            return ApiError(422, words, param=error.field)
        case errors.NotFoundError():
            return ApiError(404, _sentence(error), code=f"{error.kind.replace(' ', '_')}_not_found")
        case errors.LimitError():
            return ApiError(429, _sentence(error), code="limit_reached", headers=RETRY)
        case errors.ConflictError():
            return ApiError(409, _sentence(error), code=error.code)
        case _:
            # The cause names files and servers: it is for the log, not for the caller.
            return ApiError(
                503, "The server's accounts cannot be reached; try again", code="store_unavailable",
                headers=RETRY,
            )  # fmt: skip


@contextmanager
def translated() -> Iterator[None]:
    """Let errors of the store leave the block as answers."""
    try:
        yield
    except StoreError as error:
        raise api_error_of(error) from error


def _sentence(error: StoreError) -> str:
    words = str(error)
    return words[:1].upper() + words[1:]
