"""Experts on the host: the same results as on one executor, and who computes what."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dsv2.kernels.cpu import CpuExecutor
from dsv2.kernels.executor import MoeLayer
from dsv2.kernels.formats import relative_rmse
from dsv2.kernels.offload import OffloadExecutor
from dsv2.kernels.reference_executor import ReferenceExecutor
from tests.kernels.layers import Draw


class Watched(ReferenceExecutor):
    """Remembers which layers it is given."""

    def __init__(self) -> None:
        self.packed: list[MoeLayer] = []

    def pack_moe(self, layer: MoeLayer) -> MoeLayer:
        self.packed.append(layer)
        return super().pack_moe(layer)


def tokens(layer: MoeLayer) -> Tensor:
    return torch.randn(5, layer.norm.shape[0], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("shared", [128, 0])
def test_a_split_layer_equals_a_whole_one(weights: str, shared: int) -> None:
    layer = Draw(weights).moe_layer(shared=shared)
    x = tokens(layer)
    # Both sides readable: the same sums in another order. The CPU's kernels: those it has alone.
    for host, bound in ((ReferenceExecutor(), 1e-6), (CpuExecutor(1), 2e-2)):
        split = OffloadExecutor(ReferenceExecutor(), host, 1)
        one, expected, ours = ReferenceExecutor(), x.clone(), x.clone()
        one.moe(one.pack_moe(layer), expected)
        split.moe(split.pack_moe(layer), ours)
        assert relative_rmse(expected - x, ours - x) < bound
        assert "1 layers' experts on" in split.description


def test_the_first_layers_go_to_the_host() -> None:
    layer = Draw("float32").moe_layer()
    device, host = Watched(), Watched()
    split = OffloadExecutor(device, host, 2)
    for _ in range(3):
        handle = split.pack_moe(layer)
    assert [len(host.packed), len(device.packed)] == [2, 1]
    assert all(one.shared is None for one in host.packed)
    x, expected = torch.ones(2, layer.norm.shape[0]), torch.ones(2, layer.norm.shape[0])
    split.moe(handle, x)
    device.moe(device.pack_moe(layer), expected)
    assert torch.equal(x, expected)
    with pytest.raises(ValueError, match="host_layers is -1"):
        OffloadExecutor(device, host, -1)


@pytest.mark.gpu
def test_copies_to_and_from_a_gpu() -> None:
    layer = Draw("float32").moe_layer()
    x = tokens(layer)
    one, expected = ReferenceExecutor(), x.clone()
    one.moe(one.pack_moe(layer), expected)

    class OnGpu(ReferenceExecutor):
        def mlp(self, handle: object, x: torch.Tensor) -> None:
            wide = x.cpu()
            super().mlp(handle, wide)  # type: ignore[arg-type]
            x.copy_(wide)

    split = OffloadExecutor(OnGpu(), CpuExecutor(1), 1)
    ours = x.cuda()
    split.moe(split.pack_moe(layer), ours)
    torch.testing.assert_close(ours.cpu(), expected, atol=1e-5, rtol=1e-5)
