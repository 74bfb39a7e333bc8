"""The sampler as one reads it best: a row at a time, a wish at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from dsv2.engine.request import SamplingParams
from dsv2.engine.sequence import Sequence


def choose(row: Tensor, noise: Tensor, sequence: Sequence, ends: frozenset[int]) -> int:
    """The next token from ``row`` and ``noise`` ``[vocabulary]``."""
    params = sequence.request.params
    row = row.clone()
    shape(row, sequence, ends)
    if not params.temperature:
        return int(row.argmax())
    warm = row.double() / params.temperature
    cut(warm, params)
    return int((warm + noise).argmax())


def shape(row: Tensor, sequence: Sequence, ends: frozenset[int]) -> None:
    """Penalties, bias and the hold on ends, in place."""
    params = sequence.request.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(sequence.tokens)))
        found, penalty = row[seen], params.repetition_penalty
        row[seen] = torch.where(found > 0, found / penalty, found * penalty)
    if (params.presence_penalty or params.frequency_penalty) and sequence.num_generated:
        generated = torch.tensor(sequence.tokens[-sequence.num_generated :])
        counts = torch.bincount(generated, minlength=row.shape[0])
        row -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    if params.logit_bias:
        row[list(params.logit_bias)] += torch.tensor(list(params.logit_bias.values()))
    if sequence.num_generated < params.min_tokens:
        row[sorted({*ends, *params.stop_token_ids})] = -torch.inf


def cut(row: Tensor, params: SamplingParams) -> None:
    """Top-k, then top-p, then min-p, in place; the best always stays."""
    if 0 < params.top_k < row.shape[0]:
        row[row < row.topk(params.top_k).values[-1]] = -torch.inf
    if params.top_p < 1.0:
        ordered, order = row.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities >= params.top_p
        beyond[0] = False
        row[order[beyond]] = -torch.inf
    if params.min_p > 0.0:
        probabilities = row.softmax(-1)
        row[probabilities < params.min_p * probabilities.max()] = -torch.inf


def logprobs(row: Tensor, token: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """Of the chosen token, and of the ``count`` best."""
    logs = row.log_softmax(-1)
    top = logs.topk(count)
    return float(logs[token]), list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
