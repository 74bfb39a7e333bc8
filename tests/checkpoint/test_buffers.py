"""Memory that comes back when a tensor is gone, and not before."""

from __future__ import annotations

import torch

from dsv2.checkpoint.buffers import Buffers

LARGE = 3 << 20


def test_memory_is_used_again_once_every_view_of_a_tensor_is_gone() -> None:
    buffers = Buffers()
    first = buffers.take((3, LARGE), torch.int8)
    place = first.data_ptr()
    part = first[1].view(torch.float32)
    part.fill_(7.0)
    del first
    second = buffers.take((3, LARGE), torch.int8)
    assert second.data_ptr() != place
    second.fill_(1)
    assert (part == 7.0).all()
    del part
    # Of another shape, as long as it takes as many pages.
    third = buffers.take((3 * LARGE // 2 - 5,), torch.bfloat16)
    assert third.data_ptr() == place and third.shape == (3 * LARGE // 2 - 5,)


def test_tensors_outlive_their_buffers() -> None:
    tensor = Buffers().take((LARGE, 2), torch.float32)
    tensor.fill_(3.0)
    assert tensor.sum() == 3.0 * tensor.numel()


def test_small_and_empty_tensors() -> None:
    buffers = Buffers()
    for shape in ((), (0,), (4, 0), (5, 7)):
        tensor = buffers.take(shape, torch.int32)
        assert tensor.shape == shape and tensor.dtype == torch.int32


def test_idle_memory_goes_when_another_size_comes() -> None:
    buffers = Buffers()
    held = buffers.take((2 * LARGE,), torch.int8)
    place = held.data_ptr()
    idle = [buffers.take((3 * LARGE,), torch.int8) for _ in range(2)]
    del idle
    assert sum(map(len, buffers._free.values())) == 2
    other = buffers.take((5 * LARGE,), torch.int8)
    assert sum(map(len, buffers._free.values())) == 0
    # What was in use then comes back all the same.
    del held, other
    assert buffers.take((2 * LARGE,), torch.int8).data_ptr() == place
