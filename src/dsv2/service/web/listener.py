"""A listener of HTTP, as uvicorn has it but for its signals, its bounds and its logs."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from starlette.types import ASGIApp

from dsv2.service.web.bounded_http import BoundedProtocol

_BACKLOG = 2048
"""Connections that wait to be accepted."""
_KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than most proxies keep theirs."""


class Listener(uvicorn.Server):
    """Serves an application, and leaves signals to whoever runs it.

    Args:
        app: what answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app, lifespan="off", log_config=None, access_log=False, server_header=False,
                proxy_headers=False, backlog=_BACKLOG, timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=1, ws="none", http=BoundedProtocol,
            )
        )  # fmt: skip

    def install(self, sockets: list[socket.socket]) -> asyncio.Task[None]:
        """Serve in the background."""
        return asyncio.create_task(self._serve(sockets))
