"""Fault F35: whether a tenant can tell by the time of an answer what another one has asked."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

import pytest

from dsv2 import LLM, SamplingParams
from dsv2.engine.request import Request

ONE = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
LENGTH = 64 * 6 + 1
TRIALS = 100


@pytest.fixture(scope="module")
def llm(tiny_folder: Path) -> LLM:
    return LLM(tiny_folder, device="cpu", dtype="float32", threads=1, max_step_tokens=1024)


def ask(llm: LLM, name: str, ids: tuple[int, ...], salt: str) -> tuple[float, int]:
    """Seconds to the first token, and how many of the prompt's were found."""
    begun = time.perf_counter()
    llm.engine.add(Request(name, ids, ONE, tenant=salt, salt=salt))
    outputs = []
    while llm.engine.has_work:
        outputs += llm.engine.step()
    (output,) = outputs
    assert output.finish_reason == "length", output
    return time.perf_counter() - begun, output.cached_tokens


def likeness(first: list[float], second: list[float]) -> float:
    """Kolmogorov and Smirnov's p: how often two samples of one distribution differ as much."""
    values = sorted(first + second)
    distance = max(
        abs(sum(x <= value for x in first) / len(first) - sum(x <= value for x in second)
            / len(second))
        for value in values
    )  # fmt: skip
    root = math.sqrt(len(first) * len(second) / (len(first) + len(second)))
    scaled = (root + 0.12 + 0.11 / root) * distance
    terms = ((-1) ** (n - 1) * math.exp(-2 * (n * scaled) ** 2) for n in range(1, 101))
    return min(1.0, 2 * sum(terms)) if scaled > 0.2 else 1.0


def test_a_tenant_cannot_tell_what_another_has_asked(llm: LLM) -> None:
    """Two hundred probes in turn; chance alone would fail all three rounds once in a million."""
    dice = random.Random(5)

    def prompt() -> tuple[int, ...]:
        return tuple(dice.randrange(3, 200) for _ in range(LENGTH))

    secret = prompt()
    ask(llm, "victim", secret, "victim")
    found: list[float] = []
    for number in range(3):
        own, guessed, other = [], [], []
        for trial in range(TRIALS):
            spent, cached = ask(llm, f"own {number} {trial}", secret, "victim")
            assert cached == LENGTH - 1  # it is there to be found
            own.append(spent)
            # Another salt each time, or a tenant's first probe would be found by its second.
            for name, ids, seconds in (("guess", secret, guessed), ("other", prompt(), other)):
                salt = f"{name} {number} {trial}"
                spent, cached = ask(llm, salt, ids, salt)
                assert cached == 0
                seconds.append(spent)
        found.append(likeness(guessed, other))
        if found[-1] > 0.01:
            break
    assert found[-1] > 0.01, found
    # The same measure tells at once where there is something to be told.
    assert likeness(own, other) < 1e-6
