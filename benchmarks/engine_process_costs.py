"""What it costs to have the engine in a process of its own: CPU microseconds per streamed token.

    python -m benchmarks.engine_process_costs                    # 64 streams of 500 tokens
    python -m benchmarks.engine_process_costs --streams 8 --logprobs 5

An engine that computes nothing gives every request a token per step, a step each ``--step``
milliseconds. Counted is the CPU time of the whole process on either side, its ZeroMQ threads
included: what the step loop does beside the engine's own step, and what the client does until
the token is in the hands of the coroutine that asked for it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any, cast

import zmq

from benchmarks.peers.no_engine import NoEngine
from dsv2.engine.engine import Engine
from dsv2.engine.request import Request, SamplingParams
from dsv2.service.worker.client import EngineClient
from dsv2.service.worker.heartbeat import Beats
from dsv2.service.worker.process import addresses
from dsv2.service.worker.step_loop import StepLoop
from dsv2.service.worker.streams import outputs_of
from dsv2.service.worker.wire import Welcome

VOCABULARY = 102_400


def serve(folder: str, step_seconds: float) -> None:
    """Be the engine process until standard input ends; write the CPU seconds spent."""
    engine = NoEngine(step_seconds, VOCABULARY)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    where = addresses(folder, "engine")
    socket.bind(where.requests)
    welcome = Welcome("nothing", VOCABULARY, 163_840, 20, os.getpid())
    loop = StepLoop(cast(Engine, engine), socket, welcome)
    print("ready", flush=True)
    with Beats(context, where.heartbeat, loop):
        start = time.process_time()
        # The client asks for the end by a signal that SIGTERM stands for in the real process.

        signal.signal(signal.SIGTERM, lambda number, frame: loop.stop(10.0))
        loop.run()
        print(time.process_time() - start - engine.spent, flush=True)
    socket.close(linger=1000)
    context.term()


async def stream_all(folder: str, streams: int, tokens: int, logprobs: int | None) -> Any:
    """CPU seconds of this process, tokens and items."""
    client = EngineClient(folder)
    await client.start()
    await client.wait_ready(30)
    params = SamplingParams(max_tokens=tokens, logprobs=logprobs)

    async def one(number: int) -> tuple[int, int]:
        found = items = 0
        async for item in outputs_of(client, Request(str(number), tuple(range(100)), params)):
            found += len(item.tokens)
            items += 1
        return found, items

    start, began = time.process_time(), time.perf_counter()
    counts = await asyncio.gather(*(one(number) for number in range(streams)))
    cpu, wall = time.process_time() - start, time.perf_counter() - began
    await client.close()
    return cpu, wall, sum(found for found, _ in counts), sum(items for _, items in counts)


def measure(streams: int, tokens: int, logprobs: int | None, step: float) -> dict[str, Any]:
    """Run both processes once."""
    with tempfile.TemporaryDirectory(prefix="dsv2-") as folder:
        server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.engine_process_costs", "--serve", folder,
             "--step", str(step)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert server.stdout is not None and server.stdout.readline().strip() == "ready"
        cpu, wall, found, items = asyncio.run(stream_all(folder, streams, tokens, logprobs))
        server.terminate()
        spent = float(server.stdout.readline())
        server.wait()
        server.stdout.close()
    return {
        "streams": streams,
        "tokens": found,
        "tokens_per_item": round(found / items, 3),
        "tokens_per_second": round(found / wall),
        "engine_process_us_per_token": round(1e6 * spent / found, 2),
        "client_us_per_token": round(1e6 * cpu / found, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=500, help="of each answer")
    parser.add_argument("--logprobs", type=int, help="alternatives of each token")
    parser.add_argument("--step", type=float, default=10.0, help="milliseconds")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.step / 1000)
    else:
        print(json.dumps(measure(given.streams, given.tokens, given.logprobs, given.step)))


if __name__ == "__main__":
    main()
