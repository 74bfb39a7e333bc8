"""An engine that computes nothing, and `dsv2 serve` over engine processes that hold it.

    DSV2_BENCH_STEP=0.01 python -m benchmarks.peers.no_engine serve pocket --port 0

Every request gets a token per step. So what a server costs can be seen by itself, at the pace of a
GPU on a machine that has none.
"""

from __future__ import annotations

import os
import sys
import time
from types import SimpleNamespace
from typing import Any, cast

from benchmarks.peers.server import STEP
from dsv2.engine.engine import EngineStats, TokenOutput
from dsv2.engine.request import Limits, Request
from dsv2.engine.sampler import TokenLogprobs

_ENGINE = "--engine-process"
_VOCABULARY, _CONTEXT = 8192, 8192


class NoEngine:
    """Gives every request a token per step.

    Args:
        step_seconds: how long a step sleeps.
        vocabulary: token ids are below it.

    Attributes:
        spent: CPU seconds of making the tokens up.
    """

    def __init__(self, step_seconds: float, vocabulary: int) -> None:
        self._step_seconds, self._vocabulary = step_seconds, vocabulary
        self._requests: dict[str, tuple[Request, int]] = {}
        self.spent = 0.0

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._requests)

    @property
    def stats(self) -> EngineStats:
        """As an engine's with one block of cache."""
        return EngineStats(len(self._requests), 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0)

    def add(self, request: Request) -> None:
        """Take a request."""
        self._requests[request.id] = request, 0

    def abort(self, name: str) -> None:
        """Drop a request."""
        self._requests.pop(name, None)

    def step(self) -> list[TokenOutput]:
        """A token for every request."""
        time.sleep(self._step_seconds)
        start = time.process_time()
        outputs = []
        for name, (request, number) in list(self._requests.items()):
            wanted = request.params.logprobs
            logprobs = None
            if wanted is not None:
                best = tuple((self._vocabulary - 1 - rank, -0.1 * rank) for rank in range(wanted))
                logprobs = TokenLogprobs(-0.5, best)
            reason = "length" if number + 1 == request.params.max_tokens else None
            token = (number * 7919) % self._vocabulary
            outputs.append(TokenOutput(name, token, logprobs, reason))
            if reason is None:
                self._requests[name] = request, number + 1
            else:
                del self._requests[name]
        self.spent += time.process_time() - start
        return outputs


def _load(options: object, report: object) -> Any:
    return SimpleNamespace(
        description="nothing", limits=Limits(vocab_size=_VOCABULARY, max_context=_CONTEXT),
        engine=NoEngine(float(os.environ[STEP]), _VOCABULARY),
    )  # fmt: skip


def main() -> None:
    if sys.argv[1:] == [_ENGINE]:
        from dsv2.service.worker import main as worker

        cast(Any, worker).load = _load
        del sys.argv[1:]  # its options come on standard input
        worker.run()
    from dsv2.cli.main import main as dsv2
    from dsv2.service.worker import supervisor

    cast(Any, supervisor).COMMAND = (sys.executable, "-m", "benchmarks.peers.no_engine", _ENGINE)
    dsv2()


if __name__ == "__main__":
    main()
