"""The application: routers put together, and every error in one shape."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from dsv2.service.deps import Identify, public, signed_in
from dsv2.service.errors import ApiError

log = logging.getLogger("dsv2.service")

_WORDS = {404: "There is no such address", 405: "This address does not take that method"}


def create_app(identify: Identify, routers: Iterable[APIRouter]) -> FastAPI:
    """The application.

    Args:
        identify: finds the caller of a request; raises :class:`ApiError` 401.
        routers: the routes.

    Raises:
        ValueError: a route does not say who may call it.
    """
    app = FastAPI(title="dsv2", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.identify = identify
    for router in routers:
        for route in router.routes:
            if not isinstance(route, APIRoute) or not _is_guarded(route):
                raise ValueError(f"route {getattr(route, 'path', route)!r} does not say who may")
        app.include_router(router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(Exception, _unforeseen)
    return app


def answer_of(error: ApiError) -> JSONResponse:
    """An error as an answer."""
    return JSONResponse(error.body, error.status, headers=error.headers)


def _is_guarded(route: APIRoute) -> bool:
    return any(call in (public, signed_in) for call in _calls(route.dependant))


def _calls(dependant: Dependant) -> Iterator[Any]:
    for child in dependant.dependencies:
        yield child.call
        yield from _calls(child)


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return answer_of(error)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    words = _WORDS.get(error.status_code, str(error.detail))
    return answer_of(ApiError(error.status_code, words, headers=error.headers))


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    kind, *path = first["loc"]
    param = ".".join(str(part) for part in path) or None
    status = 422 if kind == "body" and path else 400
    return answer_of(ApiError(status, f"{param or kind}: {first['msg']}", param=param))


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    log.error("unforeseen error", exc_info=error)
    return answer_of(ApiError(500, "The server failed; the request can be sent again"))
