"""``dsv2 serve``: engines, store and application put together, from start to drain.

What only the front needs is imported while the engines load: that takes a good part of a second.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import signal
import socket
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv2.checkpoint import resolve
from dsv2.machine import available_bytes
from dsv2.service.platform.bootstrap import first_admin_key, open_platform
from dsv2.service.replicas.cluster import Scaling, connected
from dsv2.service.replicas.engine import RayEngine, tokenizer_of
from dsv2.service.serving import Models, ServedModel
from dsv2.service.settings import ModelSettings, ServeSettings, SettingsError
from dsv2.service.store.checks import now_ms
from dsv2.service.web import event_loop
from dsv2.service.web.logs import resolve_format, set_up
from dsv2.service.worker.client import EngineClient
from dsv2.service.worker.process import EXIT_CLEAN, EXIT_UNFINISHED, WorkerOptions
from dsv2.service.worker.supervisor import Patience, Supervisor
from dsv2.tokenizer import Tokenizer, chat_format

if TYPE_CHECKING:
    from dsv2.service.chats.runs import Runs
    from dsv2.service.web.drain import Drain

log = logging.getLogger("dsv2.service")

EXIT_FAILED = 1
"""An engine is gone for good, or a listener cannot be opened."""
_CLOSING = 2.0
"""Seconds for answers to write that they were cut off."""
_COLLECT_AFTER = (10_000, 10, 10)
"""Objects, and rounds over younger ones, between two of the garbage collector's."""

Say = Callable[[str], None]


