"""Runners for tests: one that answers late as a GPU does, and captures that are plain calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dsv2.engine.graphs import Outputs
from dsv2.engine.runner import Launch, Runner
from dsv2.engine.sampler import Choice, Picks


class LatePicks(Picks):
    """Choices that nobody may look at before they are collected, and then once."""

    def __init__(self, picks: Picks, log: list[str]) -> None:
        self._inner, self._log, self.tokens = picks, log, picks.tokens

    def choices(self) -> list[Choice]:
        self._log.append("collect")
        return self._inner.choices()


class LateRunner(Runner):
    """A CPU's runner that says it is asynchronous; ``log`` tells what was asked of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.is_asynchronous = True
        self.log: list[str] = []

    def launch(self, *args: Any) -> Launch:
        self.log.append("launch")
        launch = super().launch(*args)
        return replace(launch, picks=LatePicks(launch.picks, self.log))


@dataclass
class Recorded:
    """A computation that runs again when it is replayed, into the tensors of its first run."""

    compute: Callable[[], Outputs]
    outputs: Outputs
    replays: int = 0
    freed: bool = False

    def replay(self) -> None:
        assert not self.freed
        self.replays += 1
        for kept, new in zip(self.outputs, self.compute(), strict=True):
            kept.copy_(new)

    def free(self) -> None:
        self.freed = True


class FakeCapture:
    """Captures by keeping the function."""

    def __init__(self) -> None:
        self.made: list[Recorded] = []

    def __call__(self, compute: Callable[[], tuple[Tensor, Tensor]]) -> Recorded:
        self.made.append(Recorded(compute, compute()))
        return self.made[-1]
