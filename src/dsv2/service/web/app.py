"""The application: routers put together, and every error in one shape."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from dsv2.service.web.deps import Identify, public, signed_in
from dsv2.service.web.error_shapes import body_at
from dsv2.service.web.errors import ApiError
from dsv2.service.web.http import MAX_BODY_BYTES, BodyLimit, HostCheck, RequestContext, RequestWatch
from dsv2.service.web.openapi import schema_of
from dsv2.service.web.static_files import BuiltSite

EXPOSED = (
    "x-request-id", "openai-processing-ms", "retry-after", "idempotent-replayed",
    *(
        f"x-ratelimit-{what}-{of}"
        for what in ("limit", "remaining", "reset")
        for of in ("requests", "tokens")
    ),
)  # fmt: skip
"""Headers of answers that pages of other sites may read, beside those that they always may."""
_WORDS = {404: "There is no such address", 405: "This address does not take that method"}


def create_app(
    identify: Identify,
    routers: Iterable[APIRouter],
    *,
    schema_is_public: bool = False,
    hosts: Collection[str] | None = None,
    origins: Collection[str] = (),
    max_body_bytes: int = MAX_BODY_BYTES,
    watch: RequestWatch | None = None,
    site: BuiltSite | None = None,
) -> FastAPI:
    """The application.

    Args:
        identify: finds the caller of a request; raises :class:`ApiError` 401.
        routers: the routes.
        schema_is_public: whether ``/openapi.json`` is for everybody, else for who is signed in.
        hosts: names that this server goes by, without ports; None for any.
        origins: web sites whose pages may read answers; none by default. Cookies are never allowed.
        max_body_bytes: of a request.
        watch: is told of every request.
        site: what browsers find at addresses that no route has; anybody may see it.

    Raises:
        ValueError: a route does not say who may call it.
    """
    app = FastAPI(title="dsv2", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.identify, app.state.site = identify, site
    for router in (*routers, _schema_router(app, is_public=schema_is_public)):
        for route in router.routes:
            if not isinstance(route, APIRoute) or not _is_guarded(route):
                raise ValueError(f"route {getattr(route, 'path', route)!r} does not say who may")
        # As they are: included, each would be taken apart again when somebody first asks.
        app.router.routes.extend(router.routes)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    # The one that is added last stands outermost.
    app.add_middleware(BodyLimit, limit=max_body_bytes)
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"],
            allow_headers=["*"], expose_headers=EXPOSED,
        )  # fmt: skip
    if hosts is not None:
        app.add_middleware(HostCheck, allowed=hosts)
    app.add_middleware(RequestContext, watch=watch)
    return app


def _schema_router(app: FastAPI, *, is_public: bool) -> APIRouter:
    router = APIRouter(dependencies=[Depends(public if is_public else signed_in)])

    @router.get("/openapi.json", include_in_schema=False)
    async def openapi() -> JSONResponse:
        return JSONResponse(schema_of(app))

    return router


def answer_of(error: ApiError, scope: Mapping[str, Any]) -> JSONResponse:
    """An error as an answer, in the shape of the address that was asked."""
    return JSONResponse(body_at(scope, error), error.status, headers=error.headers)


def _is_guarded(route: APIRoute) -> bool:
    return any(call in (public, signed_in) for call in _calls(route.dependant))


def _calls(dependant: Dependant) -> Iterator[Any]:
    for child in dependant.dependencies:
        yield child.call
        yield from _calls(child)


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return answer_of(error, request.scope)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    site: BuiltSite | None = request.app.state.site
    if error.status_code == 404 and site is not None:
        found = site.find(request)
        if found is not None:
            return found
    words = _WORDS.get(error.status_code, str(error.detail))
    problem = ApiError(error.status_code, words, headers=error.headers)
    return answer_of(problem, request.scope)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    kind, *path = first["loc"]
    param = ".".join(str(part) for part in path) or None
    status = 422 if kind == "body" and path else 400
    problem = ApiError(status, f"{param or kind}: {first['msg']}", param=param)
    return answer_of(problem, request.scope)
