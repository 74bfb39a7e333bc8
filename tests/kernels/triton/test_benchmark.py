"""The benchmark of the kernels runs through and finds them right, in the interpreter."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

pytest.importorskip("triton")


@pytest.mark.slow
def test_every_kernel_is_right_and_written_down(tmp_path: Path) -> None:
    from benchmarks.gpu_kernels import main

    assert main(["--tiny", "--csv", str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"mla_decode", "mla_prefill", "mla_prefill_grad", "experts", "experts_grad"} <= {
        row["kernel"] for row in rows
    }
    assert not any(row["failure"] for row in rows)
