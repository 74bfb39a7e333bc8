"""What fits a card: the parts that need no GPU."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_fit
from benchmarks.gpu_fit import COLUMNS, GIB, Case, card_of, run


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


@pytest.mark.usefixtures("free")
def test_a_card_that_is_too_small_is_a_row_that_says_so() -> None:
    with pytest.raises(MemoryError, match=r"11\.2 GiB are wanted, 10\.0 are free"), card_of(11.2):
        pass
    [row] = run(Case("v2-lite", "int4", 11.2, "5", "5"))
    assert row["failure"] == "11.2 GiB are wanted, 10.0 are free"
    assert row["card"] == "a card"
    assert set(row) <= set(COLUMNS)


@pytest.mark.slow
@pytest.mark.usefixtures("free")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_the_command_says_is_the_rows_failure() -> None:
    [row] = run(Case("v2-lite", "int4", None, "5", "5"))
    assert "device" in str(row["failure"])
    assert (row["card_gib"], row["taken_gib"]) == (10.0, 0.0)


def test_every_row_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_fit, "run", lambda case: [{"model": case.model, "work": "decode"}] * 2)
    gpu_fit.main(["--csv", str(tmp_path / "fit.csv"), "--only", "v2"])
    with (tmp_path / "fit.csv").open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["v2", "v2"]
