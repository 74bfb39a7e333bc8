"""Products of a token or two with coded weights against the weights that the codes stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsv2.kernels import reference
from dsv2.kernels.executor import Mlp
from dsv2.kernels.formats import Coded, QuantTensor, dequantise
from dsv2.kernels.ops import ExpertWeights
from tests.kernels.triton.place import DEVICE, draw

pytest.importorskip("triton")

from dsv2.kernels.triton.linear import add_product, product, wide_product
from dsv2.kernels.triton.quant_experts import add_experts, common_scheme, takes_shared
from dsv2.kernels.triton.quant_vector import Cut, vector_product
from tests.kernels.triton.test_quant_product import experts_of, matrix, wide

FORMATS = ("int4", "int8")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
TOLERANCE = {"atol": 2e-2, "rtol": 2e-2} if DEVICE.type == "cuda" else {"atol": 1e-4, "rtol": 1e-4}


def quant(weight: Coded) -> QuantTensor:
    assert isinstance(weight, QuantTensor)
    return weight


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours.float(), expected.float(), **TOLERANCE)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("rows", "columns", "cut"),
    [
        (40, 128, Cut(16, 4, 64)),
        (5, 192, Cut(4, 1, 2)),  # columns and groups that no cut divides
        (1, 64, Cut(1, 1, 1)),
    ],
)
def test_products(name: str, rows: int, columns: int, cut: Cut) -> None:
    weight, x = quant(matrix(rows, columns, name)), draw(2, columns).to(DTYPE)
    expected = x.float() @ dequantise(weight).T
    ours = vector_product(x, weight, cut=cut)
    assert ours.dtype == DTYPE
    close(ours, expected)
    assert vector_product(x, weight, dtype=torch.float32).dtype == torch.float32
    into = draw(2, rows, seed=7)
    before = into.clone()
    assert vector_product(x, weight, into=into) is into
    close(into, before + expected)


@pytest.mark.parametrize("name", FORMATS)
def test_a_few_tokens_are_given_to_it_and_many_are_not(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, calls = matrix(16, 64, name), []

    def counted(*args: object, **options: object) -> Tensor:
        calls.append(len(args[0]))  # type: ignore[arg-type]
        return vector_product(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("dsv2.kernels.triton.linear.vector_product", counted)
    for tokens in (1, 2, 3):
        x = draw(tokens, 64).to(DTYPE)
        expected = x.float() @ dequantise(weight).T
        close(product(x, weight), expected)
        close(wide_product(x, weight), expected)
        into = torch.zeros(tokens, 16, device=DEVICE)
        add_product(into, x, weight)
        close(into, expected)
        close(product(x, weight, deterministic=True), expected)
    assert calls == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("name", ["int4", pytest.param("int8", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "shared_experts",
    [*(pytest.param(count, marks=pytest.mark.slow) for count in (0, 1)), 2],
)
def test_experts(name: str, shared_experts: int) -> None:
    experts = experts_of(6, 64, 128, name)
    shared = None
    if shared_experts:
        inner = 128 * shared_experts
        shared = Mlp(
            matrix(inner, 64, name, 91), matrix(inner, 64, name, 92), matrix(64, inner, name, 93)
        )
        assert takes_shared(experts, shared)
    x = draw(2, 64).to(DTYPE)
    ids = torch.tensor([[5, 0, 3], [1, 2, 5]], dtype=torch.int32, device=DEVICE)
    gates = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.5]], device=DEVICE)
    into = draw(2, 64, seed=5)
    expected = into + reference.experts(x.float(), ids, gates, wide(experts))
    if shared is not None:
        ones = torch.ones(2, 1, device=DEVICE)
        alone = ExpertWeights(*(part.unsqueeze(0) for part in vars(wide(shared)).values()))
        expected += reference.experts(x.float(), torch.zeros_like(ids[:, :1]), ones, alone)
    add_experts(into, x, ids, gates, experts, shared, Cut(32, 1, 1), Cut(16, 4, 32))
    close(into, expected)


def test_what_is_taken_out_may_be_nan() -> None:
    experts = experts_of(2, 64, 64, "int4")
    quant(experts.w_down).row_scales[1] = float("nan")
    ids = torch.tensor([[0, 1]], dtype=torch.int32, device=DEVICE)
    into = torch.zeros(1, 64, device=DEVICE)
    gates = torch.tensor([[1.0, 0.0]], device=DEVICE)
    add_experts(into, draw(1, 64).to(DTYPE), ids, gates, experts, None)
    assert into.isfinite().all()


def test_formats_that_differ_are_not_taken_together() -> None:
    four, eight = experts_of(2, 64, 64, "int4"), experts_of(2, 64, 64, "int8")
    assert (common_scheme(four), common_scheme(eight)) == FORMATS
    assert not takes_shared(four, eight)
    assert common_scheme(Mlp(four.w_gate, eight.w_up, four.w_down)) is None
    blocks = experts_of(2, 128, 128, "fp8")
    assert common_scheme(blocks) is None
    ids = torch.zeros(1, 1, dtype=torch.int32, device=DEVICE)
    row = torch.zeros(1, 128, device=DEVICE)
    with pytest.raises(TypeError, match="4 or 8 bits"):
        add_experts(row, row, ids, ids.float(), blocks, None)
    assert not takes_shared(experts_of(2, 64, 128, "int4"), four)


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(2048, 1408), (576, 2048), (5120, 16384)])
def test_published_widths(name: str, rows: int, columns: int) -> None:
    weight, x = quant(matrix(rows, columns, name)), draw(1, columns).bfloat16()
    ours = vector_product(x, weight, dtype=torch.float32)
    expected = x.float() @ dequantise(weight).T
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)
