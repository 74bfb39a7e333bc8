"""Caches of codes in Triton: written as the reference writes them, read as it reads them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.formats import relative_rmse
from dsv2.kernels.latent import LATENT_FORMATS, latent_format, pack_latent, unpack_latent
from dsv2.shapes import BLOCK_SIZE, ShapeError
from tests.kernels.triton.place import DEVICE, HALF, draw, lengths_to

pytest.importorskip("triton")

from dsv2.kernels.triton.latent_cache import gather_latents, write_latents
from dsv2.kernels.triton.launch import bounds
from dsv2.kernels.triton.mla_decode import DecodeTiles, decode_latent

CODED = ("int8", "int6", "fp8")


def latents(tokens: int, latent: int, rope: int) -> Tensor:
    """Rotated keys are numbers of bf16, to which the interpreter does not round."""
    x = draw(tokens, latent + rope)
    x[:, latent:] = (6 * x[:, latent:]).bfloat16()
    return x


def empty(pages: int, latent: int, rope: int, name: str) -> Tensor:
    """A cache whose bytes are all set, which no format takes for a number."""
    kind = latent_format(name)
    shape = (pages, BLOCK_SIZE, kind.width(latent, rope))
    if kind.bits is None:
        return torch.full(shape, torch.nan, dtype=kind.dtype, device=DEVICE)
    return torch.full(shape, 255, dtype=kind.dtype, device=DEVICE)


@pytest.mark.parametrize("name", [*CODED, "float32"])
@pytest.mark.parametrize(("latent", "rope"), [(192, 32), (256, 64), (36, 6)])
def test_tokens_are_written_as_the_reference_packs_them(name: str, latent: int, rope: int) -> None:
    x = latents(6, latent, rope)
    x[1], x[2, 5], x[3, latent + 1], x[4, 7] = 0, torch.nan, torch.inf, 3e-9
    cache = empty(2, latent, rope, name)
    before = cache.clone()
    slots = lengths_to([100, 3, 64, 63, 0, 9])
    write_latents(cache, slots, x, latent, name)
    expected = pack_latent(x.cpu(), latent, name).to(DEVICE)
    written = cache.flatten(0, 1)[slots.long()]
    if name in ("int8", "int6"):
        assert torch.equal(written, expected)
    else:  # a quotient may be rounded to either neighbour
        back, wanted = (unpack_latent(one, latent, rope, name) for one in (written, expected))
        torch.testing.assert_close(back, wanted, atol=1e-6, rtol=0.13, equal_nan=True)
        finite = wanted.isfinite() & back.isfinite()
        assert relative_rmse(wanted[finite], back[finite]) < 1e-3
    others = torch.ones(128, dtype=torch.bool, device=DEVICE)
    others[slots.long()] = False
    untouched = (one.flatten(0, 1)[others].view(torch.uint8) for one in (cache, before))
    assert torch.equal(*untouched)


class Case:
    """B sequences in shuffled blocks of a cache in a format, and the numbers it holds."""

    def __init__(self, name: str, heads: int, latent: int, rope: int, kv: tuple[int, ...]) -> None:
        self.sizes, self.kv = (latent, rope), kv
        blocks = -(-max(kv) // BLOCK_SIZE)
        order = torch.randperm(len(kv) * blocks, generator=torch.Generator().manual_seed(1))
        self.table = order.to(torch.int32).view(len(kv), blocks).to(DEVICE)
        self.cache = empty(len(kv) * blocks, latent, rope, name)
        flat = self.cache.flatten(0, 1)
        for row, length in zip(self.table, kv, strict=True):
            place = torch.arange(length, device=DEVICE)
            slots = row[place // BLOCK_SIZE].long() * BLOCK_SIZE + place % BLOCK_SIZE
            flat[slots] = pack_latent(latents(length, latent, rope).cpu(), latent, name).to(DEVICE)
        self.numbers = unpack_latent(self.cache.cpu(), latent, rope, name).to(DEVICE)
        self.q_latent = draw(len(kv), heads, latent)
        self.q_rope = draw(len(kv), heads, rope, seed=1)


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("rows", [16, 32])
@pytest.mark.parametrize(("latent", "rope"), [(256, 32), (192, 64), (32, 16)])
def test_decode_on_codes(name: str, latent: int, rope: int, rows: int) -> None:
    case = Case(name, 5, latent, rope, (70, 3))
    expected = reference.attend_absorbed(
        case.q_latent, case.q_rope, case.numbers, case.table, lengths_to(case.kv), (1, 1), 0.05
    )
    ours = decode_latent(
        case.q_latent, case.q_rope, case.cache, case.table, lengths_to(case.kv),
        bounds((1, 1), DEVICE), 1, 0.05, cache_format=name,
        tiles=DecodeTiles(rows, 32, 4, 1),
    )  # fmt: skip
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CODED)
def test_decode_on_codes_in_half_precision(name: str) -> None:
    case = Case(name, 16, 128, 64, (130, 64))
    expected = reference.attend_absorbed(
        case.q_latent, case.q_rope, case.numbers, case.table, lengths_to(case.kv), (1, 1), 0.05
    )
    ours = decode_latent(
        case.q_latent.to(HALF), case.q_rope.to(HALF), case.cache, case.table, lengths_to(case.kv),
        bounds((1, 1), DEVICE), 1, 0.05, cache_format=name, deterministic=True,
    )  # fmt: skip
    assert relative_rmse(expected, ours.float()) < 5e-3


@pytest.mark.parametrize("name", sorted(LATENT_FORMATS))
def test_prefixes_are_gathered(name: str) -> None:
    if name == "bfloat16" and DEVICE.type == "cpu":
        name = "float32"  # the interpreter has no bf16
    case = Case(name, 1, 192, 32, (70, 1, 64))
    ours = gather_latents(
        case.cache, case.table, bounds(case.kv, DEVICE), sum(case.kv), 70, 192, 32, name,
        torch.float32,
    )  # fmt: skip
    expected = [
        reference.gather_latent(case.numbers, blocks, length)
        for blocks, length in zip(case.table, case.kv, strict=True)
    ]
    torch.testing.assert_close(ours, torch.cat(expected), atol=1e-6, rtol=1e-6)


def test_a_cache_of_another_format_is_refused() -> None:
    cache = empty(1, 64, 16, "int8")
    with pytest.raises(ShapeError, match=r"int6 is torch\.uint8 \[blocks, 64, 98\]"):
        write_latents(cache, lengths_to([0]), draw(1, 80), 64, "int6")
    with pytest.raises(ShapeError, match=r"fp8 is torch\.uint8"):
        decode_latent(
            draw(1, 2, 64), draw(1, 2, 16), cache, lengths_to([0])[None], lengths_to([1]),
            bounds((1,), DEVICE), 1, 1.0, cache_format="fp8",
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("heads", [16, 128])
def test_published_widths_on_a_gpu(name: str, heads: int) -> None:
    case = Case(name, heads, 512, 64, (1500, 77, 1))
    expected = reference.attend_absorbed(
        case.q_latent, case.q_rope, case.numbers, case.table, lengths_to(case.kv), (1, 1, 1), 0.07
    )
    ours = decode_latent(
        case.q_latent.to(HALF), case.q_rope.to(HALF), case.cache, case.table, lengths_to(case.kv),
        bounds((1, 1, 1), DEVICE), 1, 0.07, cache_format=name,
    )  # fmt: skip
    assert relative_rmse(expected, ours.float()) < 1e-2
