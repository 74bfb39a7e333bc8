"""The router's choice from its logits, one program per token, in Triton.

Scores, groups, the K best, their gate values: what :class:`dsv2.kernels.executor.RoutingShape`
says, in fp32. Among equals the lowest index wins.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dsv2.kernels.executor import RoutingShape
from dsv2.kernels.triton.launch import on_device, overlaps, wait

_GROUP_SCORES = {"none": 0, "max": 1, "top2_sum": 2}


@triton.jit
def _first_largest(values, index, NOWHERE: tl.constexpr):
    """The largest of a vector, and the least index that has it."""
    best = tl.max(values, 0)
    return best, tl.min(tl.where(values == best, index, NOWHERE), 0)


@triton.jit
def _choose(
    logits, bias, ids, gates, factor,
    E: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr, KEPT: tl.constexpr,
    G_PAD: tl.constexpr, M_PAD: tl.constexpr, K_PAD: tl.constexpr,
    SIGMOID: tl.constexpr, GROUP_SCORE: tl.constexpr, BIASED: tl.constexpr,
    NORMALISE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    if EARLY:
        wait()
    SIZE: tl.constexpr = E // GROUPS
    group = tl.arange(0, G_PAD)
    member = tl.arange(0, M_PAD)
    expert = group[:, None] * SIZE + member[None, :]  # groups members
    real = (group < GROUPS)[:, None] & (member < SIZE)[None, :]
    logit = tl.load(logits + token * E + expert, mask=real, other=float("-inf"))
    if SIGMOID:
        scores = tl.sigmoid(logit)
    else:
        raised = tl.exp(logit - tl.max(tl.max(logit, 1), 0))
        scores = raised / tl.sum(tl.sum(raised, 1), 0)
    choice = scores
    if BIASED:
        choice = choice + tl.load(bias + expert, mask=real, other=0.0)
    choice = tl.where(real, choice, float("-inf"))
    if GROUP_SCORE:
        level = tl.max(choice, 1)  # groups
        if GROUP_SCORE == 2:
            first = tl.min(tl.where(choice == level[:, None], member[None, :], M_PAD), 1)
            rest = tl.where(member[None, :] == first[:, None], float("-inf"), choice)
            level += tl.max(rest, 1)
        kept = tl.zeros([G_PAD], dtype=tl.int32)
        for _ in tl.static_range(KEPT):
            _best, place = _first_largest(level, group, G_PAD)
            kept = tl.where(group == place, 1, kept)
            level = tl.where(group == place, float("-inf"), level)
        choice = tl.where(kept[:, None] > 0, choice, float("-inf"))
    k = tl.arange(0, K_PAD)
    chosen = tl.zeros([K_PAD], dtype=tl.int32)
    value = tl.zeros([K_PAD], dtype=tl.float32)
    for turn in tl.static_range(K):
        best = tl.max(tl.max(choice, 1), 0)
        place = tl.min(tl.min(tl.where(choice == best, expert, E), 1), 0)
        place = tl.minimum(place, E - 1)  # a row of NaN has no largest
        mine = expert == place
        own = tl.sum(tl.sum(tl.where(mine & real, scores, 0.0), 1), 0)
        chosen = tl.where(k == turn, place, chosen)
        value = tl.where(k == turn, own, value)
        choice = tl.where(mine, float("-inf"), choice)
    if NORMALISE:
        value = value / (tl.sum(value, 0) + 1e-20)
    tl.store(ids + token * K + k, chosen, mask=k < K)
    tl.store(gates + token * K + k, value * factor, mask=k < K)


def choose_experts(
    logits: Tensor, routing: RoutingShape, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``ids`` ``[T, K]`` int32 and gate values ``[T, K]`` fp32 from ``logits`` ``[T, E]`` fp32.

    ``bias`` ``[E]`` fp32 counts for the choice alone.
    """
    tokens, chosen = logits.shape[0], routing.num_experts_per_tok
    ids = torch.empty((tokens, chosen), dtype=torch.int32, device=logits.device)
    gates = torch.empty((tokens, chosen), dtype=torch.float32, device=logits.device)
    groups = routing.num_groups if routing.group_score != "none" else 1
    if tokens:
        with on_device(logits):
            _choose[(tokens,)](
                logits, logits if bias is None else bias, ids, gates, routing.scale,
                E=routing.num_experts, K=chosen, GROUPS=groups, KEPT=routing.topk_group,
                G_PAD=_power(groups), M_PAD=_power(routing.num_experts // groups),
                K_PAD=_power(chosen), SIGMOID=routing.score == "sigmoid",
                GROUP_SCORE=_GROUP_SCORES[routing.group_score], BIASED=bias is not None,
                NORMALISE=routing.normalise, num_warps=1, **overlaps(logits),
            )  # fmt: skip
    return ids, gates


def _power(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()
