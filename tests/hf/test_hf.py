from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import dsv2.hf
from dsv2 import LLM, SamplingParams
from dsv2.engine.request import RequestError
from dsv2.tokenizer import Tokenizer
from dsv2.tokenizer.special import ASSISTANT, USER


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> dsv2.hf.DeepseekV2ForCausalLM:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    assert type(loaded) is dsv2.hf.DeepseekV2ForCausalLM
    return loaded


@pytest.fixture(scope="module")
def tokenizer(tiny_folder: Path) -> dsv2.hf.DeepseekTokenizer:
    loaded = transformers.AutoTokenizer.from_pretrained(tiny_folder)
    assert type(loaded) is dsv2.hf.DeepseekTokenizer
    return loaded


@pytest.fixture
def stock() -> Iterator[Any]:
    """transformers' own model of this architecture."""
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2ForCausalLM

    return DeepseekV2ForCausalLM


def test_logits_and_loss_equal_the_stock_model(
    model: Any, tokenizer: Any, stock: Any, tiny_folder: Path
) -> None:
    theirs = stock.from_pretrained(tiny_folder, dtype=torch.float32)
    batch = tokenizer(["def f(x):", "import os\nx = 1"], return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        ours = model(**batch, labels=labels)
        other = theirs(**batch, labels=labels)
    kept = batch["attention_mask"].bool()
    torch.testing.assert_close(ours.logits[kept], other.logits[kept], atol=1e-4, rtol=1e-4)
    assert float(ours.loss) == pytest.approx(float(other.loss), abs=1e-4)


def test_greedy_generation_equals_the_stock_model(
    model: Any, tokenizer: Any, stock: Any, tiny_folder: Path
) -> None:
    theirs = stock.from_pretrained(tiny_folder, dtype=torch.float32)
    tokenizer.padding_side = "left"
    batch = tokenizer(["def f(x):", "import os\nx = 1", "a"], return_tensors="pt", padding=True)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": tokenizer.eos_token_id}
    ours = model.generate(**batch, **settings)
    other = theirs.generate(**batch, **settings)
    assert ours.tolist() == other.tolist()


def test_sampling_follows_torchs_seed(model: Any, tokenizer: Any) -> None:
    batch = tokenizer("x", return_tensors="pt")
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(
            model.generate(
                **batch, min_new_tokens=8, max_new_tokens=8, do_sample=True, num_return_sequences=2
            )
        )
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert found[0].shape == (2, batch["input_ids"].shape[1] + 8)
    assert not torch.equal(found[0][0], found[0][1])


def test_generate_takes_what_the_chat_template_returns(
    model: Any, tokenizer: Any, tiny_folder: Path
) -> None:
    messages = [{"role": "user", "content": f"hello {ASSISTANT}"}]
    tensor = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt"
    )
    assert isinstance(tensor, torch.Tensor)
    llm = LLM(tiny_folder, device="cpu", dtype="float32")
    params = SamplingParams(max_tokens=10, temperature=0.0)
    expected = llm.chat(messages, params)[0]
    assert tensor[0].tolist() == list(expected.prompt_ids)
    out = model.generate(tensor, max_new_tokens=10, do_sample=False)
    assert out[0, tensor.shape[1] :].tolist() == list(expected.token_ids)
    both = tokenizer.apply_chat_template(
        [messages, [{"role": "user", "content": "x"}]],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    assert both["input_ids"].shape == both["attention_mask"].shape
    again = model.generate(both, max_new_tokens=10, do_sample=False)
    new = again[0, both["input_ids"].shape[1] :].tolist()
    assert new[: len(expected.token_ids)] == list(expected.token_ids)
    assert set(new[len(expected.token_ids) :]) <= {tokenizer.eos_token_id}


def test_messages_never_become_control_tokens(tokenizer: Any) -> None:
    ids = tokenizer.apply_chat_template([{"role": "user", "content": USER + ASSISTANT}])
    assert ids.count(tokenizer.convert_tokens_to_ids(USER)) == 1
    assert tokenizer.convert_tokens_to_ids(ASSISTANT) not in ids
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert text == f"{tokenizer.bos_token}{USER}x"


def test_one_bos_and_spaces_survive(tokenizer: Any, tiny_folder: Path) -> None:
    ours = Tokenizer.from_folder(tiny_folder)
    text = "def f(a,  b):\n    return a  +  b\n"
    ids = tokenizer(text)["input_ids"]
    assert ids == [ours.bos_id, *ours.encode(text)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_published_tokenizer_that_names_the_llama_class_keeps_its_spaces(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "published"
    shutil.copytree(tiny_folder, folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}
    path.write_text(json.dumps(settings))
    loaded = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert type(loaded) is dsv2.hf.DeepseekTokenizer
    assert loaded.decode(loaded("a  b c", add_special_tokens=False)["input_ids"]) == "a  b c"


def test_remote_code_is_never_run(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hostile"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('ran')\nclass Config: ...\n")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(loaded) is dsv2.hf.DeepseekV2ForCausalLM


def test_missing_devices_are_a_warning_and_several_an_error(tiny_folder: Path) -> None:
    load = transformers.AutoModelForCausalLM.from_pretrained
    with pytest.warns(UserWarning, match="does not have: 97, 98"):
        load(tiny_folder, device_map="auto", max_memory={97: "75GB", 98: "75GB", "cpu": "1GB"})
    with pytest.raises(ValueError, match="single device"):
        load(tiny_folder, device_map={"a": "cpu", "b": "meta"})
    assert load(tiny_folder, device_map={"": "cpu"}).device.type == "cpu"


def test_what_is_not_followed_is_an_error(model: Any, tiny_folder: Path) -> None:
    ids = torch.tensor([[1, 2]])
    for options in ({"num_beams": 4}, {"no_repeat_ngram_size": 2}, {"stopping_criteria": [1]}):
        with pytest.raises(TypeError, match="does not follow"):
            model.generate(ids, max_new_tokens=2, **options)
    with pytest.raises(TypeError, match="quantization_config"):
        transformers.AutoModelForCausalLM.from_pretrained(tiny_folder, quantization_config={"a": 1})
    with pytest.raises(TypeError, match="input_ids"):
        model.generate()
    with pytest.raises(RequestError, match="context length"):
        model.generate(ids, max_new_tokens=10**5)


def test_saved_models_come_back(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_streamer_gets_every_token(model: Any) -> None:
    class Collector:
        def __init__(self) -> None:
            self.tokens: list[int] = []
            self.ended = False

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    collector = Collector()
    out = model.generate(
        torch.tensor([[1, 2]]), max_new_tokens=5, do_sample=False, streamer=collector
    )
    assert collector.tokens == out[0].tolist()
    assert collector.ended


def test_other_architectures_load_as_before(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is transformers.LlamaForCausalLM
