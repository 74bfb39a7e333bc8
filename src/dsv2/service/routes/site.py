"""What the site begins with, and what it shows operators.

| method, path | who | what |
|---|---|---|
| GET ``/api/site`` | anybody | who one is, and whether one may be a guest or sign up |
| GET ``/api/openapi.json`` | who is signed in | the API's description, which keys have elsewhere |
| GET ``/api/admin/engines`` | administrator | the engines as of their last heartbeat |
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from msgspec.structs import asdict
from sqlalchemy import Connection

import dsv2
from dsv2.service.platform.desk import Answers, Desk
from dsv2.service.platform.office import Office
from dsv2.service.serving import Caller
from dsv2.service.store import users
from dsv2.service.store.settings import load_settings
from dsv2.service.web.deps import Administrator, Public, SignedIn
from dsv2.service.web.errors import ApiError
from dsv2.service.web.openapi import schema_of

router = APIRouter(prefix="/api")


@router.get("/site", dependencies=[Public])
async def site(request: Request, response: Response, office: Desk) -> Any:
    """What a page needs to start. A session that is over is taken back."""
    caller = await _caller(request, office)
    if caller is None and office.cookie.read(request) is not None:
        office.cookie.take_back(response)
    response.headers["Cache-Control"] = "no-store"

    def read(db: Connection) -> dict[str, Any]:
        user = None
        if caller is not None and caller.user_id != office.guest_id:
            found = users.get_user(db, caller.user_id)
            user = {"email": found.email, "role": found.role}
        return {"sign_up": load_settings(db).sign_up_open, "user": user}

    guest = office.identify.allows_guest(request)
    return {"guest": guest, "version": dsv2.__version__} | await office.read(read)


@router.get("/openapi.json", include_in_schema=False)
async def description(request: Request, caller: SignedIn) -> JSONResponse:
    """The same as at ``/openapi.json``, where no session is looked at."""
    return JSONResponse(schema_of(request.app))


@router.get("/admin/engines")
async def engines(caller: Administrator, runs: Answers) -> Any:
    """What each engine does; totals are since its start."""
    return {
        "engines": [
            {
                "model": model.name,
                "description": model.engine.description,
                "is_healthy": model.engine.is_healthy,
            }
            | asdict(model.engine.stats)
            for model in runs.inference.models.all
        ]
    }


async def _caller(request: Request, office: Office) -> Caller | None:
    try:
        return await office.identify(request)
    except ApiError as error:
        if error.status != 401:
            raise
        return None
