"""Attention of a step's sequences on a GPU: generated tokens absorbed, prompts expanded.

What is decided on the host is decided once per step (:class:`Parts`); the layers ask the device
nothing. A step of generated tokens alone makes no tensor whose shape depends on the device, so a
CUDA graph may hold it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from dsv2.kernels.ops import AttentionShape
from dsv2.kernels.triton.latent_cache import read_latents
from dsv2.kernels.triton.latent_values import MOST_SPLITS, split_values
from dsv2.kernels.triton.launch import bounds
from dsv2.kernels.triton.linear import product, stacked_product
from dsv2.kernels.triton.mla_decode import Splits, decode_latent, decode_splits, few_tiles
from dsv2.kernels.triton.mla_prefill import attend_ragged, merge_attention
from dsv2.ragged import PlannedDecode, RaggedBatch
from dsv2.shapes import BLOCK_SIZE

STRETCH = 16384
"""Cached tokens whose keys and values exist at once, where the order of sums is free."""


@dataclass(frozen=True)
class Prefix:
    """Where one prompt's cached beginning lies.

    Attributes:
        rows: of its new tokens among the expanded ones.
        slots: ``[S]`` of the tokens before them.
    """

    rows: slice
    slots: Tensor


@dataclass(frozen=True)
class Absorbed:
    """Generated tokens: ``rows`` of the batch, or None for all, and their sequences.

    Attributes:
        decode: attends in place of the kernel here, or None.
    """

    rows: Tensor | None
    cu_q: Tensor
    kv_len: Tensor
    block_table: Tensor
    longest: int
    decode: PlannedDecode | None = None


@dataclass(frozen=True)
class Expanded:
    """Prompts: ``rows`` of the batch, or None for all.

    Attributes:
        slots: ``[T']`` of the new tokens.
        cu_q: ``[B'+1]``.
        longest: most new tokens of a sequence.
        prefixes: of the sequences that have a cached beginning.
        whole_slots: ``[S']`` of all tokens of all sequences, where keys are taken in one order.
        cu_k: ``[B'+1]`` bounds of those.
    """

    rows: Tensor | None
    slots: Tensor
    cu_q: Tensor
    longest: int
    prefixes: tuple[Prefix, ...]
    whole_slots: Tensor | None
    cu_k: Tensor | None


@dataclass(frozen=True)
class Parts:
    """A batch by the form of its attention."""

    absorbed: Absorbed | None
    expanded: Expanded | None


def split(batch: RaggedBatch, form: str, deterministic: bool) -> Parts:
    """The two kinds of sequences of a batch.

    Args:
        batch: with a block table and slots.
        form: ``auto``, ``absorbed`` or ``expanded``.
        deterministic: keys of a prompt are taken in one order from the first on, however much of
            them was cached.

    Raises:
        ValueError: the batch has no cache, or the form is unknown.
    """
    if batch.block_table is None or batch.slots is None:
        raise ValueError("backend 'triton' attends over a latent cache, the batch has none")
    lengths = batch.query_lengths()
    flags = _absorbed(batch, form, lengths)
    if all(flags):
        everything = Absorbed(
            None, batch.cu_q, batch.kv_len, batch.block_table, max(lengths, default=0),
            batch.decode,
        )  # fmt: skip
        return Parts(everything, None)
    device = batch.tokens.device
    totals = batch.total_lengths()
    starts = [0, *accumulate(lengths)]
    prompts = [index for index, flag in enumerate(flags) if not flag]
    rest = [index for index, flag in enumerate(flags) if flag]
    absorbed = None
    if rest:
        some = _numbers(rest, device)
        own = tuple(lengths[index] for index in rest)
        absorbed = Absorbed(
            _numbers([row for index in rest for row in range(starts[index], starts[index + 1])],
                     device),
            bounds(own, device), batch.kv_len[some], batch.block_table[some], max(own),
        )  # fmt: skip
    rows = None
    if rest:
        rows = _numbers(
            [row for index in prompts for row in range(starts[index], starts[index + 1])], device
        )
    own = tuple(lengths[index] for index in prompts)
    ends = tuple(totals[index] for index in prompts)
    cached = any(end > new for new, end in zip(own, ends, strict=True))
    whole = cu_k = None
    prefixes: list[Prefix] = []
    if cached and deterministic:
        whole = torch.cat(
            [
                _slots(batch.block_table[index], end)
                for index, end in zip(prompts, ends, strict=True)
            ]
        )
        cu_k = bounds(ends, device)
    elif cached:
        place = 0
        for index, new, end in zip(prompts, own, ends, strict=True):
            if end > new:
                slots = _slots(batch.block_table[index], end - new)
                prefixes.append(Prefix(slice(place, place + new), slots))
            place += new
    return Parts(
        absorbed,
        Expanded(
            rows, batch.slots if rows is None else batch.slots[rows], bounds(own, device),
            max(own), tuple(prefixes), whole, cu_k,
        ),
    )  # fmt: skip


def _absorbed(batch: RaggedBatch, form: str, lengths: Sequence[int]) -> list[bool]:
    if form not in ("auto", "absorbed", "expanded"):
        raise ValueError(f"form {form!r} is unknown, allowed are auto, expanded, absorbed")
    if form != "auto":
        return [form == "absorbed"] * len(lengths)
    if batch.generated is not None:
        return list(batch.generated)
    totals = batch.total_lengths()
    return [new == 1 and total > 1 for new, total in zip(lengths, totals, strict=True)]


def _numbers(values: Sequence[int], device: torch.device) -> Tensor:
    host = torch.tensor(values, dtype=torch.int64)
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def _slots(blocks: Tensor, count: int) -> Tensor:
    """The cache slots ``[count]`` of a sequence's first tokens."""
    whole = blocks[: -(-count // BLOCK_SIZE)].long().unsqueeze(1) * BLOCK_SIZE
    return (whole + torch.arange(BLOCK_SIZE, device=blocks.device)).flatten()[:count]


def attend_absorbed(
    q: Tensor, q_rope: Tensor, part: Absorbed, cache: Tensor, cache_format: str, w_uk: Tensor,
    w_uv: Tensor, shape: AttentionShape, deterministic: bool, q_latent: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Generated tokens on the latents themselves.

    Args:
        q: ``[T', H, N+R]``, its rotated part unused.
        q_rope: ``[T', H, R]``.
        part: the sequences.
        cache: ``[P, 64, width]`` of a format.
        cache_format: its name.
        w_uk: ``[H, C, N]``, W^UK transposed.
        w_uv: ``[H, V, C]``.
        shape: sizes and scale.
        deterministic: whether a row's bits may depend on its own tokens alone.
        q_latent: ``[T', H, C]``, the absorbed queries of a few tokens, where they were computed.

    Returns:
        ``[T', H, V]``.
    """
    if q_latent is not None:
        return _attend_few(q_latent, q_rope, part, cache, cache_format, w_uv, shape)
    by_head = q[..., : shape.nope].transpose(0, 1)  # H T' N
    q_latent = _heads(by_head, w_uk, deterministic).transpose(0, 1)  # T' H C
    if part.decode is not None:
        mixed = part.decode.run(q_latent, q_rope, cache)
    else:
        mixed = decode_latent(
            q_latent, q_rope, cache, part.block_table, part.kv_len, part.cu_q, part.longest,
            shape.scale, cache_format=cache_format, deterministic=deterministic,
        )  # fmt: skip
    return _heads(mixed.transpose(0, 1), w_uv, deterministic).transpose(0, 1)  # T' H V


def _attend_few(
    q_latent: Tensor, q_rope: Tensor, part: Absorbed, cache: Tensor, cache_format: str,
    w_uv: Tensor, shape: AttentionShape,
) -> Tensor:  # fmt: skip
    if part.decode is not None:
        return split_values(Splits(part.decode.run(q_latent, q_rope, cache), None), w_uv)
    most = part.block_table.shape[1] * BLOCK_SIZE
    where = (cache, part.block_table, part.kv_len, part.cu_q, part.longest, shape.scale)
    if most > 2 * BLOCK_SIZE * MOST_SPLITS:
        mixed = decode_latent(q_latent, q_rope, *where, cache_format=cache_format)
        return split_values(Splits(mixed, None), w_uv)
    splits = decode_splits(
        q_latent, q_rope, *where, cache_format=cache_format,
        tiles=few_tiles(shape.heads * part.longest, q_latent.dtype),
    )  # fmt: skip
    return split_values(splits, w_uv)


def _heads(x: Tensor, weight: Tensor, deterministic: bool) -> Tensor:
    """``x`` ``[H, T, A]`` by ``weight`` ``[H, B, A]``: ``[H, T, B]``."""
    if deterministic:
        return stacked_product(x.contiguous(), weight, deterministic=True)
    return torch.bmm(x, weight.transpose(1, 2))


def attend_expanded(
    q: Tensor, part: Expanded, cache: Tensor, cache_format: str, wkv_b: Tensor,
    shape: AttentionShape, deterministic: bool,
) -> Tensor:  # fmt: skip
    """Prompts on keys and values built from the latents that the cache holds.

    Args:
        q: ``[T', H, N+R]``, rotated.
        part: the sequences.
        cache: ``[P, 64, width]`` of a format, the new tokens written.
        cache_format: its name.
        wkv_b: ``[H(N+V), C]``.
        shape: sizes and scale.
        deterministic: whether a row's bits may depend on its own tokens alone.

    Returns:
        ``[T', H, V]``.
    """

    def keys_and_values(slots: Tensor) -> tuple[Tensor, Tensor]:
        latent = read_latents(cache, slots, wkv_b.shape[1], shape.rope, cache_format, q.dtype)
        return _expand(latent, wkv_b, shape, deterministic)

    if part.whole_slots is not None:
        assert part.cu_k is not None
        k, v = keys_and_values(part.whole_slots)
        return attend_ragged(q, k, v, part.cu_q, part.cu_k, part.longest, shape.scale)[0]
    k, v = keys_and_values(part.slots)
    out, lse = attend_ragged(q, k, v, part.cu_q, part.cu_q, part.longest, shape.scale)
    for prefix in part.prefixes:
        rows = prefix.rows
        count = rows.stop - rows.start
        mixed, level = out[rows], lse[:, rows]
        for slots in _stretches(prefix.slots):
            k, v = keys_and_values(slots)
            other, other_level = attend_ragged(
                q[rows], k, v, bounds((count,), q.device), bounds((len(slots),), q.device), count,
                shape.scale, causal=False,
            )  # fmt: skip
            mixed, level = merge_attention(mixed, level, other, other_level)
        out[rows] = mixed
    return out


def _stretches(slots: Tensor) -> Iterator[Tensor]:
    yield from slots.split(STRETCH)


def _expand(
    latent: Tensor, wkv_b: Tensor, shape: AttentionShape, deterministic: bool
) -> tuple[Tensor, Tensor]:
    """Keys ``[S, H, N+R]`` and values ``[S, H, V]`` of latents ``[S, C+R]`` (equations 10, 11)."""
    c_kv, k_rope = latent.split((latent.shape[1] - shape.rope, shape.rope), 1)
    kv = product(c_kv, wkv_b, deterministic=deterministic).unflatten(1, (shape.heads, -1))
    k_nope, v = kv.split((shape.nope, shape.value), -1)
    k = torch.cat((k_nope, k_rope.unsqueeze(1).expand(-1, shape.heads, -1)), -1)
    return k, v
