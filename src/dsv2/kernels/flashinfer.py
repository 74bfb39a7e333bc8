"""The backend ``flashinfer``: its MLA decode kernel on our paged latent, where it is installed.

One op, ``attend_absorbed``. FlashInfer takes the latent and the rotated key as two tensors and
reads their strides over pages and tokens, so both are views of our ``[P, 64, C+R]`` cache. A plan
deals the work of a batch out to multiprocessors; it is the host's, needs the lengths there, and is
the same for all layers: :class:`MlaDecode` makes it once per step and runs it for each layer.

The engine knows lengths on the host: its captured steps take this kernel where it is installed and
:func:`faster` on their shape. As an op that is given lengths on the device it waits for them, so
``auto`` takes Triton's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dsv2.kernels.registry import implements
from dsv2.shapes import BLOCK_SIZE, check

LATENT, ROPE = 512, 64
"""The widths that its kernels are built for."""
DTYPES = (torch.bfloat16, torch.float16)
KERNELS = ("auto", "fa2", "fa3")
"""Its own backends; its ``auto`` is fa3 on Hopper and fa2 elsewhere."""
MARGIN = 1.05
"""How much faster it has to be: a plan costs the host what kernel times do not show."""
_WORKSPACE = 128 << 20
"""Bytes for partial results, as its documentation recommends."""


def faster(seconds: Mapping[str, float]) -> str:
    """The backend of ``attend_absorbed`` that measured times speak for.

    Args:
        seconds: of one call by backend; without ``flashinfer`` among them it is ``triton``.
    """
    if "flashinfer" not in seconds or "triton" not in seconds:
        return "triton"
    return "flashinfer" if seconds["triton"] > MARGIN * seconds["flashinfer"] else "triton"


@cache
def _workspace(device: torch.device) -> Tensor:
    return torch.empty(_WORKSPACE, dtype=torch.uint8, device=device)


class MlaDecode:
    """A plan, and runs of it.

    Calls that share a device share the workspace: they must follow one another on one stream.

    Args:
        device: that computes.
        heads: H.
        scale: of the scores.
        dtype: of queries and cache, bf16 or fp16.
        kernel: a name of :data:`KERNELS`.
        graph: largest numbers of sequences and of their cache blocks together, to be recorded in a
            CUDA graph; every plan then has exactly so many sequences, and a replay computes what
            was planned last. None for no graph.

    Raises:
        ValueError: the dtype or the kernel is not one of them.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        heads: int,
        scale: float,
        dtype: torch.dtype,
        kernel: str = "auto",
        graph: tuple[int, int] | None = None,
    ) -> None:
        from flashinfer.mla import BatchMLAPagedAttentionWrapper

        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype}, allowed are {DTYPES[0]} and {DTYPES[1]}")
        if kernel not in KERNELS:
            raise ValueError(f"kernel is {kernel!r}, allowed are {', '.join(KERNELS)}")
        self._heads, self._scale, self._dtype, self._graph = heads, scale, dtype, graph
        self._device = device
        self._planned: torch.cuda.Event | None = None
        buffers: dict[str, Any] = {}
        if graph is not None:
            sizes = {
                "qo_indptr": graph[0] + 1, "kv_indptr": graph[0] + 1, "kv_indices": graph[1],
                "kv_len_arr": graph[0],
            }  # fmt: skip
            buffers = {
                name: torch.zeros(size, dtype=torch.int32, device=device)
                for name, size in sizes.items()
            }
        self._wrapper = BatchMLAPagedAttentionWrapper(
            _workspace(device), use_cuda_graph=graph is not None, backend=kernel, **buffers
        )

    def plan(
        self, block_table: Tensor, kv_len: Tensor, q_lens: tuple[int, ...] | None = None
    ) -> None:
        """Deal out the work of a batch.

        Waits for the device where the tensors are on it, and until what the plan before sent has
        arrived there.

        Args:
            block_table: ``[B, M]`` int32.
            kv_len: ``[B]`` int32, each at least 1.
            q_lens: query tokens of each sequence, its last ones; None for one of each.

        Raises:
            ShapeError: the shapes do not fit.
            ValueError: a sequence has no tokens, or the batch is not one of the graph's size.
        """
        sizes = check((block_table, "B M"), (kv_len, "B"))
        lengths, table = kv_len.to("cpu", torch.int32), block_table.cpu()
        if q_lens is None:
            q_lens = (1,) * sizes["B"]
        if len(q_lens) != sizes["B"]:
            raise ValueError(f"q_lens has {len(q_lens)} entries, kv_len {sizes['B']}")
        if int(lengths.min()) < 1:
            raise ValueError(f"kv_len is {int(lengths.min())} for a sequence, allowed is 1 or more")
        blocks = (lengths + (BLOCK_SIZE - 1)) // BLOCK_SIZE
        ends = blocks.cumsum(0, dtype=torch.int32)
        if self._graph is not None and (
            sizes["B"] != self._graph[0] or int(ends[-1]) > self._graph[1]
        ):
            raise ValueError(
                f"a batch of {sizes['B']} sequences with {int(ends[-1])} blocks, allowed in this "
                f"graph are {self._graph[0]} with {self._graph[1]} at most"
            )
        own = torch.arange(sizes["M"]) < blocks.unsqueeze(1)
        start = torch.zeros(1, dtype=torch.int32)
        if self._planned is not None:
            self._planned.synchronize()  # Its copies read memory that the next plan writes to.
        self._wrapper.plan(
            self._sent(torch.tensor([0, *accumulate(q_lens)], dtype=torch.int32)),
            self._sent(torch.cat((start, ends))),
            self._sent(table[own]),
            self._sent(lengths),
            self._heads,
            LATENT,
            ROPE,
            BLOCK_SIZE,
            max(q_lens) > 1,  # causal: the last query of a sequence sees all its keys
            self._scale,
            self._dtype,
            self._dtype,
        )
        if self._device.type == "cuda":
            self._planned = torch.cuda.current_stream(self._device).record_event()

    def _sent(self, numbers: Tensor) -> Tensor:
        """Where copies to the device need not be waited for."""
        return numbers.pin_memory() if self._device.type == "cuda" else numbers

    def run(self, q_latent: Tensor, q_rope: Tensor, cache: Tensor) -> Tensor:
        """``q_latent`` ``[T, H, C]``, ``q_rope`` ``[T, H, R]``, ``cache`` -> ``[T, H, C]``.

        Raises:
            ShapeError: the widths are not :data:`LATENT` and :data:`ROPE`.
            ValueError: queries or cache have another dtype than was planned.
        """
        check(
            (q_latent, f"T {self._heads} {LATENT}"), (q_rope, f"T {self._heads} {ROPE}"),
            (cache, f"P {BLOCK_SIZE} {LATENT + ROPE}"),
        )  # fmt: skip
        for name, tensor in (("q_latent", q_latent), ("q_rope", q_rope), ("cache", cache)):
            if tensor.dtype != self._dtype:
                raise ValueError(f"{name} is {tensor.dtype}, planned is {self._dtype}")
        return self._wrapper.run(q_latent, q_rope, cache[..., :LATENT], cache[..., LATENT:])


@cache
def _decode(device: torch.device, heads: int, scale: float, dtype: torch.dtype) -> MlaDecode:
    return MlaDecode(device, heads=heads, scale=scale, dtype=dtype)


@implements("attend_absorbed", "flashinfer", ("cuda",))
def attend_absorbed(
    q_latent: Tensor, q_rope: Tensor, cache: Tensor, block_table: Tensor, kv_len: Tensor,
    q_lens: tuple[int, ...], scale: float,
) -> Tensor:  # fmt: skip
    """One call with a plan of its own, which waits for the device; see :class:`MlaDecode`.

    Raises:
        ShapeError, ValueError: as :class:`MlaDecode`, or a query wants a gradient.
    """
    if torch.is_grad_enabled() and (q_latent.requires_grad or q_rope.requires_grad):
        raise ValueError(
            "attend_absorbed of backend 'flashinfer' has no gradient, use backend 'torch'"
        )
    decode = _decode(q_latent.device, q_latent.shape[1], scale, q_latent.dtype)
    decode.plan(block_table, kv_len, q_lens)
    return decode.run(q_latent, q_rope, cache)
