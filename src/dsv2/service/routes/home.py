"""What a browser finds at ``/`` where no site is built in."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from dsv2.service.deps import Public

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


def home_routes() -> APIRouter:
    """``/`` alone."""
    router = APIRouter(include_in_schema=False)

    @router.get("/", dependencies=[Public])
    async def home() -> HTMLResponse:
        """A page that points to the API."""
        return HTMLResponse(_PAGE, headers={"Content-Security-Policy": "default-src 'none'"})

    return router
