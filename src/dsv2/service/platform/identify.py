"""Who asks: the caller behind an API key, a session of the site, or the guest of this machine.

Paths under ``/api/`` are the site's own, and take its session cookie; every other path takes API
keys and looks at no cookie. So no page of another site can spend anybody's money, and no key, which
may be limited to a model or a budget, can make another key.

Nothing is remembered between requests: a key that was revoked a moment ago opens nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import anyio.to_thread
from fastapi import Request, Response
from starlette.requests import HTTPConnection

from dsv2.service.platform.store_errors import translated, unauthorized
from dsv2.service.serving import Caller, Rates
from dsv2.service.store import Store, keys, users
from dsv2.service.store.checks import now_ms
from dsv2.service.store.errors import AuthenticationError, FieldError
from dsv2.service.store.users import User
from dsv2.service.web.origins import (
    SAFE_METHODS,
    check_same_site,
    comes_from_a_page,
    is_local,
    is_same_site,
)

log = logging.getLogger("dsv2.service")

SITE = "/api/"
"""Where the site's own routes are."""
GUEST_EMAIL = "guest@localhost"
MAX_SECRET = 512
"""Longest key or session that is looked for; ours are shorter."""


@dataclass(frozen=True)
class SessionCookie:
    """The cookie that a session's secret travels in.

    Attributes:
        secure: whether browsers reach this server by TLS: then nobody else's subdomain can set the
            cookie, and it never goes over the wire in the clear.
    """

    secure: bool = False

    @property
    def name(self) -> str:
        """Of the cookie."""
        return "__Host-dsv2-session" if self.secure else "dsv2-session"

    def read(self, connection: HTTPConnection) -> str | None:
        """The session's secret, if the request has one."""
        return connection.cookies.get(self.name)

    def give(self, response: Response, token: str, seconds: int) -> None:
        """Let a browser keep a session."""
        response.set_cookie(
            self.name, token, max_age=seconds, path="/", secure=self.secure, httponly=True,
            samesite="lax",
        )  # fmt: skip

    def take_back(self, response: Response) -> None:
        """Let a browser forget it."""
        response.delete_cookie(
            self.name, path="/", secure=self.secure, httponly=True, samesite="lax"
        )


@dataclass(frozen=True)
class StoreIdentify:
    """Finds callers in the store; what the application calls for every guarded route.

    Attributes:
        store: the database.
        cookie: of sessions.
        guest_id: the user that somebody on this machine is without a key or session; None where
            the operator has not allowed a guest, or the server listens to other machines too.
        clock: milliseconds since 1970.
    """

    store: Store
    cookie: SessionCookie = SessionCookie()
    guest_id: str | None = None
    clock: Callable[[], int] = now_ms

    async def __call__(self, request: Request) -> Caller:
        """The caller.

        Raises:
            ApiError: 401 without one; 403 for another site's page; 503 without the database.
        """
        secret = self._secret(request)
        is_site = request.url.path.startswith(SITE)
        if secret is None:
            self._check_guest(request)
        elif is_site and request.method not in SAFE_METHODS:
            check_same_site(request)
        with translated():
            try:
                return await anyio.to_thread.run_sync(self._find, secret, is_site)
            except FieldError as error:  # no such secret can be stored
                raise unauthorized() from error
            except AuthenticationError as error:
                log.info("not authenticated: %s", error.reason)
                raise

    def _secret(self, request: Request) -> str | None:
        if request.url.path.startswith(SITE):
            return self.cookie.read(request)
        secret = _bearer(request.headers.getlist("authorization"))
        secret = secret or request.headers.get("x-api-key")
        if secret is not None and self.guest_id is not None and not secret.startswith("sk-"):
            # Clients cannot be told to send no key at all: what is none of ours counts as none.
            return None
        return secret

    def allows_guest(self, request: Request) -> bool:
        """Whether somebody may ask this without a key or session."""
        if self.guest_id is None or not is_local(request):
            return False
        # The guest has no secret, so any page in a browser on this machine could ask for them.
        return is_same_site(request) or not comes_from_a_page(request)

    def _check_guest(self, request: Request) -> None:
        if not self.allows_guest(request):
            raise unauthorized()

    def _find(self, secret: str | None, is_site: bool) -> Caller:
        with self.store.read() as db:
            if secret is None:
                assert self.guest_id is not None
                user = users.get_user(db, self.guest_id)
                if user.status != "active":
                    raise AuthenticationError("the guest is suspended")
                return Caller(user.id, user.account_id, "user")
            if len(secret) > MAX_SECRET:
                raise AuthenticationError("too long for a key or session")
            if is_site:
                user = users.session_user(db, secret, now=self.clock())
                return _caller_of(user)
            found = keys.authenticate(db, secret, now=self.clock())
            return _caller_with(found)


def add_guest(store: Store, *, now: int) -> str:
    """The id of the guest's user, who is made if there is none: unlimited, and no administrator."""
    with store.write() as db:
        user = users.find_user(db, GUEST_EMAIL)
        if user is None:
            user = users.add_user(db, GUEST_EMAIL, now=now, unlimited=True)
        return user.id


def _bearer(values: list[str]) -> str | None:
    if len(values) != 1:
        return "" if values else None
    scheme, _, secret = values[0].partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def _caller_of(user: User) -> Caller:
    return Caller(user.id, user.account_id, user.role)


def _caller_with(found: keys.Caller) -> Caller:
    key = found.key
    limits = key.limits
    return Caller(
        user_id=key.user_id,
        account_id=key.account_id,
        role=found.role,
        key_id=key.id,
        models=limits.models,
        rates=Rates(limits.requests_per_minute, limits.tokens_per_minute, limits.max_concurrent),
    )
