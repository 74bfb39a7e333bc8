from __future__ import annotations

import random

import pytest
import torch
from pydantic import ValidationError

from dsv2.model.balance import (
    BALANCE,
    Balance,
    BalanceConfig,
    Segments,
    communication_loss,
    device_loss,
    expert_loss,
    keep_within_capacity,
    step_bias,
)
from dsv2.model.router import Routing

EXPERTS, DEVICES, CHOSEN, LIMIT = 8, 4, 2, 2


def even(tokens: int) -> Routing:
    """Every expert equally often, every affinity the same, each token on LIMIT devices."""
    first = torch.arange(tokens) % EXPERTS
    second = (first + EXPERTS // DEVICES) % EXPERTS
    ids = torch.stack((first, second), 1)
    scores = torch.full((tokens, EXPERTS), 1 / EXPERTS)
    return Routing(ids, scores.gather(1, ids), scores)


def drawn(tokens: int, seed: int = 0) -> Routing:
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.randn(tokens, EXPERTS, generator=generator) * 2).softmax(-1)
    weights, ids = scores.topk(CHOSEN)
    return Routing(ids, weights, scores)


def test_each_loss_is_its_alpha_at_perfect_balance() -> None:
    routing, segments = even(64), Segments.of([32, 32])
    assert float(expert_loss(routing, segments, 0.003)) == pytest.approx(0.003)
    assert float(device_loss(routing, segments, 0.05, DEVICES)) == pytest.approx(0.05)
    assert float(communication_loss(routing, segments, 0.02, DEVICES, LIMIT)) == pytest.approx(0.02)


def plain_losses(routing: Routing, lengths: list[int]) -> tuple[float, float, float]:
    """Equations 23 to 31 with loops, for alphas of one, as means over sequences."""
    ids, scores = routing.ids.tolist(), routing.scores.tolist()
    per_device = EXPERTS // DEVICES
    totals, start = [0.0, 0.0, 0.0], 0
    for length in lengths:
        rows = range(start, start + length)
        f = [EXPERTS / (CHOSEN * length) * sum(i in ids[t] for t in rows) for i in range(EXPERTS)]
        p = [sum(scores[t][i] for t in rows) / length for i in range(EXPERTS)]
        groups = [range(d * per_device, (d + 1) * per_device) for d in range(DEVICES)]
        p_device = [sum(p[i] for i in group) for group in groups]
        f_device = [sum(f[i] for i in group) / per_device for group in groups]
        sent = [sum(any(i in group for i in ids[t]) for t in rows) for group in groups]
        f_comm = [DEVICES / (LIMIT * length) * count for count in sent]
        totals[0] += sum(a * b for a, b in zip(f, p, strict=True))
        totals[1] += sum(a * b for a, b in zip(f_device, p_device, strict=True))
        totals[2] += sum(a * b for a, b in zip(f_comm, p_device, strict=True))
        start += length
    return tuple(total / len(lengths) for total in totals)  # type: ignore[return-value]


@pytest.mark.parametrize("lengths", [[40], [10, 30], [1, 7, 32]])
def test_losses_equal_plain_python(lengths: list[int]) -> None:
    routing, segments = drawn(40), Segments.of(lengths)
    found = (
        float(expert_loss(routing, segments, 1.0)),
        float(device_loss(routing, segments, 1.0, DEVICES)),
        float(communication_loss(routing, segments, 1.0, DEVICES, LIMIT)),
    )
    assert found == pytest.approx(plain_losses(routing, lengths), rel=1e-5)


def test_losses_pull_the_scores_of_busy_experts_down() -> None:
    logits = torch.zeros(32, EXPERTS)
    logits[:, 0] = 2.0
    logits.requires_grad_(True)
    scores = logits.softmax(-1)
    weights, ids = scores.topk(CHOSEN)
    expert_loss(Routing(ids, weights, scores), Segments.of([32]), 1.0).backward()
    assert logits.grad is not None
    assert float(logits.grad[:, 0].sum()) > 0
    assert float(logits.grad[:, 1:].sum()) < 0


def plain_keep(
    routing: Routing, owner: list[int], factor: float, protected: list[bool]
) -> list[list[bool]]:
    tokens = len(owner)
    budget = int(factor * tokens * CHOSEN / DEVICES)
    per_device = EXPERTS // DEVICES
    kept = [[True] * CHOSEN for _ in range(tokens)]
    for device in range(DEVICES):
        mine = [
            (float(routing.scores[t, routing.ids[t, k]]), t, k)
            for t in range(tokens)
            for k in range(CHOSEN)
            if int(routing.ids[t, k]) // per_device == device
        ]
        safe = [entry for entry in mine if protected[owner[entry[1]]]]
        rest = sorted((e for e in mine if not protected[owner[e[1]]]), key=lambda e: -e[0])
        for _, t, k in rest[max(0, budget - len(safe)) :]:
            kept[t][k] = False
    return kept


@pytest.mark.parametrize("factor", [0.25, 0.8, 1.0, 1.3, 4.0])
@pytest.mark.parametrize("seed", range(4))
def test_dropping_equals_plain_python(factor: float, seed: int) -> None:
    dice = random.Random(seed)
    lengths = [dice.randint(1, 20) for _ in range(5)]
    protected = [dice.random() < 0.3 for _ in lengths]
    routing = drawn(sum(lengths), seed)
    segments = Segments.of(lengths)
    keep = keep_within_capacity(routing, segments, DEVICES, factor, torch.tensor(protected))
    owner = segments.index.tolist()
    assert keep.tolist() == plain_keep(routing, owner, factor, protected)


def test_the_device_strategy_drops_and_leaves_protected_sequences_whole() -> None:
    config = BalanceConfig(
        strategy="device", num_devices=DEVICES, device_limit=LIMIT, capacity_factor=0.5,
        protected_fraction=0.25,
    )  # fmt: skip
    balance = Balance.for_rows(config, [10] * 8)
    assert balance.protected.tolist() == [False, False, False, True] * 2
    routing = drawn(80)
    balanced = balance(routing)
    gone = balanced.routing.weights == 0
    assert int(balanced.dropped) == int(gone.sum()) > 0
    assert not gone[balance.protected[balance.segments.index]].any()
    assert set(balanced.terms) == {"expert", "device", "comm"}
    assert float(balanced.loss) == pytest.approx(sum(map(float, balanced.terms.values())))


def test_strategies_without_a_loss_have_none() -> None:
    for strategy in ("none", "bias"):
        balanced = Balance.for_rows(BalanceConfig(strategy=strategy), [10])(drawn(10))
        assert float(balanced.loss) == 0
        assert int(balanced.dropped) == 0
    assert set(BALANCE) == {"none", "expert", "device", "bias"}


def test_the_bias_moves_by_its_speed_towards_the_mean() -> None:
    moved = step_bias(torch.zeros(4), torch.tensor([10, 0, 5, 5]), 0.001)
    assert moved.tolist() == pytest.approx([-0.001, 0.001, 0.0, 0.0])


@pytest.mark.parametrize("field", ["alpha_expert", "alpha_device", "alpha_comm"])
def test_a_promised_loss_of_weight_zero_is_an_error(field: str) -> None:
    with pytest.raises(ValidationError, match=f"{field} is 0"):
        BalanceConfig(strategy="device", **{field: 0.0})  # type: ignore[arg-type]


def test_devices_must_divide_the_experts() -> None:
    balance = Balance.for_rows(BalanceConfig(strategy="device", num_devices=3), [10])
    with pytest.raises(ValueError, match="num_devices 3 must divide the 8"):
        balance(drawn(10))
