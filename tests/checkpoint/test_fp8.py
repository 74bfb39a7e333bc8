"""Checkpoints in published fp8: written, read as they are and converted, and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from dsv2 import LLM, SamplingParams
from dsv2.checkpoint import ModelLoadError, load_packed
from dsv2.checkpoint.fp8 import Fp8Files, fp8_shapes
from dsv2.checkpoint.quantised import quantise_checkpoint, stored_bytes, stored_scheme
from dsv2.checkpoint.safetensors import SafetensorsFile, open_safetensors
from dsv2.checkpoint.weights import PublishedFiles, parameter_shapes
from dsv2.cli.main import app
from dsv2.engine import loading
from dsv2.engine.plan import MemoryPlan
from dsv2.kernels.cpu import CpuExecutor
from dsv2.kernels.formats import BlockTensor, dequantise, relative_rmse
from dsv2.kernels.reference_executor import ReferenceExecutor
from dsv2.kernels.registry import BackendError
from dsv2.model.config import ModelConfig
from tests.kernels.layers import paged_batch
from tests.kernels.triton.place import draw
from tests.models import save_tiny


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 144 columns are a block of fp8 and an eighth.
    return save_tiny(tmp_path_factory.mktemp("published"), intermediate_size=144)


@pytest.fixture(scope="module")
def fp8(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("quantised") / "fp8"
    result = CliRunner().invoke(
        app, ["quantize", str(published), str(target), "--scheme", "fp8", "--json"]
    )
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert 8 < report["bits_per_weight"] < 9  # a scale for every small matrix
    assert all(0.015 < kind["relative_rmse"] < 0.03 for kind in report["kinds"])
    return target


def config_of(folder: Path) -> ModelConfig:
    return ModelConfig.from_file(folder / "config.json")


def test_the_layout_is_the_published_one(published: Path, fp8: Path) -> None:
    config = config_of(fp8)
    assert config == config_of(published)
    settings = json.loads((fp8 / "config.json").read_text())["quantization_config"]
    assert settings == {
        "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
        "weight_block_size": [128, 128],
    }  # fmt: skip
    files: dict[str, SafetensorsFile] = {}
    for path in fp8.glob("*.safetensors"):
        file = open_safetensors(path, state=True)
        files |= dict.fromkeys(file.entries, file)
    down = "model.layers.0.mlp.down_proj.weight"
    assert files[down].entries[down].dtype == "F8_E4M3"
    codes, scales = files[down].read(down), files[down].read(f"{down}_scale_inv")
    assert scales.shape == (1, 2) and scales.dtype == torch.float32
    wide = PublishedFiles(published, config).fetch("layers.0.ffn.w_down")
    product = torch.cat(
        [codes[:, :128].float() * scales[0, 0], codes[:, 128:].float() * scales[0, 1]], 1
    )
    assert 0.01 < relative_rmse(wide, product) < 0.03
    for plain in (
        "model.embed_tokens.weight",
        "model.layers.1.mlp.gate.weight",
        "model.norm.weight",
    ):
        assert plain in files and f"{plain}_scale_inv" not in files
    assert "model.layers.1.mlp.experts.3.up_proj.weight_scale_inv" in files
    assert stored_bytes(config, "fp8") <= sum(p.stat().st_size for p in fp8.glob("*.safetensors"))


def test_every_parameter_is_there_and_near(published: Path, fp8: Path) -> None:
    config = config_of(fp8)
    assert stored_scheme(fp8) == "fp8"
    before, after = PublishedFiles(published, config), Fp8Files(fp8, config)
    kinds = set()
    for name, shape in parameter_shapes(config).items():
        wide, stored = before.fetch(name), after.fetch(name)
        assert wide.shape == stored.shape == shape
        kinds.add(type(stored))
        if isinstance(stored, BlockTensor):
            assert 0.01 < relative_rmse(wide, dequantise(stored)) < 0.03, name
            assert after.fetch_wide(name).dtype == torch.bfloat16
        else:
            assert torch.equal(stored, wide), name
    assert kinds == {Tensor, BlockTensor}


def test_experts_become_wide_one_after_the_other(
    fp8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, name = Fp8Files(fp8, config_of(fp8)), "layers.1.ffn.experts.w_up"
    stored = files.fetch(name)
    seen = []

    def one(weight: BlockTensor) -> Tensor:
        seen.append(weight.shape)
        return dequantise(weight)

    monkeypatch.setattr("dsv2.checkpoint.fp8.dequantise", one)
    wide = files.fetch_wide(name)
    assert seen == [stored.shape[1:]] * stored.shape[0]
    assert torch.equal(wide, dequantise(stored).bfloat16())


def test_a_cpu_converts_it_while_it_is_read(fp8: Path) -> None:
    packed = load_packed(fp8, CpuExecutor(1))
    assert packed.weights == "bfloat16"
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    answers = LLM(fp8, device="cpu", dtype="float32").generate("def f(x):", params)
    assert len(answers[0].token_ids) == 8
    # The readable executor takes fp8 as it is: what differs is how bf16 rounds code times scale.
    kept = load_packed(fp8, ReferenceExecutor(), weights="fp8")
    assert kept.weights == "fp8"
    hidden = draw(3, packed.config.hidden_size).cpu()
    delta = []
    for model in (kept, load_packed(fp8, ReferenceExecutor(), weights="bfloat16")):
        x = hidden.clone()
        model.feed(1, x)
        delta.append(x - hidden)
    assert 0 < relative_rmse(*delta) < 1e-2
    with pytest.raises(BackendError, match="no kernel for weights in fp8, allowed are float32"):
        load_packed(fp8, CpuExecutor(1), weights="fp8")


def test_a_gpu_keeps_it(published: Path, fp8: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "free_bytes", lambda device: 1 << 30)
    monkeypatch.setattr(loading, "available_bytes", lambda: 1 << 30)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")

    def planned(folder: Path, device: torch.device, dtype: str, **options: Any) -> MemoryPlan:
        return loading.plan_folder(folder, device, "triton", dtype=dtype, **options)

    kept, converted = planned(fp8, gpu, "auto"), planned(fp8, gpu, "bfloat16")
    assert kept == planned(fp8, gpu, "fp8")
    assert (kept.weights, converted.weights) == ("fp8", "bfloat16")
    assert kept.weight_bytes < 0.75 * converted.weight_bytes
    assert planned(fp8, gpu, "auto", max_memory={"cuda": "1GB"}).weights == "bfloat16"
    with pytest.raises(ValueError, match="'fp8', which is for device cuda with backend 'triton'"):
        planned(fp8, cpu, "fp8")
    with pytest.raises(ValueError, match="'fp8', which is for device cuda"):
        loading.prepare("v2-lite-chat", device="cpu", dtype="fp8")  # before anything is pulled
    with pytest.raises(ValueError, match="without max_memory"):
        planned(fp8, gpu, "fp8", max_memory={"cuda": "1GB"})
    with pytest.raises(ValueError, match="in a wider format; dsv2 quantize MODEL FOLDER"):
        planned(published, gpu, "fp8")


def test_a_cache_of_fp8_is_for_gpus(fp8: Path) -> None:
    with pytest.raises(
        ValueError, match=r"cuda; allowed here are auto, float32, bfloat16, int8, int6$"
    ):
        LLM(fp8, device="cpu", cache_dtype="fp8")
    packed = load_packed(fp8, CpuExecutor(1), cache_format="fp8")
    batch = paged_batch([1], [1], [True])
    with pytest.raises(ValueError, match="'fp8' has no kernel in backend 'cpu', allowed are"):
        packed.begin(batch)


def test_what_cannot_be_read_is_refused(published: Path, fp8: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="quantised already"):
        quantise_checkpoint(fp8, tmp_path / "x", "int8", CpuExecutor(1))
    with pytest.raises(ModelLoadError, match="weights 'fp8', allowed are auto, float32"):
        load_packed(published, CpuExecutor(1), weights="fp8")
    folder = Path(shutil.copytree(fp8, tmp_path / "blocks"))
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"]["weight_block_size"] = [64, 64]
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelLoadError, match=r"weight_block_size of quantization_config is \[64"):
        load_packed(folder, CpuExecutor(1))
    # A NaN among the codes: the first matrix of a layer.
    folder = Path(shutil.copytree(fp8, tmp_path / "nan"))
    config = config_of(folder)
    name = next(name for name, (_, kind) in fp8_shapes(config).items() if kind.itemsize == 1)
    for path in folder.glob("*.safetensors"):
        file = open_safetensors(path, state=True)
        if name in file.entries:
            with path.open("r+b") as raw:
                raw.seek(file.data_start + file.entries[name].start)
                raw.write(b"\xff")
    with pytest.raises(ModelLoadError, match="holds NaN"):
        load_packed(folder, CpuExecutor(1))
