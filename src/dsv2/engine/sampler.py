"""From logits to tokens: bias, penalties, temperature, top-k, top-p, min-p, and the choice.

The choice is Gumbel-max with Philox(seed, position) noise: the most likely token of logits plus
noise is a sample of their softmax, and it depends on nothing but the row, the seed and the place.

All rows are computed together, on the device of the logits; one copy brings what was chosen to the
host, which waits for it where :meth:`Picks.choices` is called and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Rows
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dsv2.engine.philox import gumbel_noise
from dsv2.engine.sequence import Sequence
from dsv2.engine.shaping import Wishes, is_cut, is_shaped, truncate
from dsv2.engine.transfer import Arrival, to_device
from dsv2.kernels.registry import select

NOT_FINITE = -1
"""Stands for a token where the row's logits are not all finite."""
NONE_ALLOWED = -2
"""Stands for a token where the structure leaves none."""

_LEAST_TEMPERATURE = 1e-30
"""What lower ones count as: logits over them would be infinite, and all alike."""

_NOISE_AT_ONCE = {"cpu": 2**19, "cuda": 2**22}
"""Logits whose noise is made together: a quarter as many 8-byte words in a dozen tensors."""

NOT_FINITE_TEXT = "the model's numbers are not finite"
"""Why a request ends whose numbers are not."""
_FAILED = "choosing the next token failed: "


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


class Picks:
    """The choices of L rows on their way to the host.

    Args:
        tokens: ``[L]`` int64 on the device that chose; :data:`NOT_FINITE` and
            :data:`NONE_ALLOWED` stand for a token that there is not.
        problems: what went wrong with a row on the host, by row.
        logprobs: ``[L, ..]`` fp64 as of :func:`logprob_rows`, or None where no row asked for any.
        counts: how many best tokens each row asked for, or None.
    """

    def __init__(
        self,
        tokens: Tensor,
        problems: dict[int, str] | None = None,
        logprobs: Tensor | None = None,
        counts: Rows[int | None] = (),
    ) -> None:
        self.tokens = tokens
        self._problems, self._counts = problems or {}, counts
        if logprobs is not None:  # ids are exact in fp64
            tokens = torch.cat((tokens.double().unsqueeze(1), logprobs), 1)
        self._arrival = Arrival(tokens)

    def choices(self) -> list[Choice]:
        """A choice per row, once they are there."""
        arrived = self._arrival.take().tolist()
        if self._counts:
            each = zip(arrived, self._counts, strict=True)
            return [
                self._choice(row, int(values[0]), read_logprobs(values[1:], count))
                for row, (values, count) in enumerate(each)
            ]
        return [self._choice(row, token, None) for row, token in enumerate(arrived)]

    def _choice(self, row: int, token: int, logprobs: TokenLogprobs | None) -> Choice:
        if token == NOT_FINITE:
            return Choice(None, error=NOT_FINITE_TEXT)
        if row in self._problems:
            return Choice(None, error=self._problems[row])
        if token == NONE_ALLOWED:
            return Choice(None, error=f"{_FAILED}the structure allows no token here")
        return Choice(token, logprobs)


def sample(logits: Tensor, sequences: Rows[Sequence], ends: frozenset[int]) -> list[Choice]:
    """Choose the next token of each sequence, and wait for it; arguments as of :func:`pick`.

    Returns:
        A choice per row; a row that is not finite, or fails, has none and harms no other.
    """
    return pick(logits, sequences, ends).choices()


def pick(logits: Tensor, sequences: Rows[Sequence], ends: frozenset[int]) -> Picks:
    """Choose the next token of each sequence.

    Args:
        logits: ``[L, vocabulary]`` fp32, not changed.
        sequences: the L sequences, with the tokens so far.
        ends: tokens that end an answer, which ``min_tokens`` holds back.
    """
    problems: dict[int, str] = {}
    wishes = Wishes(logits.shape[1])
    for row, sequence in enumerate(sequences):
        if is_shaped(sequence):
            with _contained(problems, row):
                wishes.add(row, sequence, ends)
    shaped, blocked = wishes.apply(logits)
    tokens = _choose(shaped, sequences)
    if blocked is not None:
        tokens = tokens.masked_fill(blocked, NONE_ALLOWED)
    tokens = tokens.masked_fill(~finite_rows(logits), NOT_FINITE)
    counts = [sequence.request.params.logprobs for sequence in sequences]
    if all(count is None for count in counts):
        return Picks(tokens, problems)
    return Picks(tokens, problems, _wanted_logprobs(logits, tokens, counts), counts)


def is_plain(sequence: Sequence) -> bool:
    """Whether :func:`draw` alone gives the sequence's next token."""
    params = sequence.request.params
    return params.logprobs is None and not is_shaped(sequence) and not is_cut(params)


def draw(logits: Tensor, temperatures: Tensor | None, seeds: Tensor, positions: Tensor) -> Tensor:
    """The tokens of plain rows, without a word from the host: a CUDA graph may hold it.

    Args:
        logits: ``[L, vocabulary]`` fp32.
        temperatures: ``[L]`` fp64, 0 for greedy; None where all rows are.
        seeds: ``[L]`` int64.
        positions: ``[L]`` int64 places of the new tokens.

    Returns:
        ``[L]`` int64, :data:`NOT_FINITE` where a row is not.
    """
    tokens = select("greedy_tokens", device=logits.device.type)(logits)
    if temperatures is not None:
        warm_rows = (temperatures > 0) & (tokens != NOT_FINITE)
        scale = torch.where(warm_rows, temperatures, 1.0).clamp_min(_LEAST_TEMPERATURE)
        tokens = torch.where(warm_rows, _noisy_best(logits, scale, seeds, positions), tokens)
    return tokens


