"""The 4- and 8-bit formats against the block formats that people use today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.quantisation_accuracy import q4_0, q8_0
from dsv2.checkpoint import load_model
from dsv2.kernels import formats
from dsv2.kernels.cpu import CpuExecutor
from dsv2.kernels.formats import CODEBOOK, SCHEMES, dequantise, quantise, relative_rmse, stack

PEERS = {"int4": q4_0, "int8": q8_0}


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(256, 1024, generator=generator)
    found = {"normal": normal, "heavy tails": normal * normal.abs()}
    for name, parameter in load_model("pocket", dtype="float32").named_parameters():
        if parameter.ndim >= 2 and not name.endswith("router"):
            found[f"pocket's {name}"] = parameter.detach().flatten(0, -2)
    return found


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_the_error_of_every_tensor_is_below_that_of_todays_formats(scheme: str) -> None:
    """Random and trained weights alike, with fewer bits."""
    executor = CpuExecutor()
    for name, weight in tensors().items():
        ours = relative_rmse(weight, dequantise(executor.quantise(weight, scheme)[0]))
        theirs = relative_rmse(weight, PEERS[scheme](weight))
        assert ours <= theirs, (name, ours, theirs)


def test_bits_per_weight_stay_within_the_promise() -> None:
    for scheme, most in (("int4", 4.3), ("int8", 8.3)):
        for columns in (1408, 2048, 10944):
            weight = quantise(torch.ones(2, SCHEMES[scheme].group * 4), scheme)
            assert 8 * weight.nbytes / 2 / weight.shape[1] == pytest.approx(
                SCHEMES[scheme].bits_per_weight(weight.shape[1])
            )
            assert SCHEMES[scheme].bits_per_weight(columns) <= most


def test_the_levels_are_the_kernels_levels() -> None:
    header = Path(str(formats.__file__)).parent / "cpu" / "csrc" / "codebook.h"
    found = re.search(r"kCodebook\[16\] = \{([^}]*)\}", header.read_text())
    assert found is not None
    assert tuple(int(level) for level in found[1].split(",")) == CODEBOOK
    raised = re.search(r"kCodebookRaised\[16\] = \{([^}]*)\}", header.read_text())
    more = re.search(r"kRaise = (\d+);", header.read_text())
    assert raised is not None
    assert more is not None
    levels = [int(level) for level in raised[1].split(",")]
    assert tuple(level - int(more[1]) for level in levels) == CODEBOOK
    assert min(levels) >= 0
    assert 4 * 127 * max(levels) < 2**15  # AVX2 adds four products in 16 bits


def test_a_weight_comes_back_from_its_parts() -> None:
    """By hand: row scale times scale times level."""
    weight = torch.linspace(-3, 5, 128).reshape(1, 128)
    for scheme, levels in (("int4", list(CODEBOOK)), ("int8", list(range(-128, 128)))):
        done = quantise(weight, scheme)
        group = SCHEMES[scheme].group
        for column in (0, 1, 37, 64, 127):
            if scheme == "int4":
                code = int(done.codes[0, column // 2]) >> (4 * (column % 2)) & 15
            else:
                code = int(done.codes.view(torch.int8)[0, column]) + 128
            expected = float(done.row_scales[0]) * int(done.scales[0, column // group])
            value = float(dequantise(done)[0, column])
            assert value == pytest.approx(expected * levels[code], rel=1e-6)
        both = stack([done, done])
        assert torch.equal(dequantise(both)[1], dequantise(done))
    with pytest.raises(ValueError, match="int4 needs a multiple of 64"):
        quantise(torch.zeros(1, 32), "int4")
    with pytest.raises(ValueError, match="scheme 'int3' is unknown, allowed are int8, int4"):
        quantise(weight, "int3")
