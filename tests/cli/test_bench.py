from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from dsv2.checkpoint.releases import config_of
from dsv2.cli.bench import _gpu_kernels
from dsv2.cli.info import find_config
from dsv2.cli.main import app
from dsv2.engine.bench import step_bytes, step_operations
from dsv2.engine.cache import token_bytes


def bench(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["bench", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_latency_and_throughput_of_the_shipped_model() -> None:
    found = bench("latency", "--weights", "int4", "--prompts", "40", "--depths", "30,70")
    assert [one["work"] for one in found["figures"]] == [
        "prefill 40", "decode x1 at 30", "decode x1 at 70",
    ]  # fmt: skip
    assert "int4" in found["what"]
    many = bench("throughput", "--sequences", "1,3", "--depth", "10", "--threads", "1")
    for run in (found, many):
        roof = run["roof"]
        for one in run["figures"]:
            by_bytes, by_sums = one["bytes"] / roof["read"], one["operations"] / roof["multiply"]
            assert one["limit"] == pytest.approx(max(by_bytes, by_sums))
            assert one["share"] == pytest.approx(one["limit"] / one["seconds"])
            assert 0 < one["share"] < 3
            assert one["tokens_per_second"] > 0
    first, second = found["figures"][1:]
    assert second["bytes"] - first["bytes"] == 40 * token_bytes(find_config("pocket"), "bfloat16")
    assert 1e9 < found["roof"]["read"] < 1e12


@pytest.mark.slow
def test_kernels_beside_the_roof() -> None:
    found = bench("kernels", "--rows", "640", "--columns", "128", "--tokens", "1,9",
                  "--weights", "int8")  # fmt: skip
    assert len(found["figures"]) == 2
    assert all(one["tokens_per_second"] > 0 for one in found["figures"])


def test_the_memory_of_a_release() -> None:
    plan = bench("memory", "v2-lite")
    assert plan["weights"]["bfloat16"] == pytest.approx(31.4e9, rel=0.01)
    assert plan["weights"]["int4"] == pytest.approx(15.706e9 * 4.15 / 8, rel=0.01)
    assert plan["cache_per_token"] == {
        "float32": 62208, "bfloat16": 31104, "int8": 27 * 581, "int6": 27 * 437,
        "fp8": 27 * 656,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["int4", "bfloat16"])
def test_a_shape_without_a_checkpoint(weights: str, tmp_path: Any) -> None:
    smaller = {"num_hidden_layers": 2, "vocab_size": 256, "n_routed_experts": 8,
               "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
    config = config_of("v2-lite").model_copy(update=smaller)
    (tmp_path / "config.json").write_text(json.dumps(config.to_published()))
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
    # All but the head, a tenth of it, is a byte and a scale.
    assert one / 2 < step_bytes(lite, "fp8", 1, 0, "bfloat16") < one * 0.6


def test_numbers_that_are_none_are_refused() -> None:
    result = CliRunner().invoke(app, ["bench", "latency", "--prompts", "a,b"])
    assert isinstance(result.exception, ValueError)
    assert "not a list of numbers" in str(result.exception)


def test_a_gpu_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    for command in ("latency", "throughput", "kernels", "memory"):
        result = CliRunner().invoke(app, ["bench", command, "--device", "cuda"])
        assert isinstance(result.exception, ValueError)
        assert "torch sees no GPU" in str(result.exception)


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["auto", "bfloat16", "int8", "int4"])
def test_a_gpu_is_measured_in_every_format(weights: str) -> None:
    words = ["--device", "cuda", "--random", "--weights", weights, "--json"]
    for command, more in (("latency", ["--prompts", "16", "--depths", "64"]), ("throughput", [])):
        result = CliRunner().invoke(app, ["bench", command, "v2-lite", *words, *more])
        assert result.exception is None, result.output
        found = json.loads(result.output)
        assert all(figure["tokens_per_second"] > 0 for figure in found["figures"])
        assert found["figures"]


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True])
def test_gpu_kernels_are_shown_with_the_backend_to_take(
    as_json: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("COLUMNS", "200")
    _gpu_kernels(torch.device("cpu"), as_json, "decode,training", tiny=True)
    shown = capsys.readouterr().out
    if as_json:
        found = json.loads(shown)
        assert found["faster"] == {"4 x 2 x 100": "triton"}
        kernels = {one["kernel"] for one in found["results"]}
        assert kernels == {"mla_decode", "rms_norm", "linear_cross_entropy", "adamw"}
    else:
        assert "adamw" in shown and "Captured steps time both kernels" in shown


def test_an_unknown_group_of_kernels_is_named() -> None:
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="group 'matmul', allowed are decode, cached"):
        _gpu_kernels(torch.device("cpu"), True, "decode,matmul", tiny=True)


def test_operations_of_a_step_are_those_of_the_published_arithmetic() -> None:
    lite = config_of("v2-lite")
    one = step_operations(lite, 1, 1, 0)
    assert one == pytest.approx(2 * 2.45e9, rel=0.01)
    # Behind cached tokens a query meets 576 numbers of each and mixes 512, in 16 heads and 27
    # layers; an expanded one meets 192 and mixes 128.
    deeper = step_operations(lite, 1, 1, 1000) - one
    assert deeper == pytest.approx(1000 * 2 * 27 * 16 * (576 + 512))
    many = step_operations(lite, 1, 100, 1000) - step_operations(lite, 1, 100, 0)
    assert many == pytest.approx(100 * 1000 * 2 * 27 * 16 * (192 + 128))
    # The head is computed once for each sequence.
    head = 2 * lite.vocab_size * lite.hidden_size
    two = step_operations(lite, 2, 50, 0)
    assert two - step_operations(lite, 1, 50, 0) * 2 == pytest.approx(0)
    assert step_operations(lite, 1, 2, 0) < 2 * one - head * 0.9
