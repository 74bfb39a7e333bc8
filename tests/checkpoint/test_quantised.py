"""Checkpoints in 4 and 8 bits: written, read, converted on the fly, and refused when damaged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from dsv2 import LLM, SamplingParams
from dsv2.checkpoint import ModelLoadError, load_model, load_packed
from dsv2.checkpoint.quantised import (
    QuantisedFiles,
    quantise_checkpoint,
    stored_bytes,
    stored_scheme,
    stored_shapes,
)
from dsv2.checkpoint.synthetic import synthetic_checkpoint, synthetic_weights
from dsv2.checkpoint.weights import INDEX, PublishedFiles, parameter_shapes
from dsv2.cli.main import app
from dsv2.kernels.cpu import CpuExecutor
from dsv2.kernels.formats import SCHEMES, dequantise
from dsv2.kernels.interleaved import InterleavedTensor, by_rows
from dsv2.model.config import ConfigError, ModelConfig
from dsv2.model.transformer import Transformer
from dsv2.ragged import RaggedBatch
from tests.models import save_tiny
from tests.tiny import tiny_config

WIDE = {"hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64,
        "kv_lora_rank": 64, "v_head_dim": 16}  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("published"), **WIDE)


@pytest.fixture(scope="module")
def quantised(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("quantised") / "int4"
    quantise_checkpoint(published, target, "int4", CpuExecutor(1))
    return target


def test_every_parameter_is_there_and_near(published: Path, quantised: Path) -> None:
    config = ModelConfig.from_file(quantised / "config.json")
    assert config == ModelConfig.from_file(published / "config.json")
    assert stored_scheme(quantised) == "int4"
    assert stored_scheme(published) is None
    before, after = PublishedFiles(published, config), QuantisedFiles(quantised, config, "int4")
    plain = dict(load_model(published, dtype="float32").named_parameters())
    kinds = set()
    for name, shape in parameter_shapes(config).items():
        wide, stored = before.fetch(name), after.fetch(name)
        assert wide.shape == stored.shape == shape == plain[name].shape
        assert torch.equal(wide, plain[name])
        kinds.add(type(stored))
        if isinstance(stored, InterleavedTensor):
            error = (dequantise(by_rows(stored)) - wide).norm() / wide.norm()
            assert 0.01 < float(error) < 0.1, name
        else:
            assert isinstance(stored, Tensor)
            assert torch.equal(stored, wide), name
    assert kinds == {Tensor, InterleavedTensor}
    stored_files = sum(path.stat().st_size for path in quantised.glob("*.safetensors"))
    assert stored_files >= stored_bytes(config, "int4") * 0.9


def test_it_answers_as_the_same_weights_converted_on_the_fly(
    published: Path, quantised: Path
) -> None:
    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    stored = LLM(quantised, device="cpu")
    converted = LLM(published, device="cpu", dtype="int4")
    prompts = ["def f(x):", "import"]
    answers = [[one.token_ids for one in llm.generate(prompts, params)]
               for llm in (stored, converted)]  # fmt: skip
    assert answers[0] == answers[1]
    assert "int4" in stored.description
    assert "int4" in converted.description


def test_the_report_adds_up_and_the_command_prints_it(published: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["quantize", str(published), str(tmp_path / "q"), "--scheme", "int8", "--json"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert 8.25 < report["bits_per_weight"] < 9
    assert {kind["kind"] for kind in report["kinds"]} >= {"embed", "attn.wo", "ffn.experts.w_up"}
    assert all(0.001 < kind["relative_rmse"] < 0.02 for kind in report["kinds"])
    assert (tmp_path / "q" / "tokenizer.json").exists()
    shown = CliRunner().invoke(app, ["quantize", str(published), str(tmp_path / "q4")])
    assert "relative RMSE" in shown.stdout


CONVERT = """
import resource, sys
from pathlib import Path
from dsv2.checkpoint.quantised import quantise_checkpoint
from dsv2.kernels.cpu import CpuExecutor
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
executor, before, done = CpuExecutor(1), peak(), []
quantise_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), "int4", executor,
                    lambda written, of: done.append((written, of)))
