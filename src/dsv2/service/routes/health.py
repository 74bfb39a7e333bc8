"""Whether the server works: its listener, its engines, and a token from each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse

from dsv2 import __version__
from dsv2.engine.request import OverloadedError, Request, RequestError, SamplingParams
from dsv2.service.serving import EngineGoneError, Models, ServedModel
from dsv2.service.web.deps import Administrator, Public
from dsv2.service.web.metrics import Metrics
from dsv2.service.worker.streams import outputs_of

_GENERATE_SECONDS = 30.0
"""How long a deep check waits for a token."""


def health_routes(models: Models, is_ready: Callable[[], bool]) -> APIRouter:
    """``/health``, ``/ready`` and ``/version``, for anybody.

    Args:
        models: whose engines must live.
        is_ready: False while the server starts or drains.
    """
    router = APIRouter(tags=["health"])
    failing: dict[int | str, dict[str, Any]] = {503: {"description": "Not now"}}

    @router.get("/health", dependencies=[Public], responses=failing)
    async def health() -> JSONResponse:
        """200 while every engine's step loop shows itself, else 503."""
        dead = [model.name for model in models.all if not model.engine.is_healthy]
        return _status({"status": "unhealthy", "models": dead} if dead else {"status": "ok"}, dead)

    @router.get("/ready", dependencies=[Public], responses=failing)
    async def ready() -> JSONResponse:
        """200 while new requests are taken, else 503."""
        waits = not is_ready() or not all(model.engine.is_healthy for model in models.all)
        return _status({"status": "not ready" if waits else "ready"}, waits)

    @router.get("/version", dependencies=[Public])
    async def version() -> JSONResponse:
        """Of dsv2."""
        return _status({"version": __version__}, None)

    return router


def operations_routes(models: Models, metrics: Metrics) -> APIRouter:
    """``/metrics``, ``/load``, ``/server_info`` and ``/health/generate``, for administrators."""
    router = APIRouter(tags=["operations"])
    failing: dict[int | str, dict[str, Any]] = {503: {"description": "A model does not answer"}}

    @router.get("/metrics", response_class=PlainTextResponse)
    async def prometheus(caller: Administrator) -> PlainTextResponse:
        """Counters in Prometheus' text format."""
        words = "text/plain; version=0.0.4; charset=utf-8"
        return PlainTextResponse(metrics.text(), media_type=words)

    @router.get("/load")
    async def load(caller: Administrator) -> JSONResponse:
        """What every engine has to do, as of its last heartbeat."""
        found = {}
        for model in models.all:
            stats = model.engine.stats
            used = stats.total_blocks - stats.free_blocks
            found[model.name] = {
                "running": stats.running, "waiting": stats.waiting,
                "used_blocks": used, "total_blocks": stats.total_blocks,
            }  # fmt: skip
        return _status({"models": found}, None)

    @router.get("/server_info")
    async def server_info(caller: Administrator) -> JSONResponse:
        """What is served: models, what runs them, and what they can take."""
        found = {
            model.name: {
                "aliases": list(model.aliases), "description": model.engine.description,
                "max_context": model.engine.limits.max_context,
            }
            for model in models.all
        }  # fmt: skip
        return _status({"version": __version__, "models": found}, None)

    @router.get("/health/generate", responses=failing)
    async def generate(caller: Administrator) -> JSONResponse:
        """200 when every model generates a token, else 503 and why not."""
        found = await asyncio.gather(*(_generate(model) for model in models.all))
        problems = {
            model.name: why for model, why in zip(models.all, found, strict=True) if why is not None
        }
        words = {"status": "unhealthy", "models": problems} if problems else {"status": "ok"}
        return _status(words, problems)

    return router


def _status(content: dict[str, Any], is_bad: object) -> JSONResponse:
    return JSONResponse(content, 503 if is_bad else 200, headers={"Cache-Control": "no-store"})


async def _generate(model: ServedModel) -> str | None:
    """Why a model cannot generate one token, or None."""
    params = SamplingParams(max_tokens=1, temperature=0.0)
    prompt = (model.tokenizer.bos_id,)
    request = Request(f"health-{uuid4().hex}", prompt, params, tenant="health", salt="health")
    try:
        async with asyncio.timeout(_GENERATE_SECONDS):
            async for output in outputs_of(model.engine, request):
                if output.error is not None:
                    return output.error
    except TimeoutError:
        return f"no token within {_GENERATE_SECONDS:.0f} s"
    except (EngineGoneError, OverloadedError, RequestError) as error:
        return str(error)
    return None
