"""The router against plain Python, over every combination of its fields."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch

from dsv2.model.config import RouterConfig
from dsv2.model.router import route

EXPERTS, GROUPS = 12, 4


def plain_route(
    logits: list[float], config: RouterConfig, bias: list[float] | None
) -> tuple[list[int], list[float]]:
    """One token, in Python's own floats."""
    if config.score == "softmax":
        top = max(logits)
        powers = [math.exp(x - top) for x in logits]
        scores = [p / sum(powers) for p in powers]
    else:
        scores = [1 / (1 + math.exp(-x)) for x in logits]
    choice = [s + (bias[i] if bias else 0.0) for i, s in enumerate(scores)]
    allowed = list(range(len(scores)))
    if config.group_score != "none":
        size = len(scores) // config.num_groups
        groups = [range(g * size, (g + 1) * size) for g in range(config.num_groups)]
        if config.group_score == "max":
            worth = [max(choice[i] for i in group) for group in groups]
        else:
            worth = [sum(sorted(choice[i] for i in group)[-2:]) for group in groups]
        best = sorted(range(len(groups)), key=lambda g: -worth[g])[: config.topk_group]
        allowed = [i for g in best for i in groups[g]]
    ids = sorted(allowed, key=lambda i: -choice[i])[: config.num_experts_per_tok]
    weights = [scores[i] for i in ids]
    if config.normalise:
        weights = [w / sum(weights) for w in weights]
    return ids, [w * config.scale for w in weights]


@pytest.mark.parametrize(
    ("score", "group_score", "normalise", "selection_bias"),
    list(itertools.product(["softmax", "sigmoid"], ["none", "max", "top2_sum"], [False, True],
                           [False, True])),
)  # fmt: skip
def test_every_combination_equals_plain_python(
    score: str, group_score: str, normalise: bool, selection_bias: bool
) -> None:
    config = RouterConfig.model_validate(
        {
            "num_experts": EXPERTS, "num_experts_per_tok": 3, "score": score,
            "group_score": group_score, "num_groups": GROUPS, "topk_group": 2,
            "normalise": normalise, "scale": 2.5, "selection_bias": selection_bias,
        }
    )  # fmt: skip
    dice = random.Random(score + group_score)
    logits = [[dice.gauss(0, 2) for _ in range(EXPERTS)] for _ in range(40)]
    bias = [dice.gauss(0, 0.3) for _ in range(EXPERTS)] if selection_bias else None
    routing = route(torch.tensor(logits), config, None if bias is None else torch.tensor(bias))
    for token, row in enumerate(logits):
        ids, weights = plain_route(row, config, bias)
        assert routing.ids[token].tolist() == ids
        assert routing.weights[token].tolist() == pytest.approx(weights, rel=1e-5)


def test_max_and_top2_sum_choose_different_groups() -> None:
    """The rule that public code takes for V2's: one strong expert against two good ones."""
    logits = torch.log(torch.tensor([[0.4, 0.0001, 0.3, 0.2999]]))
    fields = {
        "num_experts": 4, "num_experts_per_tok": 1, "score": "softmax", "num_groups": 2,
        "topk_group": 1, "normalise": False, "scale": 1.0, "selection_bias": False,
    }  # fmt: skip
    found = {
        rule: int(route(logits, RouterConfig.model_validate(fields | {"group_score": rule})).ids)
        for rule in ("max", "top2_sum")
    }
    assert found == {"max": 0, "top2_sum": 2}


def test_a_bias_selects_and_does_not_weigh() -> None:
    config = RouterConfig.model_validate(
        {
            "num_experts": 4, "num_experts_per_tok": 1, "score": "sigmoid", "group_score": "none",
            "num_groups": 1, "topk_group": 1, "normalise": False, "scale": 1.0,
            "selection_bias": True,
        }
    )  # fmt: skip
    logits = torch.tensor([[1.0, 0.0, -1.0, 0.5]])
    routing = route(logits, config, torch.tensor([0.0, 0.0, 9.0, 0.0]))
    assert routing.ids.tolist() == [[2]]
    assert float(routing.weights) == pytest.approx(1 / (1 + math.e))
    with pytest.raises(ValueError, match="selection_bias"):
        route(logits, config)
