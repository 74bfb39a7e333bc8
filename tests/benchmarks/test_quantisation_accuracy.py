"""4 and 8 bits in our formats against llama.cpp's, by what they cost pocket."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import quantisation_accuracy
from benchmarks.peers.machine import Machine
from benchmarks.quantisation_accuracy import (
    PEERS,
    STORED,
    Score,
    q4_0,
    q8_0,
    rounded_models,
    score,
)
from dsv2.kernels.cpu import CpuExecutor
from dsv2.recipes.pocket import score as recipe

TEXT = [Path(str(recipe.__file__)).read_text("utf-8")]
"""Python that pocket has never seen: no module of this package is in its corpus."""


@pytest.mark.slow
def test_our_formats_cost_no_more_than_the_peers() -> None:
    """In bits and in divergence from the stored model, within two standard errors.

    At 8 bits either costs so little that what is seen is which experts happen to be chosen anew.
    """
    kept = score(rounded_models(CpuExecutor(1)), TEXT, 256)
    for own, peer in PEERS.items():
        for more, error in (kept[own].above(kept[peer]), kept[own].farther(kept[peer])):
            assert more <= 2 * error, (own, peer, more, error)
    assert kept["int4"].farther(kept["Q4_0"])[0] < 0
    assert abs(kept["int8"].above(kept[STORED])[0]) < 0.002
    assert kept["int4"].above(kept[STORED])[0] < 0.03


def test_the_peers_rounding_by_hand() -> None:
    """Blocks of 32: the extreme is met exactly at -8 and at 127, and scales are fp16."""
    weight = torch.zeros(1, 64)
    weight[0, :4] = torch.tensor([4.0, -2.01, 1.24, 1.26])
    scale = 4.0 / -8
    assert q4_0(weight)[0, :4].tolist() == [4.0, -2.0, -2 * scale, -3 * scale]
    assert q4_0(-weight)[0, :2].tolist() == [-4.0, 2.0]
    kept = q8_0(weight)
    step = float(torch.tensor(4.0 / 127).half())
    assert kept[0, :3].tolist() == pytest.approx([127 * step, -64 * step, 39 * step])
    assert not kept[0, 32:].any()
    assert not q4_0(weight)[0, 4:].any()


def test_bits_and_their_error_by_hand() -> None:
    one, other = Score((2.0, 4.0), 8, (0.5, 0.5)), Score((1.0, 1.0), 8, (0.0, 0.0))
    bit = 1 / float(torch.tensor(2.0).log())
    assert one.bits_per_byte == pytest.approx(6 * bit / 8)
    more, error = one.above(other)
    assert more == pytest.approx(4 * bit / 8)
    assert error == pytest.approx(2**0.5 * 2**0.5 * bit / 8)
    assert one.farther(other) == pytest.approx((bit / 8, 0))


def test_divergence_by_hand() -> None:
    """From even odds of two tokens to three to one: the sum over tokens, from the stored model."""
    even, odd = torch.zeros(1, 8192), torch.zeros(1, 8192)
    odd[0, 0] = math.log(3)
    even[0, 2:], odd[0, 2:] = -100.0, -100.0
    models = {STORED: lambda t: even.expand(len(t), -1), "other": lambda t: odd.expand(len(t), -1)}
    found = score(models, ["x"], 8)
    tokens = len(found[STORED].nats)
    assert found[STORED].divergence == pytest.approx((0.0,) * tokens, abs=1e-6)
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert sum(found["other"].divergence) == pytest.approx(expected, rel=1e-3)


def test_the_script_writes_both_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a formula for a model: the real ones are the slow test's."""

    def constant(*_: object) -> quantisation_accuracy.Compute:
        return lambda tokens: torch.zeros(len(tokens), 8192)

    def two(_: str) -> dict[str, Tensor]:
        return {f"layers.{n}.attn.wq": torch.randn(4, 64) for n in (0, 1)}

    monkeypatch.setattr(quantisation_accuracy, "rounded_model", constant)
    monkeypatch.setattr(quantisation_accuracy, "packed_model", constant)
    monkeypatch.setattr(quantisation_accuracy, "quantised_tensors", two)
    here = Machine("2026-01-01", "abc", "CPU", "avx2", 2, 1, 40.0)
    monkeypatch.setattr(quantisation_accuracy, "look", lambda _: here)
    monkeypatch.setattr(quantisation_accuracy, "held_out_code", lambda _: ["x = 1\n", "y = 2\n"])
    quantisation_accuracy.main(["--csv", str(tmp_path / "a" / "b.csv"), "--threads", "1"])
    shown = capsys.readouterr().out
    assert "attn.wq" in shown
    assert "int4, as run" in shown
    with (tmp_path / "a" / "b.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    bits = [line for line in lines if line["figure"] == "bits per byte"]
    assert [line["weights"] for line in bits] == [
        STORED, "int8", "Q8_0", "int4", "Q4_0", "int8, as run", "int4, as run",
    ]  # fmt: skip
    assert len({line["value"] for line in bits}) == 1
    errors = [line for line in lines if line["figure"] == "relative RMSE"]
    assert {line["of"] for line in errors} == {"normal", *two("")}
    assert len(errors) == 3 * 4
