"""Ray, and the applications of Ray Serve that run our replicas."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import msgspec

from dsv2.service.replicas.board import NAMESPACE, Board
from dsv2.service.replicas.engine import RayEngine
from dsv2.service.settings import SettingsError
from dsv2.service.worker.process import WorkerOptions

log = logging.getLogger("dsv2.service.replicas")

_HEALTH_SECONDS = 2.0
"""Between two of Ray's looks at a replica. One that ends is noticed at once."""


@dataclass(frozen=True)
class Scaling:
    """How many replicas a model has.

    Attributes:
        least: that always run.
        most: that may run.
        target: requests per replica that Ray aims at; None for three quarters of what an engine
            computes at once.
        start_seconds: longest that loading may take.
        hang_seconds: a step that takes longer is a hang.
        retries: of a replica that cannot start, before the server gives up.
        grow_seconds: that the load must last before another replica begins; Ray's own default.
    """

    least: int = 1
    most: int = 1
    target: int | None = None
    start_seconds: float = 1800.0
    hang_seconds: float = 120.0
    retries: int = 3
    grow_seconds: float = 30.0


def load_ray() -> ModuleType:
    """Ray itself.

    Raises:
        SettingsError: the extra is not installed.
    """
    # Read by Ray when it is imported and started.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray import serve  # noqa: F401 - it may be missing alone
    except ImportError as error:
        raise SettingsError(
            f"ray is True, which needs the extra: pip install 'dsv2[ray]' ({error})"
        ) from error
    return ray


@asynccontextmanager
async def connected(address: str, **more: Any) -> AsyncGenerator[Cluster]:
    """A connection to Ray, which ends with it; ``local`` starts a Ray of our own.

    Raises:
        SettingsError: Ray is not installed, or cannot be reached.
    """
    ray = load_ray()
    if address == "local":
        # Nobody else's to reach, and engines as urgent as they are without Ray, which would start
        # them with a niceness of 15.
        more = {
            "include_dashboard": False,
            "_node_ip_address": "127.0.0.1",
            "_system_config": {"worker_niceness": 0},
            **more,
        }

    def connect() -> None:
        # In a thread, where Ray leaves our signals alone.
        ray.init(address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False, **more)
        from ray import serve

        serve.start(proxy_location="Disabled")

    def disconnect() -> None:
        if address == "local":
            from ray import serve

            serve.shutdown()
        ray.shutdown()

    try:
        await asyncio.to_thread(connect)
    except (ConnectionError, RuntimeError, ValueError) as error:
        await asyncio.to_thread(ray.shutdown)
        raise SettingsError(f"ray_address is {address!r}: {error!s:.500}") from error
    try:
        yield Cluster(ray)
    finally:
        await asyncio.to_thread(disconnect)


class Cluster:
    """Where replicas run.

    Args:
        ray: the module, connected.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def placed(self, options: WorkerOptions, most: int) -> WorkerOptions:
        """The options with device and threads that ``most`` replicas find room for."""
        device = options.device
        if device == "auto":
            device = "cuda" if self._ray.cluster_resources().get("GPU", 0) else "cpu"
        threads = options.threads
        if threads is None and device == "cpu":
            sizes = [int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes()
                     if node["Alive"]]  # fmt: skip
            threads = widest(sizes, most)
        return msgspec.structs.replace(options, device=device, threads=threads)

    @asynccontextmanager
    async def deployed(
        self, name: str, options: WorkerOptions, scaling: Scaling
    ) -> AsyncGenerator[RayEngine]:
        """The replicas of a model, for as long as it is open.

        Args:
            name: of the application; whoever deploys the same name again takes it over.
            options: of each replica's engine process.
            scaling: how many.

        Raises:
            RuntimeError: they cannot start; the message says why.
        """
        from ray import serve

        board_name = f"{name}-board"
        board = self._ray.remote(num_cpus=0, max_restarts=-1)(Board).options(
            name=board_name, namespace=NAMESPACE, get_if_exists=True
        ).remote()  # fmt: skip
        application = make_application(self.placed(options, scaling.most), scaling, board_name)
        try:
            handle = await asyncio.to_thread(serve.run, application, name=name, route_prefix=None)
            engine = RayEngine(handle, board)
            await engine.start()
            try:
                yield engine
            finally:
                await engine.close()
        finally:
            await asyncio.to_thread(serve.delete, name)
            self._ray.kill(board)


def make_application(options: WorkerOptions, scaling: Scaling, board: str) -> Any:
    """What Ray Serve is to run."""
    from ray import serve

    from dsv2.service.replicas.replica import EngineReplica

    # The rest waits in Ray's line, where its autoscaler sees it and a new replica can take it.
    at_once = 2 * options.max_sequences
    if scaling.least == scaling.most:
        count: dict[str, Any] = {"num_replicas": scaling.least}
    else:
        count = {"autoscaling_config": {
            "min_replicas": scaling.least, "max_replicas": scaling.most,
            "target_ongoing_requests": scaling.target or max(1, options.max_sequences * 3 // 4),
            "upscale_delay_s": scaling.grow_seconds, "look_back_period_s": scaling.grow_seconds,
            "metrics_interval_s": scaling.grow_seconds / 3,
        }}  # fmt: skip
    deployment = serve.deployment(
        EngineReplica, name="engine", max_ongoing_requests=at_once,
        max_queued_requests=options.max_waiting, health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=options.drain_seconds,
        max_constructor_retry_count=scaling.retries,
        ray_actor_options={
            "num_cpus": options.threads or 1, "num_gpus": int(options.device == "cuda"),
        },
        **count,
    )  # fmt: skip
    sent = msgspec.structs.replace(options, max_waiting=max(options.max_waiting, at_once))
    return deployment.bind(
        msgspec.json.encode(sent), scaling.start_seconds, scaling.hang_seconds, board
    )


def widest(sizes: list[int], replicas: int) -> int:
    """Most CPUs of which so many replicas find room on machines of these sizes; at least one."""
    for threads in range(max(sizes, default=1), 1, -1):
        if sum(size // threads for size in sizes) >= replicas:
            return threads
    return 1
