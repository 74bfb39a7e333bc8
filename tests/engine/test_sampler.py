from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from dsv2.engine.philox import gumbel_noise, philox
from dsv2.engine.request import Request, SamplingParams
from dsv2.engine.sampler import Choice, sample
from dsv2.engine.sequence import Sequence

VOCAB = 50
NO_ENDS: frozenset[int] = frozenset()


def row(prompt: tuple[int, ...] = (1,), generated: tuple[int, ...] = (), **params: Any) -> Sequence:
    request = Request("a", prompt, SamplingParams(**params))
    return Sequence(request, seed=params.get("seed") or 0, tokens=[*prompt, *generated])


def choose(logits: torch.Tensor, sequence: Sequence, ends: frozenset[int] = NO_ENDS) -> int:
    choice = sample(logits.unsqueeze(0), [sequence], ends)[0]
    assert choice.token is not None
    return choice.token


def support(logits: torch.Tensor, draws: int = 400, **params: Any) -> set[int]:
    return {choose(logits, row(seed=seed, **params)) for seed in range(draws)}


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) * 2


def test_philox_gives_the_published_numbers() -> None:
    key, counter = torch.zeros(2, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    assert [f"{word:08x}" for word in philox(key, counter).tolist()] == [
        "6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8",
    ]  # fmt: skip
    full = torch.full((4,), 0xFFFFFFFF)
    assert [f"{word:08x}" for word in philox(full[:2], full).tolist()] == [
        "408f276d", "41c83b0e", "a20bc7c6", "6d5451fd",
    ]  # fmt: skip


def test_philox_equals_plain_integers() -> None:
    def plain(key: list[int], counter: list[int]) -> list[int]:
        k0, k1 = key
        c0, c1, c2, c3 = counter
        for _ in range(10):
            first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
            c0, c1, c2, c3 = (
                (second >> 32) ^ c1 ^ k0, second % 2**32, (first >> 32) ^ c3 ^ k1, first % 2**32,
            )  # fmt: skip
            k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
        return [c0, c1, c2, c3]

    dice = random.Random(0)
    for _ in range(50):
        words = [dice.randrange(2**32) for _ in range(6)]
        found = philox(torch.tensor(words[:2]), torch.tensor(words[2:])).tolist()
        assert found == plain(words[:2], words[2:])


def test_noise_depends_on_seed_and_position_alone() -> None:
    device = torch.device("cpu")
    together = gumbel_noise([5, 2**40 + 1], [7, 9], 10, device)
    alone = gumbel_noise([2**40 + 1], [9], 10, device)
    assert torch.equal(together[1:], alone)
    wider = gumbel_noise([2**40 + 1], [9], 33, device)
    assert torch.equal(wider[:, :10], alone)
    assert not torch.equal(alone, gumbel_noise([1], [9], 10, device))
    assert bool(torch.isfinite(gumbel_noise(list(range(50)), [0] * 50, 1000, device)).all())


def test_draws_follow_the_softmax(logits: torch.Tensor) -> None:
    draws = 20_000
    rows = [row(seed=seed, temperature=0.7) for seed in range(draws)]
    tokens = [choice.token for choice in sample(logits.expand(draws, -1), rows, NO_ENDS)]
    counts = torch.bincount(torch.tensor(tokens), minlength=VOCAB).double()
    expected = (logits.double() / 0.7).softmax(-1) * draws
    seen = expected > 5
    chi2 = float(((counts - expected)[seen] ** 2 / expected[seen]).sum())
    freedom = int(seen.sum()) - 1
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)


def test_greedy_takes_the_best_and_ignores_the_seed(logits: torch.Tensor) -> None:
    best = int(logits.argmax())
    assert {choose(logits, row(seed=s, temperature=0.0)) for s in range(20)} == {best}


def test_top_k_top_p_min_p_cut_where_they_say(logits: torch.Tensor) -> None:
    order = logits.argsort(descending=True).tolist()
    probabilities = logits.softmax(-1)
    assert support(logits, top_k=3) == set(order[:3])
    kept, total = set(), 0.0
    for token in order:
        kept.add(token)
        total += float(probabilities[token])
        if total >= 0.6:
            break
    assert support(logits, top_p=0.6) == kept
    assert support(logits, top_p=0.0, draws=30) == {order[0]}
    bound = 0.4 * float(probabilities.max())
    assert support(logits, min_p=0.4) == {t for t in order if float(probabilities[t]) >= bound}


def test_penalties_and_bias_change_logits_as_documented(logits: torch.Tensor) -> None:
    flat = torch.zeros(VOCAB)
    flat[4], flat[5] = 1.0, 0.9
    greedy = {"temperature": 0.0}
    assert choose(flat, row(generated=(4,), presence_penalty=0.2, **greedy)) == 5
    assert choose(flat, row(prompt=(4,), presence_penalty=0.2, **greedy)) == 4
    assert choose(flat, row(generated=(4,), frequency_penalty=0.05, **greedy)) == 4
    assert choose(flat, row(generated=(4, 4, 4), frequency_penalty=0.05, **greedy)) == 5
    assert choose(flat, row(prompt=(4,), repetition_penalty=1.2, **greedy)) == 5
    assert choose(-flat - 1, row(prompt=(0,), repetition_penalty=2.0, **greedy)) != 0
    assert choose(flat, row(logit_bias={9: 1.5}, **greedy)) == 9
    assert choose(flat, row(logit_bias={4: -100}, **greedy)) == 5


def test_ends_wait_for_min_tokens() -> None:
    flat = torch.zeros(VOCAB)
    flat[2], flat[3], flat[4] = 3.0, 2.0, 1.0
    params = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": [3]}
    ends = frozenset({2})
    assert choose(flat, row(**params), ends) == 4
    assert choose(flat, row(generated=(4,), **params), ends) == 4
    assert choose(flat, row(generated=(4, 4), **params), ends) == 2


def test_logprobs_are_the_models_own(logits: torch.Tensor) -> None:
    params = {"logprobs": 3, "temperature": 2.0, "logit_bias": {7: 100.0}}
    choice = sample(logits.unsqueeze(0), [row(**params)], NO_ENDS)[0]
    logs = logits.log_softmax(-1)
    assert choice.token == 7
    assert choice.logprobs is not None
    assert choice.logprobs.chosen == pytest.approx(float(logs[7]))
    best = logs.topk(3)
    assert [t for t, _ in choice.logprobs.top] == best.indices.tolist()
    assert [p for _, p in choice.logprobs.top] == pytest.approx(best.values.tolist())


def test_a_row_that_is_not_finite_fails_alone(logits: torch.Tensor) -> None:
    rows = torch.stack((logits, logits.clone(), logits))
    rows[1, 8] = math.nan
    sequences = [row(seed=seed) for seed in range(3)]
    found = sample(rows, sequences, NO_ENDS)
    assert found[1] == Choice(None, error="the model's numbers are not finite")
    clean = sample(logits.expand(3, -1), sequences, NO_ENDS)
    assert (found[0], found[2]) == (clean[0], clean[2])


def test_the_logits_given_are_not_changed(logits: torch.Tensor) -> None:
    before = logits.clone()
    choose(logits, row(generated=(1,), presence_penalty=1, top_k=2, logit_bias={1: 1}))
    assert torch.equal(before, logits)
