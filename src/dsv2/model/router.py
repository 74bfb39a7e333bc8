"""Which experts a token is sent to: one pure function of four orthogonal choices.

V2 scores by softmax, takes the best groups by their **maximum** (device-limited routing, report
section 2.2.2) and the best experts within them. Successors score by sigmoid, take groups by the
**sum of their two best** and add a bias that only selects. Both are settings here, not branches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dsv2.model.config import RouterConfig
from dsv2.shapes import check


@dataclass(frozen=True)
class Routing:
    """Where T tokens go.

    Attributes:
        ids: ``[T, K]`` int64 experts.
        weights: ``[T, K]`` fp32 gate values g (equation 21), scaled as configured.
        scores: ``[T, E]`` fp32 affinities s of all experts, before any mask (equation 22).
    """

    ids: Tensor
    weights: Tensor
    scores: Tensor


def route(logits: Tensor, config: RouterConfig, bias: Tensor | None = None) -> Routing:
    """Choose experts from ``logits`` ``[T, E]``.

    Args:
        logits: token-to-expert affinities before the score function; taken to fp32.
        config: score, group score, normalisation and scale.
        bias: ``[E]`` added to the scores for selection only, when ``config.selection_bias``.

    Raises:
        ValueError: a selection bias is configured and missing, or given and not configured.
    """
    check((logits, f"T {config.num_experts}"))
    if config.selection_bias != (bias is not None):
        raise ValueError(
            f"selection_bias is {config.selection_bias}, bias given: {bias is not None}"
        )
    wide = logits.float()
    scores = wide.softmax(-1) if config.score == "softmax" else wide.sigmoid()
    choice = scores if bias is None else scores + bias.float()
    if config.group_score != "none":
        choice = choice.masked_fill(~_in_best_groups(choice, config), -torch.inf)
    ids = choice.topk(config.num_experts_per_tok, dim=-1).indices  # T K
    weights = scores.gather(1, ids)
    if config.normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Routing(ids=ids, weights=weights * config.scale, scores=scores)


def _in_best_groups(choice: Tensor, config: RouterConfig) -> Tensor:
    """``[T, E]`` bool: whether each expert lies in one of its token's best groups."""
    grouped = choice.unflatten(-1, (config.num_groups, -1))  # T G E/G
    if config.group_score == "max":
        group_scores = grouped.amax(-1)
    else:
        group_scores = grouped.topk(2, dim=-1).values.sum(-1)
    best = group_scores.topk(config.topk_group, dim=-1).indices
    chosen = torch.zeros_like(group_scores, dtype=torch.bool).scatter(1, best, True)  # T G
    return chosen.repeat_interleave(grouped.shape[-1], dim=-1)
