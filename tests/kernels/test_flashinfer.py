"""The adapter to FlashInfer: its arguments, against a stand-in of the same signatures.

The stand-in computes from exactly what it is given, so that a wrong argument is a wrong result.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv2.kernels import flashinfer, reference
from dsv2.kernels.flashinfer import LATENT, ROPE, MlaDecode, faster
from dsv2.kernels.registry import ORDER, BackendError, available, chosen
from dsv2.shapes import BLOCK_SIZE, ShapeError

CPU = torch.device("cpu")
HEADS, SCALE = 2, 0.07


class Wrapper:
    """Has the parameters of ``BatchMLAPagedAttentionWrapper`` in their order."""

    last: dict[str, Any]

    def __init__(
        self, float_workspace_buffer: Tensor, use_cuda_graph: bool = False,
        qo_indptr: Tensor | None = None, kv_indptr: Tensor | None = None,
        kv_indices: Tensor | None = None, kv_len_arr: Tensor | None = None, backend: str = "auto",
    ) -> None:  # fmt: skip
        assert float_workspace_buffer.numel() == 128 << 20
        buffers = (qo_indptr, kv_indptr, kv_indices, kv_len_arr)
        assert all((one is not None) == use_cuda_graph for one in buffers)
        Wrapper.last = {"graph": use_cuda_graph, "backend": backend, "sizes": [
            None if one is None else one.numel() for one in buffers
        ]}  # fmt: skip

    def plan(
        self, qo_indptr: Tensor, kv_indptr: Tensor, kv_indices: Tensor, kv_len_arr: Tensor,
        num_heads: int, head_dim_ckv: int, head_dim_kpe: int, page_size: int, causal: bool,
        sm_scale: float, q_data_type: torch.dtype, kv_data_type: torch.dtype,
    ) -> None:  # fmt: skip
        tensors = (qo_indptr, kv_indptr, kv_indices, kv_len_arr)
        assert all(one.dtype == torch.int32 for one in tensors)
        assert (head_dim_ckv, head_dim_kpe, page_size) == (512, 64, 64)
        assert q_data_type == kv_data_type
        self.q, self.kv, self.indices, self.lengths = tensors
        self.heads, self.causal, self.scale = num_heads, causal, sm_scale

    def run(self, q_nope: Tensor, q_pe: Tensor, ckv_cache: Tensor, kpe_cache: Tensor) -> Tensor:
        assert q_nope.shape[1] == self.heads
        assert ckv_cache.stride() == kpe_cache.stride() == (64 * 576, 576, 1)
        assert ckv_cache.data_ptr() != kpe_cache.data_ptr()
        outputs = []
        bounds = zip(pairwise(self.q.tolist()), pairwise(self.kv.tolist()), strict=True)
        for place, ((q0, q1), (k0, k1)) in enumerate(bounds):
            total, new = int(self.lengths[place]), q1 - q0
            pages = self.indices[k0:k1].long()
            c, r = (one[pages].flatten(0, 1)[:total].float() for one in (ckv_cache, kpe_cache))
            scores = torch.einsum("thc,sc->hts", q_nope[q0:q1].float(), c)
            scores += torch.einsum("thr,sr->hts", q_pe[q0:q1].float(), r)
            if self.causal:
                hidden = torch.ones(new, total, dtype=torch.bool).triu(total - new + 1)
                scores = scores.masked_fill(hidden, -torch.inf)
            weights = (scores * self.scale).softmax(-1)
            outputs.append(torch.einsum("hts,sc->thc", weights, c))
        return torch.cat(outputs).to(q_nope.dtype)


def make(q_lens: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    tokens = sum(q_lens)
    q_latent = torch.randn(tokens, HEADS, LATENT, generator=generator).to(dtype)
    q_rope = torch.randn(tokens, HEADS, ROPE, generator=generator).to(dtype)
    cache = torch.randn(6, BLOCK_SIZE, LATENT + ROPE, generator=generator).to(dtype)
    # The last entry of the first row is behind its 70 tokens: it must not be read.
    table = torch.tensor([[4, 1, 5], [3, 0, 2]], dtype=torch.int32)
    return q_latent, q_rope, cache, table, torch.tensor([70, 192], dtype=torch.int32)


@pytest.mark.usefixtures("flashinfer_stand_in")
@pytest.mark.parametrize("q_lens", [(1, 1), (3, 1)])
def test_it_computes_what_the_reference_does(q_lens: tuple[int, ...]) -> None:
    arguments = make(q_lens)
    ours = flashinfer.attend_absorbed(*arguments, q_lens, SCALE)
    wide = [one.float() for one in arguments[:3]]
    expected = reference.attend_absorbed(*wide, *arguments[3:], q_lens, SCALE)
    torch.testing.assert_close(ours.float(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.usefixtures("flashinfer_stand_in")
def test_a_graph_has_buffers_of_its_own_and_bounds() -> None:
    decode = MlaDecode(
        CPU, heads=HEADS, scale=SCALE, dtype=torch.bfloat16, kernel="fa3", graph=(2, 5)
    )
    assert Wrapper.last == {"graph": True, "backend": "fa3", "sizes": [3, 3, 5, 2]}
    q_latent, q_rope, cache, table, kv_len = make((1, 1))
    decode.plan(table, kv_len, (1, 1))
    first = decode.run(q_latent, q_rope, cache)
    decode.plan(table, kv_len - 1, (1, 1))
    assert not torch.equal(first, decode.run(q_latent, q_rope, cache))
    with pytest.raises(ValueError, match="2 sequences with 6 blocks, allowed in this graph are 2"):
        decode.plan(table, torch.tensor([192, 192]), (1, 1))
    with pytest.raises(ValueError, match="1 sequences"):
        decode.plan(table[:1], kv_len[:1], (1,))


@pytest.mark.usefixtures("flashinfer_stand_in")
def test_what_it_cannot_do_is_named() -> None:
    with pytest.raises(ValueError, match=r"dtype is torch\.float32, allowed are torch\.bfloat16"):
        MlaDecode(CPU, heads=HEADS, scale=SCALE, dtype=torch.float32)
    with pytest.raises(ValueError, match="kernel is 'fa9', allowed are auto, fa2, fa3"):
        MlaDecode(CPU, heads=HEADS, scale=SCALE, dtype=torch.bfloat16, kernel="fa9")
    decode = MlaDecode(CPU, heads=HEADS, scale=SCALE, dtype=torch.bfloat16)
    q_latent, q_rope, cache, table, kv_len = make((1, 1))
    with pytest.raises(ValueError, match="kv_len is 0"):
        decode.plan(table, torch.tensor([5, 0]), (1, 1))
    decode.plan(table, kv_len, (1, 1))
    with pytest.raises(ShapeError):
        decode.run(q_latent[..., :256], q_rope, cache)
    with pytest.raises(ValueError, match=r"cache is torch\.float16, planned is torch\.bfloat16"):
        decode.run(q_latent, q_rope, cache.half())
    with pytest.raises(ValueError, match="no gradient"):
        flashinfer.attend_absorbed(
            q_latent.requires_grad_(), q_rope, cache, table, kv_len, (1, 1), SCALE
        )


def test_auto_never_takes_it_unasked() -> None:
    assert all("flashinfer" not in names for names in ORDER.values())
    if not available("flashinfer"):
        with pytest.raises(BackendError, match="needs the package 'flashinfer'"):
            chosen("attend_absorbed", "flashinfer", "cuda")
    assert faster({"triton": 1.04, "flashinfer": 1.0}) == "triton"
    assert faster({"triton": 1.06, "flashinfer": 1.0}) == "flashinfer"
    assert faster({"triton": 9.0}) == "triton"


@pytest.mark.gpu
@pytest.mark.parametrize("q_lens", [(1, 1), (3, 1)])
def test_the_library_itself(q_lens: tuple[int, ...]) -> None:
    pytest.importorskip("flashinfer")
    arguments = [one.cuda() for one in make(q_lens)]
    ours = flashinfer.attend_absorbed(*arguments, q_lens, SCALE)
    wide = [one.float() for one in arguments[:3]]
    expected = reference.attend_absorbed(*wide, *arguments[3:], q_lens, SCALE)
    torch.testing.assert_close(ours.float(), expected, atol=2e-2, rtol=2e-2)
