"""Who may call a route. Every route names one of these; the application refuses one that does not.

The application holds one ``identify`` function: it finds the caller behind a request's key or
session, or raises.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request

from dsv2.service.serving import Caller
from dsv2.service.web.errors import ApiError

Identify = Callable[[Request], Awaitable[Caller]]


async def public() -> None:
    """Anybody may call the route: it tells nothing and changes nothing."""


async def signed_in(request: Request) -> Caller:
    """The caller; 401 without one."""
    identify: Identify = request.app.state.identify
    found = await identify(request)
    request.state.caller = found
    return found


async def administrator(caller: Annotated[Caller, Depends(signed_in)]) -> Caller:
    """The caller, who must be an administrator; else 403."""
    if caller.role != "admin":
        raise ApiError(403, "This needs an administrator", code="not_an_administrator")
    return caller


SignedIn = Annotated[Caller, Depends(signed_in)]
Administrator = Annotated[Caller, Depends(administrator)]
Public = Depends(public)
