"""What a request asks to be changed in its logits: penalties, bias, held ends, structure, cuts.

Every row says on the host what it wants; the rows are then changed together, by one operation per
kind of wish and however many rows have it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from dsv2.engine.request import SamplingParams
from dsv2.engine.sequence import Sequence
from dsv2.engine.transfer import to_device


def needs_last_token(sequence: Sequence) -> bool:
    """Whether the choice of the next token depends on which ones came before, on the host."""
    params = sequence.request.params
    return (
        sequence.matcher is not None
        or params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
    )


def is_shaped(sequence: Sequence) -> bool:
    """Whether anything but temperature changes the sequence's next logits."""
    params = sequence.request.params
    return (
        needs_last_token(sequence)
        or bool(params.logit_bias)
        or sequence.num_generated < params.min_tokens
    )


def is_cut(params: SamplingParams) -> bool:
    """Whether top-k, top-p or min-p may leave tokens out."""
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


class _Places:
    """Single logits to be changed, of any rows: where, and by what."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._places: list[np.ndarray] = []
        self._values: list[np.ndarray] = []

    def __bool__(self) -> bool:
        return bool(self._places)

    def add(self, row: int, ids: Collection[int], values: np.ndarray) -> None:
        """``values`` ``[n]`` fp32 for ``ids``, which differ from each other."""
        self._places.append(np.fromiter(ids, np.int64, len(ids)) + row * self._width)
        self._values.append(values)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Places in the flattened logits ``[n]`` int64, and values ``[n]`` fp32."""
        places = to_device(np.concatenate(self._places), torch.int64, device)
        return places, to_device(np.concatenate(self._values), torch.float32, device)


class Wishes:
    """The changes that the rows of a step ask for.

    Args:
        width: of the vocabulary.
    """

    def __init__(self, width: int) -> None:
        self._repeated, self._penalties = _Places(width), _Places(width)
        self._bias, self._held = _Places(width), _Places(width)
        self._masked: list[int] = []
        self._masks: list[Tensor] = []

    def add(self, row: int, sequence: Sequence, ends: frozenset[int]) -> None:
        """Note what a row asks for; an exception is that row's problem alone."""
        params = sequence.request.params
        if params.repetition_penalty != 1.0:
            seen = set(sequence.tokens)
            self._repeated.add(row, seen, _fp32([params.repetition_penalty]).repeat(len(seen)))
        if (params.presence_penalty or params.frequency_penalty) and sequence.num_generated:
            counts = Counter(sequence.tokens[-sequence.num_generated :])
            each, once = _fp32([params.frequency_penalty, params.presence_penalty])
            self._penalties.add(row, counts.keys(), _fp32(counts.values()) * each + once)
        if params.logit_bias:
            self._bias.add(row, params.logit_bias.keys(), _fp32(params.logit_bias.values()))
        if sequence.num_generated < params.min_tokens:
            held = {*ends, *params.stop_token_ids}
            self._held.add(row, held, _fp32([-np.inf]).repeat(len(held)))
        if sequence.matcher is not None:
            self._masks.append(sequence.matcher.allowed())
            self._masked.append(row)

    def apply(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Carry the wishes out.

        Args:
            logits: ``[L, vocabulary]`` fp32, not changed.

        Returns:
            The shaped logits, which are ``logits`` itself where nothing was asked for; and ``[L]``
            bool, the rows whose structure leaves no token, or None without structures.
        """
        if not self._masked and not (self._repeated or self._penalties or self._bias or self._held):
            return logits, None
        device = logits.device
        shaped = logits.clone(memory_format=torch.contiguous_format)
        flat = shaped.view(-1)
        if self._repeated:
            places, penalty = self._repeated.on(device)
            found = flat[places]
            flat[places] = torch.where(found > 0, found / penalty, found * penalty)
        if self._penalties:
            places, penalty = self._penalties.on(device)
            flat[places] -= penalty
        if self._bias:
            places, bias = self._bias.on(device)
            flat[places] += bias
        if self._held:
            places, lowest = self._held.on(device)
            flat[places] = lowest
        if not self._masked:
            return shaped, None
        rows = to_device(self._masked, torch.int64, device)
        allowed = torch.stack(self._masks).to(device, non_blocking=True)
        fenced = shaped[rows].masked_fill_(~allowed, -torch.inf)
        shaped[rows] = fenced
        blocked = torch.zeros(logits.shape[0], dtype=torch.bool, device=device)
        blocked[rows] = fenced.isneginf().all(-1)
        return shaped, blocked


def _fp32(values: Collection[float]) -> np.ndarray:
    return np.fromiter(values, np.float32, len(values))


def truncate(warm: Tensor, params: Rows[SamplingParams]) -> None:
    """Top-k, then top-p, then min-p on warm logits, in place; the best token always stays.

    Args:
        warm: ``[n, vocabulary]`` logits over their temperatures.
        params: of the n rows.
    """
    width, device = warm.shape[1], warm.device

    def picked(rows: list[int]) -> tuple[Tensor | slice, Tensor]:
        if len(rows) == len(params):
            return slice(None), warm
        index = to_device(rows, torch.int64, device)
        return index, warm[index]

    rows = [row for row, one in enumerate(params) if 0 < one.top_k < width]
    if rows:
        index, some = picked(rows)
        counts = [params[row].top_k for row in rows]
        last = to_device(counts, torch.int64, device).unsqueeze(1) - 1
        least = some.topk(max(counts), dim=-1).values.gather(1, last)
        warm[index] = some.masked_fill(some < least, -torch.inf)
    rows = [row for row, one in enumerate(params) if one.top_p < 1.0]
    if rows:
        index, some = picked(rows)
        bound = to_device([params[row].top_p for row in rows], warm.dtype, device).unsqueeze(1)
        ordered, order = some.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        beyond = probabilities.cumsum(-1) - probabilities >= bound
        beyond[:, 0] = False
        warm[index] = some.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)
    rows = [row for row, one in enumerate(params) if one.min_p > 0.0]
    if rows:
        index, some = picked(rows)
        share = to_device([params[row].min_p for row in rows], warm.dtype, device).unsqueeze(1)
        probabilities = some.softmax(-1)
        unlikely = probabilities < share * probabilities.amax(-1, keepdim=True)
        warm[index] = some.masked_fill(unlikely, -torch.inf)
