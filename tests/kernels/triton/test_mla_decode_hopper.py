"""The decode of many rows in Gluon, on the devices that have its instructions."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from dsv2.kernels.latent import LatentFormat
from dsv2.kernels.triton.launch import bounds, hopper
from dsv2.kernels.triton.mla_decode import bulk_copies, decode_latent, decode_tiles
from tests.kernels.triton.place import DEVICE
from tests.kernels.triton.test_mla_decode import Case, decode, make

on_hopper = pytest.mark.skipif(not hopper(DEVICE), reason="needs compute capability 9")
PLAIN = LatentFormat("plain", torch.float32)


def by_triton(case: Case) -> torch.Tensor:
    """The same by the kernel in Triton, which tiles that are named choose."""
    return decode(case, tiles=decode_tiles(64, case.q_latent.dtype))


def chosen(case: Case, rows: int) -> bool:
    return bulk_copies(case.q_latent, case.q_rope, case.cache, PLAIN, rows)


def test_a_cpu_never_takes_it() -> None:
    case = make(128, 512, 64, (3,), (1,), torch.bfloat16)
    on_cpu = Case(*(part.cpu() if isinstance(part, torch.Tensor) else part for part in case))
    assert not chosen(on_cpu, 128)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("heads", "kv", "q_lens"),
    [
        (128, (100, 64, 1), (1, 1, 1)),  # a page in part, a whole one, one key
        (128, (4000,) * 40, (1,) * 40),  # no split is mixed
        (128, (5000, 3), (1, 1)),  # most splits of the second have no key
        (16, (100, 64, 1000), (4, 4, 4)),  # tokens share a tile and see unlike numbers of keys
        (40, (333, 5), (3, 1)),  # rows that fill no tile
    ],
)
@pytest.mark.parametrize("deterministic", [False, True])
def test_values_equal_the_reference(
    heads: int, kv: tuple[int, ...], q_lens: tuple[int, ...], dtype: torch.dtype,
    deterministic: bool,
) -> None:  # fmt: skip
    case = make(heads, 512, 64, kv, q_lens, dtype)
    assert chosen(case, heads * max(q_lens))
    ours = decode(case, deterministic=deterministic).float()
    expected = case.reference(0.2)
    torch.testing.assert_close(ours, expected, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(ours, by_triton(case).float(), atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@on_hopper
def test_a_sequence_without_keys_yields_zeros() -> None:
    case = make(128, 512, 64, (70, 9), (1, 1), torch.bfloat16)
    case.kv_len[1] = 0
    for deterministic in (False, True):
        assert not decode(case, deterministic=deterministic)[1].any()


@pytest.mark.gpu
@on_hopper
def test_a_row_alone_has_the_bits_it_has_in_a_batch() -> None:
    case = make(128, 512, 64, (600, 20, 300), (2, 1, 1), torch.bfloat16)
    together = decode(case, deterministic=True)
    alone = decode_latent(
        case.q_latent[1:2], case.q_rope[1:2], case.cache, case.table[:1], case.kv_len[:1],
        bounds((1,), DEVICE), 1, 0.2, deterministic=True,
    )  # fmt: skip
    assert torch.equal(alone[0], together[1])


@pytest.mark.gpu
@on_hopper
def test_what_it_is_not_made_for_goes_to_triton() -> None:
    case = make(128, 512, 64, (70,), (1,), torch.bfloat16)
    assert chosen(case, 128)
    assert not chosen(case, 16)  # one tile of few rows: bytes bind
    assert not chosen(case._replace(cache=case.cache.float()), 128)
    narrow = make(128, 256, 64, (70,), (1,), torch.bfloat16)
    assert not chosen(narrow, 128)
    torch.testing.assert_close(decode(narrow).float(), narrow.reference(0.2), atol=2e-2, rtol=2e-2)
