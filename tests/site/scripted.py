"""The site before an engine that says what a test wants it to say."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from dsv2.engine.request import Request
from dsv2.service.chats.runs import answering
from dsv2.service.platform.office import Office, ensure_prices, running
from dsv2.service.serving import Models, ServedModel
from dsv2.service.settings import ServeSettings
from dsv2.service.site import make_app
from dsv2.service.store import migrations, open_store
from dsv2.service.store.checks import now_ms
from dsv2.service.web.metrics import Metrics
from dsv2.service.web.static_files import built_site
from dsv2.service.worker.wire import Tokens
from dsv2.tokenizer import chat_format
from tests.service.fakes import FakeEngine, Step, pocket_tokenizer

FAR = 10**9


class Scripted:
    """A site that knows a guest, over a scripted engine.

    Args:
        folder: for its database.
        max_context: of the models.
        models: names of what it serves, all of them the one script.

    Attributes:
        text: what is answered from now on.
        size: characters that come at a time, whatever they belong to.
        pause: seconds between them.
        allowed: how many pieces come before the answer waits.
        error: what an answer fails with, where it would go beyond ``allowed``.
    """

    def __init__(
        self, folder: Path, *, max_context: int = 2048, models: tuple[str, ...] = ("scripted",)
    ) -> None:
        self.text, self.size, self.pause = "Yes.", 3, 0.0
        self.allowed = FAR
        self.error: Exception | None = None
        self.tokenizer = pocket_tokenizer()
        self.engine = FakeEngine(self._script, max_context=max_context)
        self.store = open_store(f"sqlite:///{folder / 'site.sqlite'}")
        migrations.upgrade(self.store)
        ensure_prices(self.store, models, now=now_ms())
        self.office = Office(self.store, folder=folder, guest=True)
        form = chat_format("v2.5", self.tokenizer)
        served = Models([ServedModel(name, self.engine, self.tokenizer, form) for name in models])
        metrics = Metrics(lambda: served.all)
        self.app = make_app(
            ServeSettings(), self.office, served, metrics, lambda: True, built=built_site()
        )
        self.address = ""
        self._started = threading.Event()
        self._server = uvicorn.Server(
            uvicorn.Config(self.app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
        )
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def _script(self, request: Request) -> Iterable[Step]:
        text, size = self.text, self.size
        pieces = [text[place : place + size] for place in range(0, len(text), size)]
        for place, piece in enumerate(pieces):
            while place >= self.allowed:
                if self.error is not None:
                    yield self.error
                yield 0.005
            if self.pause:
                yield self.pause
            last = place == len(pieces) - 1
            yield Tokens(request.id, self.tokenizer.encode(piece), None, "stop" if last else None)

    def start(self) -> None:
        """Until it serves."""
        self._thread.start()
        assert self._started.wait(20)

    async def _serve(self) -> None:
        async with running(self.office), answering(self.app.state.runs):
            serving = asyncio.create_task(self._server.serve())
            while not self._server.started:
                await asyncio.sleep(0.01)
            port = self._server.servers[0].sockets[0].getsockname()[1]
            self.address = f"http://127.0.0.1:{port}"
            self._started.set()
            await serving

    def close(self) -> None:
        """End it."""
        self.allowed = FAR
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(20)
        self.store.close()


@contextmanager
def scripted_site(folder: Path, **options: Any) -> Iterator[Scripted]:
    """A site that serves, and ends with the block."""
    site = Scripted(folder, **options)
    try:
        site.start()
        yield site
    finally:
        site.close()
