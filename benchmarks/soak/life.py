"""The two processes of a platform, as they are before they are killed.

Both are what ``dsv2 serve`` runs, from their parts: the application with everything before and
behind it, and the engine process with a model. Only their parent differs, so that either can be
killed alone and followed by the next within a fraction of a second.
"""

from __future__ import annotations

import ctypes
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvicorn

from dsv2.checkpoint import resolve
from dsv2.service.chats.runs import answering
from dsv2.service.platform.bootstrap import open_platform
from dsv2.service.platform.office import Office, running
from dsv2.service.serving import Models, ServedModel
from dsv2.service.settings import ServeSettings
from dsv2.service.site import make_app
from dsv2.service.store.checks import now_ms
from dsv2.service.web import event_loop
from dsv2.service.web.bounded_http import BoundedProtocol
from dsv2.service.web.metrics import Metrics
from dsv2.service.worker import main as worker
from dsv2.service.worker.client import EngineClient
from dsv2.tokenizer import Tokenizer, chat_format

MODEL = "soaked"
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Api:
    """One life of the process that speaks HTTP.

    Attributes:
        data: the installation's folder.
        database: a URL; empty for SQLite in the folder.
        model: a folder or a name, whose tokenizer is used.
        sockets: folder of the engine's sockets.
        port: of the loopback, to listen on.
        ahead: milliseconds that its clock is ahead of this machine's: each life begins when what
            the one before has held is run out, and not a minute later.
        renew_seconds: how often it writes down what its requests have produced; a tenth as often it
            delivers its outbox.
    """

    data: str
    database: str
    model: str
    sockets: str
    port: int
    ahead: int
    renew_seconds: float

    def run(self) -> None:
        """Serve until killed, or until the parent is gone."""
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        event_loop.run(self._serve())

    async def _serve(self) -> None:
        settings = ServeSettings(data=Path(self.data), database=self.database, guest=False)
        store = open_platform(settings)
        office = Office(store, folder=settings.data, clock=lambda: now_ms() + self.ahead)
        office.keeper.renew_seconds = self.renew_seconds
        office.keeper.clear_seconds = 10 * self.renew_seconds
        client = EngineClient(self.sockets)
        await client.start()
        await client.wait_ready(120.0)
        tokenizer = Tokenizer.from_folder(resolve(self.model))
        form = chat_format(tokenizer.chat_format_name, tokenizer)
        models = Models([ServedModel(MODEL, client, tokenizer, form)])
        metrics = Metrics(lambda: models.all)
        async with running(office):
            app = make_app(settings, office, models, metrics, is_ready=lambda: True)
            async with answering(app.state.runs):
                config = uvicorn.Config(
                    app, host="127.0.0.1", port=self.port, lifespan="off", log_config=None,
                    access_log=False, ws="none", http=BoundedProtocol,
                )  # fmt: skip
                await uvicorn.Server(config).serve()


@dataclass(frozen=True)
class Engine:
    """One life of the engine process.

    Attributes:
        options: as JSON, of :class:`dsv2.service.worker.process.WorkerOptions`.
    """

    options: str

    def run(self) -> None:
        """Serve until killed, or until the parent is gone."""
        worker.main([self.options])


KINDS: dict[str, Callable[..., Api | Engine]] = {"Api": Api, "Engine": Engine}


def order_of(life: Api | Engine) -> dict[str, Any]:
    """A life as JSON can say it."""
    return {"kind": type(life).__name__, "life": asdict(life)}


def begin(order: dict[str, Any]) -> tuple[int, int]:
    """Fork a process that lives the life of an order.

    Returns:
        Its id, and the other end of its standard input, which is to be closed when it has ended.
    """
    life = KINDS[order["kind"]](**order["life"])
    source, held = os.pipe()
    if pid := os.fork():
        os.close(source)
        return pid, held
    status = 1
    try:
        os.close(held)
        os.dup2(source, 0)
        os.dup2(2, 1)
        life.run()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
