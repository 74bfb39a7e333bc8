from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from dsv2.checkpoint.releases import config_of
from dsv2.cli.main import app
from dsv2.engine.bench import step_bytes


def bench(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["bench", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_latency_and_throughput_of_the_shipped_model() -> None:
    found = bench("latency", "--weights", "int4", "--prompts", "40", "--depths", "30,70")
    assert [one["work"] for one in found["figures"]] == [
        "prefill 40", "decode x1 at 30", "decode x1 at 70",
    ]  # fmt: skip
    assert "int4" in found["what"]
    many = bench("throughput", "--sequences", "1,3", "--depth", "10", "--threads", "1")
    for one in (*found["figures"], *many["figures"]):
        assert 0 < one["share"] < 3
        assert one["tokens_per_second"] > 0
        assert one["limit"] == pytest.approx(one["share"] * one["seconds"])
    assert 1e9 < found["roof"]["read"] < 1e12


def test_kernels_and_memory() -> None:
    found = bench("kernels", "--rows", "640", "--columns", "128", "--tokens", "1,9",
                  "--weights", "int8")  # fmt: skip
    assert len(found["figures"]) == 2
    plan = bench("memory", "v2-lite")
    assert plan["weights"]["bfloat16"] == pytest.approx(31.4e9, rel=0.01)
    assert plan["weights"]["int4"] == pytest.approx(15.706e9 * 4.15 / 8, rel=0.01)
    assert plan["cache_per_token"] == {
        "float32": 62208, "bfloat16": 31104, "int8": 27 * 581, "int6": 27 * 437,
        "fp8": 27 * 656,
    }  # fmt: skip


def test_a_shape_without_a_checkpoint(tmp_path: Any) -> None:
    smaller = {"num_hidden_layers": 2, "vocab_size": 256, "n_routed_experts": 8,
               "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
    config = config_of("v2-lite").model_copy(update=smaller)
    (tmp_path / "config.json").write_text(json.dumps(config.to_published()))
    for weights in ("int4", "bfloat16"):
        found = bench("latency", str(tmp_path), "--random", "--weights", weights,
                      "--prompts", "5", "--depths", "9")  # fmt: skip
        assert weights in found["what"]


def test_bytes_of_a_step_are_those_of_the_published_arithmetic() -> None:
    lite = config_of("v2-lite")
    one = step_bytes(lite, "bfloat16", 1, 0, "bfloat16")
    # 2.45 B active parameters without the input embedding's 0.21 B.
    assert one == pytest.approx(2 * 2.45e9, rel=0.01)
    assert step_bytes(lite, "bfloat16", 1, 100, "bfloat16") - one == 100 * 31104
    everything = step_bytes(lite, "bfloat16", 1000, 0, "bfloat16")
    assert everything == pytest.approx(2 * (15.706e9 - 0.21e9), rel=0.01)
    assert step_bytes(lite, "int4", 1, 0, "bfloat16") < one * 4.2 / 16


def test_numbers_that_are_none_are_refused() -> None:
    result = CliRunner().invoke(app, ["bench", "latency", "--prompts", "a,b"])
    assert isinstance(result.exception, ValueError)
    assert "not a list of numbers" in str(result.exception)