class Server:
    """One installation in this process.

    Args:
        settings: of it.
        say: tells the operator on the terminal what happens.

    Attributes:
        failure: why an engine is gone for good; None while it is not.
    """

    def __init__(self, settings: ServeSettings, say: Say) -> None:
        self.settings, self._say = settings, say
        self.failure: str | None = None
        self._stop = asyncio.Event()
        self._cut = asyncio.Event()
        self._drain: Drain | None = None
        self._runs: Runs | None = None
        self._supervisors: list[Supervisor] = []
        self._clients: list[EngineClient | RayEngine] = []
        self._is_up = False

    @property
    def is_ready(self) -> bool:
        """Whether new requests are taken."""
        return self._is_up and not (self._drain is None or self._drain.has_begun)

    def stop(self) -> None:
        """Begin to drain; at once the second time."""
        if self._stop.is_set():
            self._cut.set()
        self._stop.set()

    async def run(self) -> int:
        """Serve until stopped; the exit status.

        Raises:
            SettingsError, StoreError, OSError: something needed cannot be had; the message says
                what.
        """
        loop = asyncio.get_running_loop()
        self._follow_signals()
        try:
            async with AsyncExitStack() as stack:
                return await self._run(stack)
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _follow_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)

    async def _run(self, stack: AsyncExitStack) -> int:
        settings = self.settings
        # A port that is taken is said before a model is loaded.
        listening = _bind(settings.host, settings.port)
        stack.callback(listening.close)
        operating = None
        if settings.operations_port is not None:
            operating = _bind("127.0.0.1", settings.operations_port)
            stack.callback(operating.close)
        provider = None
        if settings.trace:
            from dsv2.service.web import tracing

            provider = tracing.start()
            stack.push_async_callback(asyncio.to_thread, provider.shutdown)
        store = open_platform(settings)
        stack.callback(store.close)
        secret = first_admin_key(store, now=now_ms())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dsv2-")))
        engines = self._replicas() if settings.ray else self._engines(folder)
        models = await stack.enter_async_context(engines)
        if models is None:
            return EXIT_FAILED if self.failure else EXIT_CLEAN
        from dsv2.service import front
        from dsv2.service.web.listener import Listener

        opened = front.opened(settings, store, models, lambda: self.is_ready, provider)
        made = await stack.enter_async_context(opened)
        self._runs, self._drain = made.runs, made.drain
        listeners = [(Listener(made.drain), listening)]
        if operating is not None:
            listeners.append((Listener(made.operations), operating))
        tasks = [listener.install([place]) for listener, place in listeners]
        _spare_collector()
        self._is_up = True
        self._tell(listening, operating, models, secret, made.has_site)
        await self._stop.wait()
        clean = await self._drained(made.drain)
        for listener, _ in listeners:
            listener.should_exit = True
        await asyncio.gather(*tasks)
        if self.failure is not None:
            return EXIT_FAILED
        return EXIT_CLEAN if clean else EXIT_UNFINISHED

    @asynccontextmanager
    async def _engines(self, folder: Path) -> AsyncGenerator[Models | None]:
        """Engine processes that are ready, one per model; None if the server is to end before."""
        settings = self.settings
        patience = Patience(
            ready=settings.start_seconds, hang=settings.hang_seconds,
            restarts=settings.max_restarts,
        )  # fmt: skip
        try:
            clients: list[EngineClient] = []
            memory = self._memory_share()
            for number, model in enumerate(settings.models):
                options = _worker_options(model, settings, folder, f"engine-{number}", memory)
                supervisor = Supervisor(options, patience=patience, on_failed=self._failed)
                client = EngineClient(folder, options.name, hang_after=settings.hang_seconds)
                self._supervisors.append(supervisor)
                self._clients.append(client)
                clients.append(client)
                self._say(f"loading {model.name}")
                await supervisor.start()
                await client.start()
            await asyncio.to_thread(importlib.import_module, "dsv2.service.front")
            ready = asyncio.gather(*(self._ready(n, one) for n, one in enumerate(clients)))
            if not await self._unless_stopped(ready):
                yield None
                return
            if (error := ready.exception()) is not None:
                self.failure = self.failure or str(error)
                yield None
                return
            yield Models(
                [
                    self._served(model, client, Tokenizer.from_folder(resolve(model.model)))
                    for model, client in zip(settings.models, clients, strict=True)
                ]
            )
        finally:
            await self._close_clients()
            await asyncio.gather(*(one.stop(0.0) for one in self._supervisors))

    def _memory_share(self) -> int | None:
        """Bytes of memory that each model may plan with; None where none has to share.

        They are divided once, before any model loads. An engine that is started again later would
        find less free, and must not answer in another format or context because of it.
        """
        models = [one for one in self.settings.models if not one.device.startswith("cuda")]
        if len(models) < 2 or all(one.cache_tokens is not None for one in models):
            return None
        share = available_bytes() // len(models)
        self._say(
            f"on a CPU each of {len(models)} models plans with {share / 1e9:.2f} GB, an equal part "
            "of the free memory; one with cache_tokens plans with all of it"
        )
        return share

    async def _close_clients(self) -> None:
        while self._clients:
            await self._clients.pop().close()

    @asynccontextmanager
    async def _replicas(self) -> AsyncGenerator[Models | None]:
        """Replicas of Ray Serve that are ready; None if the server is to end before."""
        settings = self.settings
        scaling = Scaling(
            settings.ray_min_replicas, settings.ray_max_replicas, settings.ray_target_requests,
            start_seconds=settings.start_seconds, hang_seconds=settings.hang_seconds,
        )  # fmt: skip
        async with AsyncExitStack() as stack:
            cluster = await stack.enter_async_context(connected(settings.ray_address))
            self._follow_signals()  # Ray's core puts its own handler of SIGTERM in their place
            served: list[ServedModel] = []
            for model in settings.models:
                self._say(f"loading {model.name} on Ray")
                options = _worker_options(model, settings, Path(), "engine")
                name = f"{settings.ray_app}-{model.name}"
                starting = asyncio.ensure_future(
                    stack.enter_async_context(cluster.deployed(name, options, scaling))
                )
                if not await self._unless_stopped(starting):
                    yield None
                    return
                if (error := starting.exception()) is not None:
                    self._failed(str(error))
                    yield None
                    return
                engine = starting.result()
                self._clients.append(engine)
                tokenizer = await asyncio.to_thread(tokenizer_of, engine.tokenizer_files)
                served.append(self._served(model, engine, tokenizer))
            yield Models(served)

    async def _unless_stopped(self, waits: asyncio.Future[Any]) -> bool:
        """Wait for something; false, and it is cancelled, when the server is stopped before."""
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait((waits, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not waits.done():
            waits.cancel()
            await asyncio.gather(waits, return_exceptions=True)
            return False
        return True

    async def _ready(self, number: int, client: EngineClient) -> None:
        supervisor = self._supervisors[number]
        watching = asyncio.create_task(self._follow(number))
        try:
            await supervisor.wait_ready()
            await client.wait_ready(30.0)
        finally:
            watching.cancel()

    async def _follow(self, number: int) -> None:
        """Tell the operator what is done to a model before it is loaded."""
        model, last = self.settings.models[number], ""
        while True:
            report = self._supervisors[number].progress
            if report is not None and report.phase == "preparing" and report.text != last:
                last = report.text
                if last != model.model:
                    self._say(f"{model.name}: {last}")
            await asyncio.sleep(0.2)

    def _served(
        self, model: ModelSettings, client: EngineClient | RayEngine, tokenizer: Tokenizer
    ) -> ServedModel:
        self._say(f"{model.name}: {client.description}")
        form = chat_format(tokenizer.chat_format_name, tokenizer)
        return ServedModel(model.name, client, tokenizer, form, model.aliases)

    def _failed(self, reason: str) -> None:
        self.failure = reason
        self._say(f"an engine is gone for good: {reason}")
        self.stop()

    async def _drained(self, drain: Drain) -> bool:
        """Let answers under way end; whether all of them did."""
        drain.begin()
        runs = self._runs
        if drain.open or (runs is not None and runs.open):
            self._say(f"stopping: {drain.open} requests may take up to "
                      f"{self.settings.drain_seconds:g} s")  # fmt: skip
        seconds = 0.0 if self.failure else self.settings.drain_seconds
        waiting = asyncio.create_task(_all_ended(drain, runs, seconds))
        cut = asyncio.create_task(self._cut.wait())
        await asyncio.wait((waiting, cut), return_when=asyncio.FIRST_COMPLETED)
        cut.cancel()
        clean = waiting.done() and waiting.result()
        waiting.cancel()
        if not clean:
            # The chat's answers keep what there is of them; every open stream of the API ends with
            # an error event.
            if runs is not None:
                await runs.interrupt()
            await self._close_clients()
            await drain.wait(_CLOSING)
        return clean

    def _tell(
        self, listening: socket.socket, operating: socket.socket | None, models: Models,
        secret: str | None, has_site: bool,
    ) -> None:  # fmt: skip
        address = _address(listening)
        self._say(f"serving {', '.join(models.names)} at {address}")
        if has_site:
            self._say(f"chat in a browser: {address}/")
        else:
            self._say("the chat site is not part of this build")
        if operating is not None:
            self._say(f"metrics at {_address(operating)}/metrics")
        if secret is not None:
            self._say(f"the first administrator's key, shown this once: {secret}")
        key = secret or "$DSV2_API_KEY"
        self._say("try it:")
        self._say(
            f"  curl -N {address}/v1/chat/completions -H 'Content-Type: application/json' "
            f'-H "Authorization: Bearer {key}" -d '
            f'\'{{"model": "{models.names[0]}", "stream": true, "messages": '
            '[{"role": "user", "content": "What is 17 + 25?"}]}\''
        )


def _spare_collector() -> None:
    """Let the garbage collector leave alone what is there to stay, and look less often.

    It would walk through all modules and routes again and again for the few cycles that requests
    leave behind: an eighth of what a streamed token costs.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


async def _all_ended(drain: Drain, runs: Runs | None, seconds: float) -> bool:
    """Whether within a time neither a request nor an answer of the chat is under way."""
    waits = [drain.wait(seconds)] + ([] if runs is None else [runs.wait(seconds)])
    return all(await asyncio.gather(*waits))


def _worker_options(
    model: ModelSettings, settings: ServeSettings, folder: Path, name: str,
    memory: int | None = None,
) -> WorkerOptions:  # fmt: skip
    return WorkerOptions(
        model=model.model, folder=str(folder), name=name, drain_seconds=settings.drain_seconds,
        max_waiting=settings.max_waiting, device=model.device, dtype=model.dtype,
        cache_dtype=model.cache_dtype, cache_tokens=model.cache_tokens,
        memory=memory if model.cache_tokens is None else None,
        max_sequences=model.max_sequences, max_step_tokens=model.max_step_tokens,
        threads=model.threads, deterministic=model.deterministic, speculate=model.speculate,
        pull=model.pull, hub=model.hub, log_level=settings.log_level,  # type: ignore[arg-type]
        log_format=resolve_format(settings.log_format),
    )  # fmt: skip


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        SettingsError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named, or asyncio leaves Nagle's algorithm on: 40 ms for many an answer.
    place = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((host, port))
    except OSError as error:
        place.close()
        raise SettingsError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return place


def _address(place: socket.socket) -> str:
    host, port = place.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(settings: ServeSettings) -> int:
    """Serve until stopped; the exit status: 0 after a clean drain.

    Raises:
        SettingsError, StoreError, OSError: something needed cannot be had.
    """
    set_up(settings.log_level, settings.log_format)
    log.info("the event loop is %s", event_loop.NAME)
    return event_loop.run(_run(settings))


async def _run(settings: ServeSettings) -> int:
    return await Server(settings, lambda line: print(line, flush=True)).run()
