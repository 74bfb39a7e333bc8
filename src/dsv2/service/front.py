"""What answers HTTP: the platform's office and the application with all that stands before it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from dsv2.service.chats.runs import Runs, answering
from dsv2.service.platform.office import Office, ensure_prices, running
from dsv2.service.serving import Models
from dsv2.service.settings import ServeSettings
from dsv2.service.site import make_app, make_operations_app
from dsv2.service.store import Store
from dsv2.service.store.checks import now_ms
from dsv2.service.web.drain import Drain
from dsv2.service.web.metrics import Metrics
from dsv2.service.web.static_files import built_site
from dsv2.service.web.tracing import TracedAdmission, Tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


@dataclass(frozen=True)
class Front:
    """An application that is ready to be served.

    Attributes:
        drain: the application, behind what lets it drain.
        operations: what the loopback's own listener serves.
        runs: answers of the site's chats under way.
        has_site: whether the chat site is a part of this build.
    """

    drain: Drain
    operations: ASGIApp
    runs: Runs
    has_site: bool


@asynccontextmanager
async def opened(
    settings: ServeSettings, store: Store, models: Models, is_ready: Callable[[], bool],
    provider: TracerProvider | None,
) -> AsyncGenerator[Front]:  # fmt: skip
    """The front of an installation, whose books are kept while it is open.

    Args:
        settings: of the installation.
        store: its database.
        models: that are served.
        is_ready: whether new requests are taken.
        provider: of traces, where they are wanted.

    Raises:
        StoreError, OSError: the database or the outbox cannot be used.
    """
    office = Office(
        store, folder=settings.data, secure=settings.secure_cookies, guest=settings.allows_guest
    )
    ensure_prices(store, models.names, now=now_ms())
    async with running(office):
        metrics = Metrics(lambda: models.all)
        site = built_site()
        made = make_app(
            settings, office, models, metrics, is_ready=is_ready,
            admission=None if provider is None else TracedAdmission(office.admission),
            built=site,
        )  # fmt: skip
        runs: Runs = made.state.runs
        async with answering(runs):
            app: ASGIApp = made if provider is None else Tracing(made, provider)
            operations = make_operations_app(models, metrics, is_ready=is_ready)
            yield Front(Drain(app), operations, runs, site is not None)
