"""What a browser finds at ``/``: the site, or where none is built in a page that says so."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from dsv2.service.web.deps import Public
from dsv2.service.web.static_files import BuiltSite

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>dsv2</title>
<h1>dsv2</h1>
<p>The API is at <a href="/v1/models">/v1</a>, described in <a href="/openapi.json">OpenAPI</a>.</p>
<p>The chat website is not part of this build.</p>
</html>
"""


def home_routes(site: BuiltSite | None = None) -> APIRouter:
    """``/`` alone."""
    router = APIRouter(include_in_schema=False)

    @router.get("/", dependencies=[Public])
    async def home(request: Request) -> Response:
        """The site's page, or one that points to the API."""
        if site is not None:
            return site.page(request)
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": "default-src 'none'"})

    return router
