from __future__ import annotations

import numpy as np
import pytest
import torch

from dsv2.engine.transfer import Arrival, buffer_bytes, host_buffer, to_device, views

CPU = torch.device("cpu")


def test_one_buffer_holds_tensors_of_any_dtype_where_kernels_like_them() -> None:
    sections = [
        (torch.int32, (3,)), (torch.float64, (2,)), (torch.int32, (0,)), (torch.int64, (2, 3)),
    ]  # fmt: skip
    buffer = host_buffer(buffer_bytes(sections), CPU)
    assert buffer.numel() == 16 + 16 + 0 + 48
    parts = views(buffer, sections)
    for number, (part, (dtype, shape)) in enumerate(zip(parts, sections, strict=True)):
        assert (part.dtype, tuple(part.shape)) == (dtype, shape)
        assert part.storage_offset() * dtype.itemsize % 16 == 0
        part.fill_(number + 1)
    copied = views(buffer.clone(), sections)
    assert all(torch.equal(one, other) for one, other in zip(parts, copied, strict=True))
    assert parts[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_goes_and_comes_is_the_same(name: str) -> None:
    device = torch.device(name)
    sent = to_device([[1, 2], [3, 4]], torch.int64, device)
    assert sent.device.type == name
    assert Arrival(sent).take().tolist() == [[1, 2], [3, 4]]
    assert to_device(range(3), torch.int32, device).tolist() == [0, 1, 2]
    assert to_device(np.array([0.5, 2.0]), torch.float32, device).tolist() == [0.5, 2.0]


def test_seeds_keep_all_their_bits() -> None:
    assert to_device([2**63 - 1], torch.int64, CPU).item() == 2**63 - 1
