"""From logits to tokens: bias, penalties, temperature, top-k, top-p, min-p, and the choice.

The choice is Gumbel-max with Philox(seed, position) noise: the most likely token of logits plus
noise is a sample of their softmax, and it depends on nothing but the row, the seed and the place.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Rows
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dsv2.engine.philox import gumbel_noise
from dsv2.engine.request import SamplingParams
from dsv2.engine.sequence import Sequence


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of probabilities at one step.

    Attributes:
        chosen: of the token that was taken.
        top: the best tokens and theirs, best first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Choice:
    """The next token of one sequence, or None and why there is none."""

    token: int | None
    logprobs: TokenLogprobs | None = None
    error: str | None = None


def sample(logits: Tensor, sequences: Rows[Sequence], ends: frozenset[int]) -> list[Choice]:
    """Choose the next token of each sequence.

    Args:
        logits: ``[L, vocabulary]`` fp32, not changed.
        sequences: the L sequences, with the tokens so far.
        ends: tokens that end an answer, which ``min_tokens`` holds back.

    Returns:
        A choice per row; a row that is not finite, or fails, has none and harms no other.
    """
    # NaN is the extreme of every row it is in, and extremes are found faster than a mask is made.
    finite = (logits.amin(-1).isfinite() & logits.amax(-1).isfinite()).tolist()
    problems: list[str | None] = [
        None if good else "the model's numbers are not finite" for good in finite
    ]
    shaped, row_device = logits.clone(), logits.device
    for row, sequence in enumerate(sequences):
        with _contained(problems, row):
            _shape(shaped[row], sequence, ends)
            if sequence.matcher is not None:
                shaped[row].masked_fill_(~sequence.matcher.allowed().to(row_device), -torch.inf)
                if bool(shaped[row].isneginf().all()):
                    raise ValueError("the structure allows no token here")
    temperatures = [sequence.request.params.temperature for sequence in sequences]
    tokens = _best(shaped)
    drawn = [row for row, temperature in enumerate(temperatures) if temperature > 0]
    if drawn:
        rows = torch.tensor(drawn, device=logits.device)
        scale = torch.tensor([temperatures[row] for row in drawn], dtype=torch.float64)
        # fp64: the noise of a 32-bit word has more digits than fp32 holds.
        warm = shaped[rows].double() / scale.to(logits.device).unsqueeze(1)
        for place, row in enumerate(drawn):
            with _contained(problems, row):
                _truncate(warm[place], sequences[row].request.params)
        noise = gumbel_noise(
            [sequences[row].seed for row in drawn],
            [len(sequences[row].tokens) for row in drawn],
            logits.shape[1],
            logits.device,
        )
        tokens[rows] = _best(warm + noise)
    choices = []
    for row, token in enumerate(tokens.tolist()):
        logprobs = None
        with _contained(problems, row):
            logprobs = token_logprobs(logits[row], token, sequences[row].request.params.logprobs)
        problem = problems[row]
        choices.append(Choice(None, error=problem) if problem else Choice(token, logprobs))
    return choices


def _best(rows: Tensor) -> Tensor:
    """The first largest of each row; on a CPU numpy finds it in a twentieth of torch's time."""
    if rows.device.type == "cpu":
        return torch.from_numpy(rows.numpy().argmax(-1))
    return rows.argmax(-1)


@contextmanager
def _contained(problems: list[str | None], row: int) -> Iterator[None]:
    """What goes wrong for one row is that row's problem alone."""
    try:
        yield
    except Exception as error:  # a row's request ends with it, and its message tells
        problems[row] = problems[row] or f"choosing the next token failed: {error}"


def _shape(row: Tensor, sequence: Sequence, ends: frozenset[int]) -> None:
    """Bias, the hold on ends, and penalties, in place."""
    params = sequence.request.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(sequence.tokens)), device=row.device)
        found = row[seen]
        penalty = params.repetition_penalty
        row[seen] = torch.where(found > 0, found / penalty, found * penalty)
    if (params.presence_penalty or params.frequency_penalty) and sequence.num_generated:
        generated = torch.tensor(sequence.tokens[-sequence.num_generated :], device=row.device)
        counts = torch.bincount(generated, minlength=row.shape[0])
        row -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=row.device)
        row[ids] += torch.tensor(list(params.logit_bias.values()), device=row.device)
    if sequence.num_generated < params.min_tokens:
        held = sorted({*ends, *params.stop_token_ids})
        row[torch.tensor(held, dtype=torch.int64, device=row.device)] = -torch.inf


def _truncate(row: Tensor, params: SamplingParams) -> None:
    """Top-k, then top-p, then min-p on a row of warm logits, in place; the best always stays."""
    if 0 < params.top_k < row.shape[0]:
        least = row.topk(params.top_k).values[-1]
        row[row < least] = -torch.inf
    if params.top_p < 1.0:
        ordered, order = row.sort(descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        beyond = before >= params.top_p
        beyond[0] = False
        row[order[beyond]] = -torch.inf
    if params.min_p > 0.0:
        probabilities = row.softmax(-1)
        row[probabilities < params.min_p * probabilities.max()] = -torch.inf


def token_logprobs(row: Tensor, token: int, count: int | None) -> TokenLogprobs | None:
    """Of ``token`` and the ``count`` best of ``row`` ``[vocabulary]``; None where count is None."""
    if count is None:
        return None
    logs = row.log_softmax(-1)
    top = logs.topk(count)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return TokenLogprobs(float(logs[token]), tuple(pairs))
