"""What the platform's routes ask for: the office, a caller with an account, a page of rows."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict

from dsv2.service.chats.runs import Runs
from dsv2.service.platform.idempotent import add_replays
from dsv2.service.platform.office import Office
from dsv2.service.serving import Caller
from dsv2.service.web.deps import SignedIn
from dsv2.service.web.errors import ApiError


class Body(BaseModel):
    """A request's body: what it does not know it refuses, so nobody sets what is not theirs."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


def install(app: FastAPI, office: Office, runs: Runs | None = None) -> None:
    """Let routes find the office and the chat's answers, and answers given before be sent again."""
    app.state.office, app.state.runs = office, runs
    add_replays(app)


def _office(request: Request) -> Office:
    office: Office = request.app.state.office
    return office


def _runs(request: Request) -> Runs:
    runs: Runs = request.app.state.runs
    return runs


Desk = Annotated[Office, Depends(_office)]
Answers = Annotated[Runs, Depends(_runs)]
"""The chat's answers under way; for routes of an application that serves models."""


async def member(caller: SignedIn, office: Desk) -> Caller:
    """The caller, who has an account of their own; 403 for the guest."""
    if caller.user_id == office.guest_id:
        raise ApiError(403, "This needs an account of one's own", code="guest")
    return caller


Member = Annotated[Caller, Depends(member)]
Limit = Annotated[int, Query(ge=1, le=1000, description="Most rows.")]
Offset = Annotated[int, Query(ge=0, le=10**9, description="Rows to leave out.")]
Before = Annotated[int | None, Query(ge=0, le=2**62, description="Only rows with lower ids.")]
Day = Annotated[str | None, Query(max_length=10, description="YYYY-MM-DD in UTC.")]


def address_of(request: Request) -> str:
    """Whom to count attempts by: the client's address, or the network of an IPv6 one."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 6:
        return str(ipaddress.ip_network((address.packed, 64), strict=False))
    return host


def wait_or_refuse(*attempts: Callable[[], float]) -> None:
    """Count an attempt in one throttle after the other, until one of them refuses it.

    Raises:
        ApiError: 429 with ``Retry-After``.
    """
    for attempt in attempts:
        if wait := attempt():
            headers = {"Retry-After": str(max(1, math.ceil(wait)))}
            raise ApiError(429, "Rate limit reached: too many attempts", headers=headers)
