"""What the store refuses, each with the facts its caller needs for an answer."""

from __future__ import annotations

from dsv2.service.store.amounts import with_currency


class StoreError(ValueError):
    """The store did not do what was asked; nothing of the transaction was kept."""


class UnavailableError(StoreError):
    """The database is locked, full, slow or gone; the same call may succeed later."""


class SchemaError(StoreError):
    """The tables are older or newer than this program."""


class FieldError(StoreError):
    """A value may not be stored; ``field`` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field


class NotFoundError(StoreError):
    """There is no such thing, or it belongs to somebody else."""

    def __init__(self, kind: str, name: str | None = None) -> None:
        super().__init__(f"there is no {kind}" + ("" if name is None else f" {name!r:.80}"))
        self.kind = kind


class ConflictError(StoreError):
    """It is there already, or was asked for before with other contents.

    Attributes:
        code: a stable word for programs that tell conflicts apart.
    """

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class LimitError(StoreError):
    """There is as much of it as there may be at a time; later there may be less."""


class AuthenticationError(StoreError):
    """Who asks is not known. The message is the same whatever was wrong with the credentials.

    ``reason`` says what it was, for logs and never for the caller.
    """

    def __init__(self, reason: str) -> None:
        super().__init__("the credentials are not valid")
        self.reason = reason


class SuspendedError(StoreError):
    """The account or the key may not be used any more, or none may be made; ``code`` says which."""

    def __init__(self, message: str, code: str = "suspended") -> None:
        super().__init__(message)
        self.code = code


class InsufficientBalanceError(StoreError):
    """The account has not so much that is free.

    Attributes:
        needed: micro-units that would have been held, or moved.
        available: micro-units that were free.
    """

    def __init__(
        self, needed: int, available: int, currency: str, what: str = "the request may cost"
    ) -> None:
        wanted, free = (with_currency(one, currency) for one in (needed, available))
        super().__init__(f"{what} {wanted}, {free} are available")
        self.needed = needed
        self.available = available


class BudgetError(StoreError):
    """The key's own budget does not cover the worst case of a request.

    Attributes:
        needed: micro-units that would have been held.
        left: micro-units of the budget that were left.
    """

    def __init__(self, needed: int, left: int, currency: str) -> None:
        wanted, rest = (with_currency(one, currency) for one in (needed, left))
        super().__init__(f"the request may cost {wanted}, the key's budget has {rest} left")
        self.needed = needed
        self.left = left
