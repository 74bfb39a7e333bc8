"""Rows of packed documents, each a pure function of the data, a seed and the row's number.

So a run resumes from one integer, the rows it has consumed, with any number of readers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsv2.training.shards import DataError, TokenDataset

IGNORED = -100
"""The target of a token whose successor is not to be learnt."""


@dataclass(frozen=True)
class Batch:
    """Rows one after another, T tokens in all.

    Attributes:
        tokens: ``[T]`` int64.
        targets: ``[T]`` int64, the next token of the same document or -100.
        lengths: tokens of each document, or part of one, in order; no part crosses a row.
        rows: number of rows.
    """

    tokens: Tensor
    targets: Tensor
    lengths: tuple[int, ...]
    rows: int


@dataclass(frozen=True)
class _Epoch:
    """Documents in this epoch's order, and where each row begins.

    Attributes:
        order: ``[documents]`` int64.
        starts: ``[documents + 1]`` int64 places of the ordered documents in the epoch's stream.
        rows: number of rows.
        first: for whole documents, ``[rows + 1]`` the first document of each row, else None.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    rows: int
    first: NDArray[np.int64] | None


class PackedLoader:
    """Documents in a new random order each epoch, packed into rows of ``sequence_length`` tokens.

    With ``whole=False`` (pre-training) a document that does not fit goes on in the next row, where
    it starts anew. With ``whole=True`` (SFT) documents are never cut unless longer than a row, in
    which case their end is left out; the rest of a row is filled with tokens that no loss counts.

    A mask in the data turns the targets it leaves out into -100.

    Raises:
        DataError: the data does not fill one row.
    """

    def __init__(
        self, dataset: TokenDataset, sequence_length: int, *, seed: int, whole: bool = False
    ) -> None:
        self.dataset, self.length = dataset, sequence_length
        self._seed, self._whole = seed, whole
        self._ends_of_epochs: list[int] = []
        self._current: tuple[int, _Epoch] | None = None
        if self._epoch(0).rows < 1:
            raise DataError(
                f"{dataset.folder}: {dataset.num_tokens} tokens do not fill one row of "
                f"{sequence_length}"
            )

    @property
    def rows_per_epoch(self) -> int:
        """Rows of the first epoch."""
        return self._epoch(0).rows

    def batch_at(self, cursor: int, rows: int) -> Batch:
        """Rows ``cursor`` to ``cursor + rows``, counted over all epochs."""
        tokens, targets, lengths = [], [], []
        for number in range(cursor, cursor + rows):
            for part_tokens, part_targets in self._row(number):
                tokens.append(part_tokens)
                targets.append(part_targets)
                lengths.append(len(part_tokens))
        return Batch(
            tokens=torch.from_numpy(np.concatenate(tokens)),
            targets=torch.from_numpy(np.concatenate(targets)),
            lengths=tuple(lengths),
            rows=rows,
        )

    def _row(self, number: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        index = 0
        while True:
            before = self._ends_of_epochs[index - 1] if index else 0
            if index == len(self._ends_of_epochs):
                self._ends_of_epochs.append(before + self._epoch(index).rows)
            if number < self._ends_of_epochs[index]:
                break
            index += 1
        epoch = self._epoch(index)
        if epoch.first is not None:
            return self._whole_row(epoch, number - before)
        return self._cut_row(epoch, number - before)

    def _cut_row(
        self, epoch: _Epoch, row: int
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        start, stop = row * self.length, (row + 1) * self.length
        place = int(np.searchsorted(epoch.starts, start, side="right")) - 1
        parts = []
        while start < stop:
            taken = min(stop, int(epoch.starts[place + 1])) - start
            parts.append(self._part(epoch, place, start - int(epoch.starts[place]), taken))
            start += taken
            place += 1
        return parts

    def _whole_row(
        self, epoch: _Epoch, row: int
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        assert epoch.first is not None
        parts, left = [], self.length
        for place in range(int(epoch.first[row]), int(epoch.first[row + 1])):
            size = min(left, int(epoch.starts[place + 1] - epoch.starts[place]))
            parts.append(self._part(epoch, place, 0, size))
            left -= size
        if left:
            parts.append((np.zeros(left, np.int64), np.full(left, IGNORED, np.int64)))
        return parts

    def _part(
        self, epoch: _Epoch, place: int, offset: int, size: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        begin, end = self.dataset.bounds(int(epoch.order[place]))
        begin += offset
        tokens, mask = self.dataset.read(begin, min(begin + size + 1, end))
        targets = np.full(size, IGNORED, np.int64)
        known = tokens[1 : size + 1]
        if mask is not None:
            known = np.where(mask[1 : size + 1], known, IGNORED)
        targets[: len(known)] = known
        return tokens[:size], targets

    def _epoch(self, index: int) -> _Epoch:
        if self._current is not None and self._current[0] == index:
            return self._current[1]
        generator = np.random.default_rng((self._seed, index))
        order = generator.permutation(self.dataset.num_documents)
        sizes = np.diff(self.dataset.ends, prepend=0)[order]
        starts = np.concatenate(([0], np.cumsum(sizes)))
        if self._whole:
            first = _pack_whole(sizes, self.length)
            epoch = _Epoch(order, starts, len(first) - 1, first)
        else:
            epoch = _Epoch(order, starts, int(starts[-1]) // self.length, None)
        self._current = (index, epoch)
        return epoch


def _pack_whole(sizes: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Which document each row begins with, when none is cut; one more entry for the end."""
    first, used = [0], 0
    for place, size in enumerate(np.minimum(sizes, length).tolist()):
        if used + size > length:
            first.append(place)
            used = 0
        used += size
    if used:
        first.append(len(sizes))
    return np.asarray(first, np.int64)
