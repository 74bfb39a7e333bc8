"""The profile of a training step runs through, and knows its kernels."""

from __future__ import annotations

import pytest

from benchmarks.train_profile import kind_of, main


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("_grouped_matrix_grad", "experts"), ("_experts_swiglu_grad", "experts"),
        ("_backward_keys", "attention"), ("_part_heads", "attention"), ("_loss_rows", "loss"),
        ("_adamw", "optimiser"), ("_norm_backward", "norms"), ("_swiglu_forward", "SwiGLU"),
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT", "products"),
        ("void at::native::vectorized_elementwise_kernel<8>", "elementwise and rest"),
    ],
)  # fmt: skip
def test_kernels_count_under_their_kinds(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


@pytest.mark.slow
def test_a_step_is_profiled(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tiny", "--steps", "1"]) == 0
    said = capsys.readouterr().out
    for words in ("forward", "backward", "update", "of the limit", "no kernel ran on a GPU"):
        assert words in said
