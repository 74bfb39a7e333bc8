"""An engine process whose engine fails, or takes its time, as requests of some tenants ask."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from dsv2.engine.engine import Engine, TokenOutput
from dsv2.engine.request import Request
from dsv2.engine.runner import Runner
from dsv2.service.worker import main as worker
from tests.service.workers import SLOW

_real_add, _real_launch, _real_step = Engine.add, Runner.launch, Engine.step


def add(self: Engine, request: Request) -> None:
    if request.tenant == "fails when added":
        _real_add(self, request)
        raise KeyError("no such thing")
    _real_add(self, request)


def launch(self: Runner, works: Any, *rest: Any) -> Any:
    if any(work.sequence.request.tenant == SLOW for work in works):
        time.sleep(0.025)
    for work in works:
        sequence = work.sequence
        asked, _, number = sequence.request.tenant.partition(" at ")
        if sequence.num_generated == int(number or 0):
            if asked == "fails":
                raise MemoryError("no more of it")
            if asked == "loses its device":
                raise torch.AcceleratorError("CUDA error: an illegal memory access")
            if asked == "hangs":
                time.sleep(60)
            if asked == "exits":
                os._exit(9)
            if asked == "dawdles":
                time.sleep(1.5)
    return _real_launch(self, works, *rest)


def step(self: Engine) -> list[TokenOutput]:
    if any(one.request.tenant == "breaks all" for one in self._sequences.values()):
        raise RuntimeError("every step fails")
    return _real_step(self)


if __name__ == "__main__":
    Engine.add, Runner.launch, Engine.step = add, launch, step  # type: ignore[method-assign]
    worker.run()
