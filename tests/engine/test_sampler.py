from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from dsv2.engine.philox import gumbel_noise, philox
from dsv2.engine.request import Request, SamplingParams
from dsv2.engine.sampler import NOT_FINITE, Choice, draw, is_plain, pick, sample
from dsv2.engine.sequence import Sequence
from tests.engine import by_row

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


def noise(seeds: list[int], positions: list[int], width: int) -> torch.Tensor:
    return gumbel_noise(torch.tensor(seeds), torch.tensor(positions), width)


def test_noise_depends_on_seed_and_position_alone() -> None:
    together = noise([5, 2**40 + 1], [7, 9], 10)
    alone = noise([2**40 + 1], [9], 10)
    assert torch.equal(together[1:], alone)
    wider = noise([2**40 + 1], [9], 33)
    assert torch.equal(wider[:, :10], alone)
    assert not torch.equal(alone, noise([1], [9], 10))
    assert bool(torch.isfinite(noise(list(range(50)), [0] * 50, 1000)).all())


def test_noise_is_that_of_the_words() -> None:
    seeds, positions, width = [5, 2**63 - 1], [0, 2**31], 7
    found = noise(seeds, positions, width)
    for row, (seed, position) in enumerate(zip(seeds, positions, strict=True)):
        key = torch.tensor([seed % 2**32, seed >> 32])
        for token in range(width):
            words = philox(key, torch.tensor([token // 4, position, 0, 0]))
            uniform = (words[token % 4].double() + 0.5) / 2**32
            assert found[row, token] == -torch.log(-torch.log(uniform))


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


@pytest.mark.parametrize("cut", [{}, {"top_p": 0.9}])
def test_the_lowest_temperatures_are_greedy(logits: torch.Tensor, cut: dict[str, float]) -> None:
    best = int(logits.argmax())
    assert support(logits, 5, temperature=1e-310, **cut) == {best}
    assert choose(logits - 20, row(temperature=1e-310, **cut)) == best
    some = torch.tensor([5e-324], dtype=torch.float64)
    places = torch.tensor([1]), torch.tensor([1])
    assert draw(logits.unsqueeze(0), some, *places).tolist() == [best]


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


def wishful(number: int, dice: random.Random) -> Sequence:
    """A sequence that wants a random mix of everything."""

    def maybe(value: Any, neutral: Any) -> Any:
        return value if dice.random() < 0.4 else neutral

    prompt = tuple(dice.randrange(VOCAB) for _ in range(dice.randrange(1, 9)))
    generated = tuple(dice.randrange(VOCAB) for _ in range(dice.randrange(6)))
    bias = {dice.randrange(VOCAB): dice.uniform(-3, 3) for _ in range(4)}
    return row(
        prompt, generated, seed=number, temperature=maybe(0.0, dice.uniform(0.2, 2.0)),
        top_k=maybe(dice.randrange(1, 2 * VOCAB), 0), top_p=maybe(dice.random(), 1.0),
        min_p=maybe(dice.random(), 0.0), presence_penalty=maybe(dice.uniform(-2, 2), 0.0),
        frequency_penalty=maybe(dice.uniform(-2, 2), 0.0),
        repetition_penalty=maybe(dice.uniform(0.5, 2.0), 1.0), logit_bias=maybe(bias, {}),
        min_tokens=maybe(4, 0), stop_token_ids=maybe([3, 5], []),
        logprobs=maybe(dice.randrange(6), None),
    )  # fmt: skip


def test_rows_together_are_the_rows_one_by_one() -> None:
    dice, ends = random.Random(1), frozenset({0, 7})
    sequences = [wishful(number, dice) for number in range(200)]
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(len(sequences), VOCAB, generator=generator) * 3
    rows[::7] = rows[::7].round()  # ties
    found = sample(rows, sequences, ends)
    for logits, sequence, choice in zip(rows, sequences, found, strict=True):
        own = noise([sequence.seed], [len(sequence.tokens)], VOCAB)[0]
        token, count = by_row.choose(logits, own, sequence, ends), sequence.request.params.logprobs
        assert choice.token == token
        if count is None:
            assert choice.logprobs is None
        else:
            assert choice.logprobs is not None
            chosen, top = by_row.logprobs(logits, token, count)
            assert (choice.logprobs.chosen, list(choice.logprobs.top)) == (chosen, top)
    assert sample(rows[9:10], sequences[9:10], ends) == found[9:10]


def test_what_a_graph_draws_is_what_the_sampler_chooses(logits: torch.Tensor) -> None:
    sequences = [row(seed=n, temperature=n % 3 * 0.6, generated=(4,) * n) for n in range(30)]
    rows = logits.expand(30, -1).clone()
    rows[13, 2] = math.inf
    temperatures = torch.tensor([n % 3 * 0.6 for n in range(30)], dtype=torch.float64)
    seeds, positions = torch.arange(30), torch.tensor([len(one.tokens) for one in sequences])
    drawn = draw(rows, temperatures, seeds, positions)
    assert torch.equal(drawn, pick(rows, sequences, NO_ENDS).tokens)
    assert int(drawn[13]) == NOT_FINITE
    assert len(set(drawn.tolist())) > 3
    greedy = draw(rows, None, seeds, positions)
    assert torch.equal(greedy[::3], drawn[::3])


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"presence_penalty": 1.0},
        {"frequency_penalty": 1.0}, {"repetition_penalty": 1.1}, {"logit_bias": {1: 1.0}},
        {"min_tokens": 2}, {"logprobs": 0},
    ],
)  # fmt: skip
def test_who_asks_for_anything_is_not_plain(params: dict[str, Any]) -> None:
    assert is_plain(row())
    assert not is_plain(row(**params))
    if "min_tokens" in params:
        assert is_plain(row(generated=(4, 4), **params))


class Fence:
    """A structure that allows some tokens, or breaks."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens

    def allowed(self) -> torch.Tensor:
        if not self.tokens:
            raise RuntimeError("this one is broken")
        return torch.zeros(VOCAB, dtype=torch.bool).index_fill(0, torch.tensor(self.tokens), True)


def test_a_structure_fences_its_own_row(logits: torch.Tensor) -> None:
    sequences = [row(seed=n, min_tokens=1, stop_token_ids=[5]) for n in range(4)]
    for sequence, fence in zip(sequences[1:], (Fence(), Fence(5), Fence(5, 9)), strict=True):
        sequence.matcher = fence
    found = sample(logits.expand(4, -1), sequences, NO_ENDS)
    start = "choosing the next token failed: "
    assert found[0] == sample(logits.unsqueeze(0), sequences[:1], NO_ENDS)[0]
    assert found[1] == Choice(None, error=start + "this one is broken")
    assert found[2] == Choice(None, error=start + "the structure allows no token here")
    assert found[3] == Choice(9)
