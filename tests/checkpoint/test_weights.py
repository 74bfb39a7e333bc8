"""Published checkpoints: round trips, stock transformers, and files that are wrong."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv2.checkpoint import ModelLoadError, load_model, save_model
from dsv2.checkpoint.names import Place, place_of, published_name, published_shapes
from dsv2.checkpoint.releases import RELEASES, config_of
from dsv2.checkpoint.weights import INDEX, SINGLE
from dsv2.model.config import ConfigError, ModelConfig
from dsv2.model.counts import count
from dsv2.model.init import init_weights
from dsv2.model.transformer import Transformer
from dsv2.ragged import RaggedBatch
from tests.oracle import stock_model
from tests.tiny import YARN, tiny_config

CONFIGS: dict[str, dict[str, Any]] = {
    "lite": {},
    "v2": {
        "q_lora_rank": 16, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
        "rope_scaling": YARN, "routed_scaling_factor": 16.0,
    },
    "tied": {"tie_word_embeddings": True},
    "selection bias": {
        "topk_method": "noaux_tc", "n_group": 2, "topk_group": 1, "scoring_func": "sigmoid",
        "norm_topk_prob": True,
    },
    "odd sizes": {"vocab_size": 131, "hidden_size": 40, "num_hidden_layers": 5},
    "dense": dict.fromkeys(
        ("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size")
    ),
}  # fmt: skip


def build(config: ModelConfig, seed: int = 0) -> Transformer:
    model = init_weights(Transformer(config), torch.Generator().manual_seed(seed), std=0.15)
    for name, parameter in model.named_parameters():
        if name.endswith("router_bias"):
            parameter.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(5))
    return model


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("limit", [5_000, 10**9])
def test_round_trip_bit_for_bit(tmp_path: Path, name: str, dtype: torch.dtype, limit: int) -> None:
    model = build(tiny_config(**CONFIGS[name]))
    save_model(model, tmp_path / "one", dtype=dtype, max_shard_bytes=limit)
    first = load_model(tmp_path / "one")
    save_model(first, tmp_path / "two", dtype=dtype, max_shard_bytes=limit)
    assert first.config == model.config
    again = dict(load_model(tmp_path / "two").named_parameters())
    for label, parameter in model.named_parameters():
        expected = parameter if label.endswith("router_bias") else parameter.to(dtype)
        assert torch.equal(dict(first.named_parameters())[label], expected)
        assert torch.equal(again[label], expected)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert (INDEX in files) == (limit == 5_000)
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("name", ["lite", "v2", "odd sizes", "dense"])
def test_stock_transformers_reads_what_we_write(tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForCausalLM

    model = build(tiny_config(**CONFIGS[name]))
    save_model(model, tmp_path / "m", dtype=torch.float32, max_shard_bytes=20_000)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    tokens = torch.randint(0, 131, (1, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = stock(input_ids=tokens).logits[0]
        ours, _ = model(RaggedBatch.packed(tokens[0], (50,)))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["lite", "v2"])
def test_we_read_what_stock_transformers_writes(tmp_path: Path, name: str) -> None:
    model = build(tiny_config(**CONFIGS[name]))
    stock_model(model).save_pretrained(tmp_path / "m")
    back = load_model(tmp_path / "m")
    for label, parameter in back.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[label])


@pytest.mark.parametrize("name", CONFIGS)
def test_names_are_a_bijection(name: str) -> None:
    config = tiny_config(**CONFIGS[name])
    with torch.device("meta"):
        parameters = dict(Transformer(config).named_parameters())
    places = {published: place_of(published) for published in published_shapes(config)}
    for published, place in places.items():
        assert place is not None
        assert published_name(place) == published
        parameter = parameters[place.parameter]
        shape = parameter.shape if place.expert is None else parameter.shape[1:]
        assert tuple(shape) == published_shapes(config)[published]
    covered = {place.parameter for place in places.values() if place}
    assert covered == set(parameters)
    stored = sum(torch.Size(shape).numel() for shape in published_shapes(config).values())
    assert stored == sum(parameter.numel() for parameter in parameters.values())
    assert stored == count(config).total
    assert place_of("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    assert Place("embed") == places["model.embed_tokens.weight"]


@pytest.mark.parametrize("name", RELEASES)
def test_releases_have_the_published_sizes(name: str) -> None:
    sizes = {60: 235_741_434_880, 27: 15_706_484_224}
    config = config_of(name)
    stored = sum(torch.Size(shape).numel() for shape in published_shapes(config).values())
    assert stored == sizes[config.num_hidden_layers]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(build(tiny_config()), tmp_path / "m", max_shard_bytes=20_000)
    return tmp_path / "m"


def edit_index(folder: Path, **moved: str) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= moved
    (folder / INDEX).write_text(json.dumps(index))


def test_a_missing_shard_is_named(saved: Path) -> None:
    next(iter(sorted(saved.glob("*.safetensors")))).unlink()
    with pytest.raises(ModelLoadError, match=r"model-00001-of-.*missing"):
        load_model(saved)


@pytest.mark.parametrize(
    "target", ["../../etc/passwd", "/etc/passwd", "a/../b.safetensors", "weights.bin", "..", 7]
)
def test_paths_out_of_the_folder_are_refused(saved: Path, target: Any) -> None:
    edit_index(saved, **{"lm_head.weight": target})
    with pytest.raises(ModelLoadError, match=r"lm_head\.weight"):
        load_model(saved)


def test_missing_surplus_and_misshapen_tensors_are_one_error(tmp_path: Path) -> None:
    save_model(build(tiny_config()), tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    config |= {"num_hidden_layers": 4, "n_shared_experts": None, "vocab_size": 170}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError) as caught:
        load_model(tmp_path / "m")
    message = str(caught.value)
    assert "missing model.layers.3." in message
    assert "surplus model.layers.1.mlp.shared_experts.gate_proj.weight" in message
    assert "misshapen model.embed_tokens.weight [160, 32] instead of [170, 32]" in message


@pytest.mark.parametrize("bits", [b"\xc0\x7f", b"\x80\x7f", b"\x80\xff"])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, bits: bytes) -> None:
    save_model(build(tiny_config()), tmp_path / "m")
    raw = bytearray((tmp_path / "m" / SINGLE).read_bytes())
    raw[-100:-98] = bits  # NaN, infinity, minus infinity in the last tensor's bf16
    (tmp_path / "m" / SINGLE).write_bytes(raw)
    with pytest.raises(ModelLoadError, match=r"lm_head\.weight holds NaN or infinity"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("eighth", range(8))
def test_a_cut_file_is_an_error(tmp_path: Path, eighth: int) -> None:
    save_model(build(tiny_config()), tmp_path / "m")
    path = tmp_path / "m" / SINGLE
    os.truncate(path, path.stat().st_size * eighth // 8)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors"):
        load_model(tmp_path / "m")


def test_a_file_cut_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsv2.checkpoint import weights

    save_model(build(tiny_config()), tmp_path / "m")
    path = tmp_path / "m" / SINGLE
    opened = weights.open_safetensors

    def open_and_cut(given: Path, *, state: bool) -> Any:
        file = opened(given, state=state)
        os.truncate(path, path.stat().st_size // 2)
        return file

    monkeypatch.setattr(weights, "open_safetensors", open_and_cut)
    with pytest.raises(ModelLoadError, match="is cut off"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.pth"])
def test_pickles_are_refused_unopened(tmp_path: Path, name: str) -> None:
    save_model(build(tiny_config()), tmp_path / "m")
    (tmp_path / "m" / SINGLE).rename(tmp_path / "m" / name)
    (tmp_path / "m" / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(ModelLoadError, match="never loaded"):
        load_model(tmp_path / "m")
    assert not Path("pwned").exists()


HOSTILE: dict[str, Any] = {
    "n_routed_experts": 10**9,
    "vocab_size": -1,
    "q_lora_rank": "x",
    "num_hidden_layers": 10**6,
    "hidden_size": True,
    "kv_lora_rank": 2.5,
    "rms_norm_eps": float("nan"),
    "rope_scaling": {"type": "yarn", "factor": 0, "original_max_position_embeddings": 8},
    "topk_method": "gready",
    "hidden_act": "gelu",
    "attention_bias": True,
    "surprise": 1,
    "model_type": "llama",
}


@pytest.mark.parametrize("field", HOSTILE)
def test_hostile_configs_name_the_field(saved: Path, field: str) -> None:
    config = json.loads((saved / "config.json").read_text()) | {field: HOSTILE[field]}
    (saved / "config.json").write_text(json.dumps(config))
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=field):
        load_model(saved)
    assert time.perf_counter() - start < 1


def test_a_huge_or_deep_config_is_refused(saved: Path) -> None:
    for content in (" " * (2 << 20), '{"a":' * 100_000, "[" * 100_000, "\xff\x00", "[]", ""):
        (saved / "config.json").write_text(content, encoding="latin-1")
        with pytest.raises(ConfigError, match=r"config\.json"):
            load_model(saved)


def test_auto_map_is_never_followed(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil"}
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "evil.py").write_text("raise SystemExit('imported')")
    assert load_model(saved).config == tiny_config()


def test_a_model_larger_than_memory_names_both_sizes(saved: Path) -> None:
    config = config_of("v2").to_published()
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="do not fit"):
        load_model(saved)
    from dsv2.checkpoint import weights

    with pytest.raises(ModelLoadError, match=r"471\.5 GB .* GB are free"):
        weights._check_memory(saved, config_of("v2"), torch.bfloat16, torch.device("cpu"))


def test_a_folder_with_content_is_not_overwritten(saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(ModelLoadError, match="not empty"):
        save_model(build(tiny_config()), saved)
    assert before == {path.name: path.read_bytes() for path in saved.iterdir()}
    save_model(build(tiny_config(), seed=1), saved, overwrite=True)
    assert {path.name for path in saved.parent.iterdir()} == {"m"}
