"""Training's log-probabilities are the engine's, bit for bit; its gradients are the model's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv2 import LLM, SamplingParams, load_model
from dsv2.checkpoint import resolve, save_model
from dsv2.engine.completion import Completion
from dsv2.kernels.cpu import CpuExecutor
from dsv2.kernels.reference_executor import ReferenceExecutor
from dsv2.model.balance import Balance, BalanceConfig
from dsv2.model.exact import Document, ExactModel
from dsv2.model.init import init_weights
from dsv2.model.transformer import ForwardStats, Transformer
from dsv2.ragged import RaggedBatch
from dsv2.tokenizer import Tokenizer
from tests.models import save_tiny
from tests.tiny import YARN, tiny_config

VARIANTS: dict[str, dict[str, Any]] = {
    "lite": {},
    "v2": {
        "q_lora_rank": 24, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2,
        "routed_scaling_factor": 2.0, "rope_scaling": YARN,
    },
    "tied": {"tie_word_embeddings": True, "num_attention_heads": 3, "v_head_dim": 20},
}  # fmt: skip
WARM = SamplingParams(temperature=1.0, ignore_eos=True, logprobs=0)
# Prompts and answers that end at, before and after the borders of blocks (64) and parts (256).
SIZES = [(1, 1), (3, 200), (63, 2), (64, 64), (65, 130), (130, 1), (200, 90), (250, 20), (300, 33)]


def generate(llm: LLM, sizes: list[tuple[int, int]]) -> list[Completion]:
    text = llm.tokenizer.encode(
        "def route(tokens, experts):\n    return [e for e in experts]\n" * 40
    )
    prompts = [[llm.tokenizer.bos_id, *text[7 * n :]][:size] for n, (size, _) in enumerate(sizes)]
    params = [replace(WARM, max_tokens=size, seed=n) for n, (_, size) in enumerate(sizes)]
    return llm.generate(prompts, params)


def documents(completions: list[Completion]) -> list[Document]:
    return [Document(done.prompt_ids, done.token_ids) for done in completions]


def reported(completions: list[Completion]) -> Tensor:
    logs = [one.chosen for done in completions for one in done.logprobs or ()]
    assert len(logs) == sum(len(done.token_ids) for done in completions) > 0
    return torch.tensor(logs, dtype=torch.float32)


def test_the_shipped_models_logprobs_are_the_engines() -> None:
    llm = LLM("pocket", device="cpu", dtype="float32", max_step_tokens=150, speculate=3)
    model = load_model(resolve("pocket"), dtype="float32")
    found = generate(llm, [(3, 70), (63, 2), (64, 80), (130, 1), (250, 20)])
    exact = ExactModel(model, CpuExecutor(1))
    with torch.no_grad():
        logprobs, stats = exact.logprobs(documents(found))
        assert torch.equal(logprobs, reported(found))
        # Alone, in another order, on other threads.
        for done in found[::2]:
            assert torch.equal(exact.logprobs(documents([done]))[0], reported([done]))
        other = ExactModel(model, CpuExecutor(2))
        assert torch.equal(other.logprobs(documents(found[::-1]))[0], reported(found[::-1]))
        plain = plain_logprobs(model, documents(found))[0]
    assert not torch.equal(plain, logprobs)  # or nothing would have been shown
    torch.testing.assert_close(plain, logprobs, atol=1e-3, rtol=0)
    computed = sum(one.num_computed for one in documents(found))
    assert stats.expert_counts.sum(1).tolist() == [computed * 4] * 7


@pytest.mark.parametrize(
    "name",
    ["v2", *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS if name != "v2")],
)
def test_they_are_so_after_a_step_too(name: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, **VARIANTS[name])
    model = load_model(folder, dtype="float32")
    exact = ExactModel(model, CpuExecutor(1))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for turn in range(2):
        llm = LLM(folder, device="cpu", dtype="float32")
        found = generate(llm, SIZES)
        logprobs, _ = exact.logprobs(documents(found))
        assert torch.equal(logprobs, reported(found))
        logits = exact.logits(documents(found))
        tokens = torch.tensor([token for done in found for token in done.token_ids])
        picked = logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
        assert torch.equal(picked, logprobs)
        optimiser.zero_grad()
        (-logprobs.mean()).backward()
        optimiser.step()
        with pytest.raises(RuntimeError, match="changed after they were packed"):
            exact.logprobs(documents(found))
        exact.pack()
        assert not torch.equal(exact.logprobs(documents(found))[0], logprobs)
        files = Tokenizer.from_folder(folder).files()
        folder = tmp_path / f"after{turn}"
        save_model(model, folder, dtype=torch.float32, tokenizer_files=files)


def plain_logprobs(
    model: Transformer, documents: list[Document], balance: Balance | None = None
) -> tuple[Tensor, ForwardStats]:
    """From a forward over whole documents, and the stats of all but their last tokens."""
    ids = [torch.tensor([*one.prompt, *one.answer]) for one in documents]
    batch = RaggedBatch.packed(torch.cat([one[:-1] for one in ids]), [len(i) - 1 for i in ids])
    logits, stats = model(batch, balance=balance)
    logs = logits.log_softmax(-1).gather(1, torch.cat([i[1:] for i in ids]).unsqueeze(1)).squeeze(1)
    parts = logs.split([len(one) - 1 for one in ids])
    wanted = [part[-len(one.answer) :] for part, one in zip(parts, documents, strict=True)]
    return torch.cat(wanted), stats


def draw(sizes: list[tuple[int, int]]) -> list[Document]:
    generator = torch.Generator().manual_seed(5)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 160, (count,), generator=generator).tolist())

    return [Document(ids(prompt), ids(answer)) for prompt, answer in sizes]


def build(name: str) -> Transformer:
    model = Transformer(tiny_config(**VARIANTS[name]))
    return init_weights(model, torch.Generator().manual_seed(3), 0.15)


def gradients(model: Transformer, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize(
    "executor", [CpuExecutor(1), ReferenceExecutor()], ids=["cpu", "reference"]
)
@pytest.mark.parametrize("name", VARIANTS)
def test_gradients_are_those_of_the_model(name: str, executor: Any) -> None:
    model, texts = build(name), draw([(20, 45), (70, 1), (1, 80), (100, 60)])
    advantages = torch.randn(186, generator=torch.Generator().manual_seed(1))
    config = BalanceConfig(strategy="device", num_devices=4, alpha_expert=0.5)
    balance = Balance.for_rows(config, [one.num_computed for one in texts])
    exact = ExactModel(model, executor)
    for strategy in (None, balance):
        found, expected = {}, {}
        for results, forward in (
            (found, exact.logprobs), (expected, lambda *a: plain_logprobs(model, *a)),
        ):  # fmt: skip
            logprobs, stats = forward(texts, strategy)
            loss = (logprobs * advantages).sum()
            if strategy is not None:
                assert stats.balance_loss is not None
                loss = loss + 10 * stats.balance_loss
            results.update(gradients(model, loss), counts=stats.expert_counts)
        assert found.keys() == expected.keys()
        assert found.keys() - {"counts"} == {name for name, _ in model.named_parameters()}
        assert torch.equal(found.pop("counts"), expected.pop("counts"))
        for parameter, gradient in found.items():
            scale = float(expected[parameter].abs().max())
            assert scale > 0, parameter
            error = float((gradient - expected[parameter]).abs().max())
            assert error < 2e-5 * scale, (parameter, error, scale)


def test_logits_have_gradients_and_many_rows_are_scored_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, texts = build("lite"), draw([(20, 45), (70, 30)])
    exact = ExactModel(model, CpuExecutor(1))
    whole, _ = exact.logprobs(texts)
    expected = gradients(model, whole.square().sum())
    monkeypatch.setattr("dsv2.model.exact.HEAD_ROWS", 7)
    pieces, _ = exact.logprobs(texts)
    assert torch.equal(pieces, whole)
    tokens = torch.tensor([token for one in texts for token in one.answer]).unsqueeze(1)
    picked = exact.logits(texts).log_softmax(-1).gather(1, tokens).squeeze(1)
    for again in (pieces, picked):
        for name, gradient in gradients(model, again.square().sum()).items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-4)


def test_frozen_parameters_get_no_gradient() -> None:
    model, texts = build("lite"), draw([(20, 45)])
    exact = ExactModel(model, CpuExecutor(1))
    whole = gradients(model, exact.logprobs(texts)[0].sum())
    model.embed.requires_grad_(False)
    model.layers[1].requires_grad_(False)
    some = gradients(model, exact.logprobs(texts)[0].sum())
    frozen = {name for name in whole if name == "embed" or name.startswith("layers.1.")}
    assert some.keys() == whole.keys() - frozen
    assert all(torch.equal(gradient, whole[name]) for name, gradient in some.items())


def test_weights_may_not_change_between_forward_and_backward() -> None:
    model = build("lite")
    loss = ExactModel(model, CpuExecutor(1)).logprobs(draw([(5, 5)]))[0].sum()
    with torch.no_grad():
        model.get_parameter("layers.1.attn.wo").mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_cannot_be_exact_is_refused() -> None:
    model = build("lite")
    exact = ExactModel(model, CpuExecutor(1))
    with pytest.raises(ValueError, match="documents is empty"):
        exact.logprobs([])
    for sizes, words in (
        ([(3, 3), (0, 3)], r"documents\[1\] has a prompt of 0 and"),
        ([(3, 0)], "an answer of 0 tokens"),
        ([(500, 13)], "512 together"),
    ):
        with pytest.raises(ValueError, match=words):
            exact.logprobs(draw(sizes))
    with pytest.raises(IndexError):
        exact.logprobs([Document([1, 160], [2])])
    dropping = BalanceConfig(strategy="device", num_devices=4, capacity_factor=1.0)
    with pytest.raises(ValueError, match=r"capacity_factor is 1\.0"):
        exact.logprobs(draw([(3, 3)]), Balance.for_rows(dropping, [5]))
    with pytest.raises(ValueError, match=r"parameter embed is torch\.bfloat16 on cpu"):
        ExactModel(build("lite").bfloat16(), CpuExecutor(1))
