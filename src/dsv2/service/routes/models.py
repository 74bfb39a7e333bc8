"""``GET /models``: what is served."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from dsv2.service.inference.answers import ModelCard, ModelList, encode
from dsv2.service.inference.context import Inference
from dsv2.service.serving import Caller, ServedModel
from dsv2.service.web.deps import SignedIn
from dsv2.service.web.errors import unknown_model
from dsv2.service.web.openapi import described


def router(inference: Inference) -> APIRouter:
    """The routes, with and without ``/v1``."""
    made = APIRouter(tags=["models"])

    async def list_models(caller: SignedIn) -> Response:
        """The models that the caller's key is for, by name; aliases are not listed."""
        return _answer(ModelList([_card(one) for one in _allowed(inference, caller)]))

    async def retrieve_model(model: str, caller: SignedIn) -> Response:
        """One model, by its name or an alias."""
        found = inference.models.find(model)
        allowed = _allowed(inference, caller)
        if found is None or found not in allowed:
            raise unknown_model(model, tuple(one.name for one in allowed))
        return _answer(_card(found))

    for start in ("", "/v1"):
        made.add_api_route(
            f"{start}/models", list_models, methods=["GET"], **described(None, ModelList)
        )
        made.add_api_route(
            f"{start}/models/{{model:path}}", retrieve_model, methods=["GET"],
            **described(None, ModelCard, may_miss=True),
        )  # fmt: skip
    return made


def _allowed(inference: Inference, caller: Caller) -> list[ServedModel]:
    return [model for model in inference.models.all if caller.may_use(model.name)]


def _card(model: ServedModel) -> ModelCard:
    return ModelCard(model.name, model.created, model.owned_by)


def _answer(value: object) -> Response:
    return Response(encode(value), media_type="application/json")