def finite_rows(logits: Tensor) -> Tensor:
    """``[L]``: whether a row's numbers are all finite; NaN is the extreme of every row it is in.

    On a CPU numpy says so, as in :func:`best_tokens`: torch's calls cost more than the work.
    """
    if logits.device.type == "cpu":
        rows = logits.numpy()
        return torch.from_numpy(np.isfinite(rows.min(-1)) & np.isfinite(rows.max(-1)))
    return logits.amin(-1).isfinite() & logits.amax(-1).isfinite()


def best_tokens(rows: Tensor) -> Tensor:
    """The first largest of each row; on a CPU numpy finds it in a twentieth of torch's time."""
    if rows.device.type == "cpu":
        return torch.from_numpy(rows.numpy().argmax(-1))
    return rows.argmax(-1)


@contextmanager
def _contained(problems: dict[int, str], row: int) -> Iterator[None]:
    """What goes wrong for one row is that row's problem alone."""
    try:
        yield
    except Exception as error:  # a row's request ends with it, and its message tells
        problems[row] = f"{_FAILED}{error}"


def _choose(shaped: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """The best token of each row ``[L]``, with noise where there is a temperature."""
    device = shaped.device
    drawn = [row for row, one in enumerate(sequences) if one.request.params.temperature > 0]
    if not drawn:
        return best_tokens(shaped)
    whole = len(drawn) == len(sequences)
    warm_rows = [sequences[row] for row in drawn]
    params = [one.request.params for one in warm_rows]
    rows = slice(None) if whole else to_device(drawn, torch.int64, device)
    temperatures = [max(one.temperature, _LEAST_TEMPERATURE) for one in params]
    scale = to_device(temperatures, torch.float64, device)
    seeds = to_device([one.seed for one in warm_rows], torch.int64, device)
    positions = to_device([len(one.tokens) for one in warm_rows], torch.int64, device)
    warm = shaped[rows]
    if any(is_cut(one) for one in params):
        warm = warm.double().div_(scale.unsqueeze(1))
        truncate(warm, params)
        scale = torch.ones_like(scale)
    found = _noisy_best(warm, scale, seeds, positions)
    if whole:
        return found
    tokens = best_tokens(shaped)
    tokens[rows] = found
    return tokens


def _noisy_best(logits: Tensor, scale: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """``[n]`` int64: the best tokens of ``logits`` ``[n, vocabulary]`` over ``scale``, plus noise.

    fp64: the noise of a 32-bit word has more digits than fp32 holds. Some rows at a time, so that
    what the noise is made of stays in the cache, and small beside the model.
    """
    width = logits.shape[1]
    rows = max(_NOISE_AT_ONCE[logits.device.type] // width, 1)
    parts = zip(*(part.split(rows) for part in (logits, scale, seeds, positions)), strict=True)
    return torch.cat(
        [
            best_tokens((some.double() / over.unsqueeze(1)).add_(gumbel_noise(seed, place, width)))
            for some, over, seed, place in parts
        ]
    )


def logprob_rows(logits: Tensor, tokens: Tensor, count: int) -> Tensor:
    """Of the chosen and the best tokens, for :func:`read_logprobs`.

    Args:
        logits: ``[n, vocabulary]`` fp32.
        tokens: ``[n]`` int64, the chosen ones.
        count: how many best ones.

    Returns:
        ``[n, 1 + 2 * count]`` fp64: the chosen one's, the best ids, and theirs.
    """
    logs = logits.log_softmax(-1)
    chosen = logs.gather(1, tokens.unsqueeze(1))
    top = logs.topk(count, dim=-1)
    return torch.cat((chosen.double(), top.indices.double(), top.values.double()), 1)


def read_logprobs(row: Rows[float], count: int | None) -> TokenLogprobs | None:
    """A row of :func:`logprob_rows` that may be longer; None where count is None."""
    if count is None:
        return None
    ids, values = row[1 : 1 + count], row[1 + count : 1 + 2 * count]
    pairs = zip((int(token) for token in ids), values, strict=True)
    return TokenLogprobs(row[0], tuple(pairs))


def _wanted_logprobs(logits: Tensor, tokens: Tensor, counts: Rows[int | None]) -> Tensor:
    """``[L, ..]`` fp64, with :func:`logprob_rows` where a row wants them."""
    wanted = sorted({count for count in counts if count is not None})
    if None not in counts and len(wanted) == 1:
        return logprob_rows(logits, tokens.clamp_min(0), wanted[0])
    found = torch.zeros(len(counts), 1 + 2 * wanted[-1], dtype=torch.float64, device=logits.device)
    for count in wanted:
        rows = to_device([r for r, c in enumerate(counts) if c == count], torch.int64, found.device)
        part = logprob_rows(logits[rows], tokens[rows].clamp_min(0), count)
        found[rows, : part.shape[1]] = part
    return found
