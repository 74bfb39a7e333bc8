"""The application of an installation: all routes, and what stands before them."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI, Request
from starlette.types import ASGIApp

from dsv2.service.chats.runs import Runs
from dsv2.service.inference.context import Inference
from dsv2.service.inference.sse import Patience
from dsv2.service.platform import desk
from dsv2.service.platform.office import Office
from dsv2.service.routes import inference_routers
from dsv2.service.routes.health import health_routes, operations_routes
from dsv2.service.routes.home import home_routes
from dsv2.service.routes.platform import chat_routers, platform_routers
from dsv2.service.serving import Admission, Caller, Models
from dsv2.service.settings import ServeSettings
from dsv2.service.web.app import create_app
from dsv2.service.web.metrics import Metrics
from dsv2.service.web.static_files import BuiltSite


def make_app(
    settings: ServeSettings,
    office: Office,
    models: Models,
    metrics: Metrics,
    is_ready: Callable[[], bool],
    admission: Admission | None = None,
    built: BuiltSite | None = None,
) -> FastAPI:
    """What the public listener serves.

    Args:
        settings: of the installation.
        office: accounts, money, store.
        models: that answer.
        metrics: are told of everything.
        is_ready: whether new requests are taken.
        admission: stands for the office's own.
        built: the website, if it is.

    Returns:
        The application. Its ``state.runs`` are the chat's answers: to be started and stopped with
        it, within the office's time; :func:`dsv2.service.chats.runs.answering` does.
    """
    inference = Inference(
        models, admission or office.admission, Patience(in_line=settings.queue_seconds), metrics
    )
    routers = [
        home_routes(built),
        health_routes(models, is_ready),
        operations_routes(models, metrics),
        *inference_routers(inference),
        *platform_routers(),
        *chat_routers(),
    ]
    app = create_app(
        office.identify, routers, hosts=settings.host_names, origins=settings.allowed_origins,
        max_body_bytes=settings.max_body_bytes, watch=metrics, site=built,
    )  # fmt: skip
    desk.install(app, office, Runs(office, inference))
    return app


def make_operations_app(models: Models, metrics: Metrics, is_ready: Callable[[], bool]) -> ASGIApp:
    """What the loopback's own listener serves to whoever is on this machine."""
    routers = [health_routes(models, is_ready), operations_routes(models, metrics)]
    return create_app(_operator, routers, hosts=ServeSettings().host_names)


async def _operator(request: Request) -> Caller:
    return Caller("operator", "operator", "admin")
