"""The application of an installation: all routes, and what stands before them."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Request
from starlette.types import ASGIApp

from dsv2.service import desk
from dsv2.service.app import create_app
from dsv2.service.metrics import Metrics
from dsv2.service.office import Office
from dsv2.service.origins import HostCheck
from dsv2.service.routes.health import health_routes, operations_routes
from dsv2.service.routes.home import home_routes
from dsv2.service.routes.platform import platform_routers
from dsv2.service.serving import Caller, Models
from dsv2.service.settings import ServeSettings


def make_app(
    settings: ServeSettings,
    office: Office,
    models: Models,
    metrics: Metrics,
    is_ready: Callable[[], bool],
) -> ASGIApp:
    """What the public listener serves."""
    routers = [
        home_routes(),
        health_routes(models, is_ready),
        operations_routes(models, metrics),
        *platform_routers(),
    ]
    app = create_app(office.identify, routers)
    desk.install(app, office)
    return HostCheck(app, settings.host_names or ("*",))


def make_operations_app(models: Models, metrics: Metrics, is_ready: Callable[[], bool]) -> ASGIApp:
    """What the loopback's own listener serves to whoever is on this machine."""
    routers = [health_routes(models, is_ready), operations_routes(models, metrics)]
    return HostCheck(create_app(_operator, routers))


async def _operator(request: Request) -> Caller:
    return Caller("operator", "operator", "admin")
