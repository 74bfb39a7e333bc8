"""Logits behind a long prompt, by the script that measures them for 131,072 tokens."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import long_context
from dsv2.model.config import ModelConfig
from tests.tiny import YARN, tiny_config


def run(monkeypatch: pytest.MonkeyPatch, config: ModelConfig, *words: str) -> None:
    monkeypatch.setattr(long_context, "config_of", lambda name: config)
    common = ["--layers", "2", "--weights", "float32", "--chunk", "512", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["long_context.py", *common, "--check", "cpu", *words])
    long_context.main()


@pytest.mark.slow
def test_logits_of_a_long_prompt_are_the_references(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(
        max_position_embeddings=8192, rope_scaling=YARN | {"factor": 256.0}, hidden_size=64
    )
    run(monkeypatch, config, "--tokens", "6000")
    run(monkeypatch, config, "--tokens", "6000", "--sample", "3")
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[:1] == "{"]
    checks = [one for one in said if "largest_difference" in one]
    assert [one["position"] for one in checks] == [5999, 511, 3583, 5999]
    assert all(one["largest_difference"] < 2e-3 * one["logit_spread"] for one in checks)
    assert all(one["logit_spread"] > 0.1 for one in checks)
    reports = [one for one in said if "tokens_per_second" in one]
    assert [one["chunks_measured"] for one in reports] == [12, 3]
