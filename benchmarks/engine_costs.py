"""What the engine itself costs: Python beside the kernels in a step, and determinism.

    python -m benchmarks.engine_costs                        # V2-Lite's shape in int4: 9 GB
    python -m benchmarks.engine_costs --model pocket --weights float32

Weights are random. The first line is one sequence generating: the share of ``Engine.step``'s time
outside of the executor's calls, which is schedule, batch, sampler and the model's own Python. The
second is what ``deterministic`` costs: the kernels are the same, but generated tokens are computed
again when they come back as part of a prompt, so the second turn of a chat starts later. Settings
take turns; the figures are medians.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.peers.machine import look
from dsv2.checkpoint.synthetic import synthetic_model
from dsv2.cli.info import find_config
from dsv2.engine.blocks import BlockPool
from dsv2.engine.engine import Engine
from dsv2.engine.request import Limits, Request, SamplingParams
from dsv2.engine.runner import Runner
from dsv2.engine.scheduler import Scheduler
from dsv2.engine.sequence import blocks_for
from dsv2.kernels.cpu import CpuExecutor
from dsv2.machine import available_threads
from dsv2.model.packed import PackedModel

CONTEXT = 4096


class Timed:
    """An executor whose calls add up their seconds."""

    def __init__(self, inner: CpuExecutor) -> None:
        self._inner, self.seconds = inner, 0.0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value):
            return value

        def call(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return value(*args)
            finally:
                self.seconds += time.perf_counter() - start

        return call


def make_engine(model: PackedModel, deterministic: bool) -> Engine:
    """One like ``LLM``'s, without a tokenizer."""
    blocks = blocks_for(CONTEXT) + 1
    scheduler = Scheduler(
        BlockPool(blocks), max_step_tokens=2048, max_sequences=16, prefix_cache=True,
        share_answers=not deterministic,
    )  # fmt: skip
    limits = Limits(vocab_size=model.config.vocab_size, max_context=CONTEXT)
    return Engine(Runner(model, blocks), scheduler, limits, ends=[])


def answer(engine: Engine, prompt: list[int], count: int, name: str) -> tuple[list[int], float]:
    """The tokens after a prompt, and the seconds up to the first of them."""
    params = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
    engine.add(Request(name, tuple(prompt), params))
    start, first, tokens = time.perf_counter(), None, []
    while engine.has_work:
        for output in engine.step():
            if output.token is None:
                raise RuntimeError(f"no token: {output.error}")
            first = first or time.perf_counter() - start
            tokens.append(output.token)
    assert first is not None
    return tokens, first


def python_share(engine: Engine, timed: Timed, prompt: list[int], steps: int) -> dict[str, float]:
    """Medians over steps that yield one token each."""
    params = SamplingParams(max_tokens=steps + 1, temperature=0.0, ignore_eos=True)
    engine.add(Request("share", tuple(prompt), params))
    while not engine.step():
        pass
    whole, outside = [], []
    while engine.has_work:
        timed.seconds, start = 0.0, time.perf_counter()
        engine.step()
        whole.append(time.perf_counter() - start)
        outside.append(whole[-1] - timed.seconds)
    return {
        "step_ms": 1e3 * median(whole), "python_ms": 1e3 * median(outside),
        "python_share": median(outside) / median(whole),
    }  # fmt: skip


def second_turn(
    make: Callable[[bool], Engine], vocabulary: int, told: int, said: int, rounds: int
) -> dict[str, float]:
    """Seconds to the first token of a chat's second turn, with and without determinism."""
    generator = torch.Generator().manual_seed(0)
    found: dict[bool, list[float]] = {True: [], False: []}
    engines = {deterministic: make(deterministic) for deterministic in found}
    for number in range(rounds):
        start = torch.randint(vocabulary, (told,), generator=generator).tolist()
        more = torch.randint(vocabulary, (told,), generator=generator).tolist()
        for deterministic, engine in engines.items():
            tokens, _ = answer(engine, start, said, f"first-{number}")
            _, seconds = answer(engine, [*start, *tokens, *more], 1, f"second-{number}")
            found[deterministic].append(seconds)
    return {
        "prompt": told, "answer": said, "deterministic_s": median(found[True]),
        "sharing_answers_s": median(found[False]),
        "ratio": median(found[True]) / median(found[False]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="v2-lite", help="a release, or a folder with config")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--answer", type=int, default=256, help="tokens of a chat's first answer")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    config = find_config(options.model)
    timed = Timed(CpuExecutor(options.threads))
    model = synthetic_model(config, timed, options.weights)  # type: ignore[arg-type]

    def make(deterministic: bool) -> Engine:
        return make_engine(model, deterministic)

    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(config.vocab_size, (128,), generator=generator).tolist()
    machine = look(options.threads)
    print(f"{machine.date} {machine.commit} {machine.machine}, {options.threads} threads")
    print(json.dumps(python_share(make(True), timed, prompt, options.steps)), flush=True)
    print(json.dumps(second_turn(make, config.vocab_size, 128, options.answer, options.rounds)))


if __name__ == "__main__":
    main()
