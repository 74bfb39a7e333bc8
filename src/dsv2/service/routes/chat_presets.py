"""``/api/chat/presets``: system prompts and parameters under names of the user's own.

| method, path | who | what |
|---|---|---|
| GET, POST ``/api/chat/presets`` | signed in | list one's presets; make one |
| PATCH, DELETE ``/api/chat/presets/{id}`` | signed in | change what the body names; delete it |
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from dsv2.service.chats.params import Params, SiteBody, checked_params
from dsv2.service.platform.desk import Answers, Desk
from dsv2.service.routes.chats import changes_of
from dsv2.service.store import presets
from dsv2.service.web.deps import SignedIn
from dsv2.service.web.json_body import json_body

router = APIRouter(prefix="/api/chat/presets")


class NewPreset(SiteBody):
    """A preset to be made."""

    name: str
    system: str = ""
    params: Params = Params()


class ChangedPreset(SiteBody):
    """What is to be another way."""

    name: str | None = None
    system: str | None = None
    params: Params | None = None


@router.get("")
async def list_presets(caller: SignedIn, office: Desk) -> Any:
    """All presets, the oldest first."""
    found = await office.read(lambda db: presets.list_presets(db, caller.user_id))
    return {"presets": [asdict(one) for one in found]}


@router.post("", status_code=201)
async def create_preset(
    caller: SignedIn,
    office: Desk,
    runs: Answers,
    body: Annotated[NewPreset, Depends(json_body(NewPreset))],
) -> Any:
    """Make a preset."""
    params = checked_params(body.params, runs.inference.models)
    made = await office.write(
        lambda db: presets.create_preset(
            db, caller.user_id, name=body.name, system=body.system, params=params,
            now=office.clock(),
        )
    )  # fmt: skip
    return asdict(made)


@router.patch("/{preset_id}")
async def change_preset(
    preset_id: str,
    caller: SignedIn,
    office: Desk,
    runs: Answers,
    body: Annotated[ChangedPreset, Depends(json_body(ChangedPreset))],
) -> Any:
    """Change what the body names; ``params`` as a whole."""
    changes = changes_of(body, runs.inference.models)
    changed = await office.write(
        lambda db: presets.change_preset(db, caller.user_id, preset_id, changes)
    )
    return asdict(changed)


@router.delete("/{preset_id}", status_code=204)
async def delete_preset(preset_id: str, caller: SignedIn, office: Desk) -> None:
    """Delete a preset; conversations that began with it keep what they have."""
    await office.write(lambda db: presets.delete_preset(db, caller.user_id, preset_id))