print(peak() - before, len(done), *done[-1])
"""


@pytest.mark.slow
def test_a_checkpoint_of_many_layers_takes_the_memory_of_few(tmp_path: Path) -> None:
    """What converts 31 GB in 4: here 450 MB, of which a layer is a twentieth."""
    fields = {"hidden_size": 512, "num_hidden_layers": 20, "n_routed_experts": 16,
              "moe_intermediate_size": 256, "kv_lora_rank": 64, "v_head_dim": 16}  # fmt: skip
    source = save_tiny(tmp_path, **fields)
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert size > 400e6
    words = [sys.executable, "-c", CONVERT, str(source), str(tmp_path / "int4")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    taken, calls, written, of = map(int, done.stdout.split())
    assert taken < size / 3
    assert written == of == calls == 21  # a file of each layer and one of the rest


def test_what_cannot_be_converted_is_refused(
    published: Path, quantised: Path, tmp_path: Path
) -> None:
    executor = CpuExecutor(1)
    with pytest.raises(ModelLoadError, match="quantised already"):
        quantise_checkpoint(quantised, tmp_path / "x", "int8", executor)
    with pytest.raises(ModelLoadError, match="exists already"):
        quantise_checkpoint(published, tmp_path, "int8", executor)
    with pytest.raises(ValueError, match="scheme 'int3' is unknown"):
        quantise_checkpoint(published, tmp_path / "x", "int3", executor)
    with pytest.raises(ModelLoadError, match="weights are int4, 'int8' was asked for"):
        load_packed(quantised, executor, weights="int8")
    with pytest.raises(ModelLoadError, match="weights 'int2', allowed are auto, float32"):
        load_packed(published, executor, weights="int2")
    with pytest.raises(ValueError, match="need backend 'cpu'"):
        LLM(quantised, device="cpu", backend="torch")
    assert not list(tmp_path.iterdir())


def test_damage_is_found(quantised: Path, tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        return Path(shutil.copytree(quantised, tmp_path / name))

    folder = damaged("version")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["version"] = 9
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="version 9, allowed are int8, int4 of version 3"):
        load_packed(folder, CpuExecutor(1))
    config["quantization_config"] = {"quant_method": "awq"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="quant_method is 'awq'"):
        load_packed(folder, CpuExecutor(1))

    folder = damaged("missing")
    index = json.loads((folder / INDEX).read_text())
    shard = sorted(set(index["weight_map"].values()))[1]
    (folder / shard).unlink()
    with pytest.raises(ModelLoadError, match="is missing"):
        load_packed(folder, CpuExecutor(1))

    folder = damaged("cut")
    raw = (folder / shard).read_bytes()
    (folder / shard).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ModelLoadError, match="is cut off"):
        load_packed(folder, CpuExecutor(1))


def test_a_conversion_is_on_the_disk_before_it_appears(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename = tmp_path / "x", Path.rename
    synced: set[int] = set()
    unsynced: list[str] = []

    def appear(fresh: Path, place: Path) -> Path:
        written = (*fresh.iterdir(), fresh)
        unsynced.extend(path.name for path in written if path.stat().st_ino not in synced)
        synced.clear()
        return rename(fresh, place)

    monkeypatch.setattr(os, "fsync", lambda number: synced.add(os.fstat(number).st_ino))
    monkeypatch.setattr(Path, "rename", appear)
    quantise_checkpoint(published, target, "int4", CpuExecutor(1), extra={"origin.json": "{}"})
    assert {"origin.json", "config.json", "tokenizer.json", INDEX} <= set(os.listdir(target))
    assert unsynced == []
    assert synced == {tmp_path.stat().st_ino}


def test_an_interrupted_conversion_leaves_nothing(published: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantise_checkpoint(published, tmp_path / "x", "int4", CpuExecutor(1), stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("weights", ["bfloat16", "int8", "int4"])
def test_random_weights_send_tokens_to_all_experts(weights: str) -> None:
    """What a mean of the levels would add up to is that all take the same few."""
    config = tiny_config(
        hidden_size=512, intermediate_size=512, num_hidden_layers=6, n_routed_experts=32,
        moe_intermediate_size=128, vocab_size=2048,
    )  # fmt: skip
    fetch = synthetic_weights(config, weights, 0)
    model = Transformer(config, backend="torch")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = fetch(name)
            parameter.copy_(drawn if isinstance(drawn, Tensor) else dequantise(by_rows(drawn)))
        ids = torch.randint(2048, (512,), generator=torch.Generator().manual_seed(0))
        counts = model(RaggedBatch.packed(ids, (16,) * 32))[1].expert_counts
    share = counts / counts.sum(1, keepdim=True)
    # As many experts as would share the tokens evenly: 22 of 32 and more, where the mean of the
    # levels leaves 11 to 16.
    assert (1 / share.square().sum(1)).min() > 18


def test_random_weights_as_a_checkpoint(tmp_path: Path) -> None:
    """What is read back is what the same seed draws."""
    config = tiny_config(hidden_size=64, moe_intermediate_size=64)
    target = tmp_path / "random"
    synthetic_checkpoint(target, config, "int4", {"note.txt": b"beside"}, seed=3)
    assert (target / "note.txt").read_bytes() == b"beside"
    files = QuantisedFiles(target, config, str(stored_scheme(target)))
    drawn = synthetic_weights(config, "int4", 3)
    # What belongs to no layer comes first, here as there.
    names = sorted(stored_shapes(config, SCHEMES["int4"]), key=lambda name: "layers." in name)
    kinds = set()
    for name in names:
        one, other = files.fetch(name), drawn(name)
        kinds.add(type(one))
        assert torch.equal(dequantise(by_rows(one)), dequantise(by_rows(other)))
    assert kinds == {Tensor, InterleavedTensor}
    with pytest.raises(FileExistsError):
        synthetic_checkpoint(target, config, "int4", {})
    with pytest.raises(ValueError, match="scheme 'int3' is unknown"):
        synthetic_checkpoint(tmp_path / "none", config, "int3", {})
    assert not (tmp_path / "none").exists()
