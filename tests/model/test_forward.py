"""One model, many ways to compute it: absorbed, cached, chunked, ragged, packed."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dsv2.kernels import composites
from dsv2.model.config import ModelConfig
from dsv2.model.counts import count
from dsv2.model.init import init_weights
from dsv2.model.rope import inverse_frequencies
from dsv2.model.transformer import Transformer
from dsv2.ragged import RaggedBatch
from dsv2.shapes import BLOCK_SIZE
from tests.oracle import stock_config
from tests.tiny import YARN, tiny_config

VARIANTS: dict[str, dict[str, Any]] = {
    "lite": {},
    "query compression": {"q_lora_rank": 24},
    "yarn": {"rope_scaling": YARN, "max_position_embeddings": 128},
    "groups": {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
}


def build(name: str, backend: str = "auto") -> Transformer:
    model = Transformer(tiny_config(**VARIANTS[name]), backend=backend)
    return init_weights(model, torch.Generator().manual_seed(3), 0.15).eval()


def sequences(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 160, (length,), generator=generator) for length in lengths]


def alone(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    logits, _ = model(RaggedBatch.packed(tokens, [len(tokens)]))
    return logits


class Cached:
    """Sequences in a cache full of NaN, in blocks of random order."""

    def __init__(self, model: Transformer, tokens: list[torch.Tensor]) -> None:
        self.model, self.tokens = model, tokens
        needed = [-(-len(one) // BLOCK_SIZE) for one in tokens]
        blocks = list(range(sum(needed) + 3))
        random.Random(0).shuffle(blocks)
        self.blocks = [[blocks.pop() for _ in range(count)] for count in needed]
        width = model.config.cache_width
        shape = (sum(needed) + 3, BLOCK_SIZE, width)
        self.cache = [torch.full(shape, torch.nan) for _ in range(model.config.num_hidden_layers)]
        self.done = [0] * len(tokens)

    def step(self, counts: dict[int, int], form: str) -> dict[int, torch.Tensor]:
        """Compute so many more tokens of the named sequences; their logits."""
        parts, positions, slots, kv, lengths = [], [], [], [], []
        widest = max(len(blocks) for blocks in self.blocks)
        table = torch.zeros(len(counts), widest, dtype=torch.int32)
        for row, (which, count_) in enumerate(counts.items()):
            places = range(self.done[which], self.done[which] + count_)
            parts.append(self.tokens[which][places.start : places.stop])
            positions += places
            own = self.blocks[which]
            slots += [own[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in places]
            table[row, : len(own)] = torch.tensor(own, dtype=torch.int32)
            kv.append(places.stop)
            lengths.append(count_)
            self.done[which] = places.stop
        batch = RaggedBatch(
            tokens=torch.cat(parts).int(),
            positions=torch.tensor(positions, dtype=torch.int32),
            cu_q=torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32),
            kv_len=torch.tensor(kv, dtype=torch.int32),
            block_table=table,
            slots=torch.tensor(slots, dtype=torch.int32),
        )
        logits, _ = self.model(batch, self.cache, form=form)
        return dict(zip(counts, logits.split(lengths), strict=True))


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_absorbed_equals_expanded(name: str, backend: str) -> None:
    model = build(name, backend)
    tokens = sequences(50, 100)
    found = {}
    for form in ("expanded", "absorbed"):
        found[form] = Cached(model, tokens).step({0: 50, 1: 100}, form)
    for which in (0, 1):
        torch.testing.assert_close(
            found["absorbed"][which], found["expanded"][which], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("form", ["auto", "expanded", "absorbed"])
@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_cached_chunked_ragged_equals_the_full_forward(name: str, form: str, backend: str) -> None:
    model = build(name, backend)
    tokens = sequences(40, 90, 70)
    cached = Cached(model, tokens)
    steps = [
        {0: 17, 1: 3}, {1: 61, 0: 1, 2: 9}, {0: 1, 1: 1}, {2: 60, 0: 1, 1: 1}, {2: 1, 1: 1, 0: 1},
        {0: 19, 1: 23},
    ]  # fmt: skip
    pieces: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
    for step in steps:
        for which, logits in cached.step(step, form).items():
            pieces[which].append(logits)
    assert cached.done == [40, 90, 70]
    for which, one in enumerate(tokens):
        torch.testing.assert_close(
            torch.cat(pieces[which]), alone(model, one), atol=2e-5, rtol=1e-4
        )


@torch.inference_mode()
def test_the_kind_of_token_decides_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last token of a prompt is a prompt's, also when a chunk holds it alone."""
    model = build("lite", "torch")
    cached = Cached(model, sequences(8, 8))
    cached.step({0: 7, 1: 7}, "expanded")
    used: list[str] = []
    for name in ("_expanded", "_absorbed"):
        usual = getattr(composites, name)
        monkeypatch.setattr(
            composites, name, lambda *a, n=name, f=usual: (used.append(n), f(*a))[1]
        )
    batch = RaggedBatch(
        tokens=torch.tensor([1, 2], dtype=torch.int32),
        positions=torch.tensor([7, 7], dtype=torch.int32),
        cu_q=torch.tensor([0, 1, 2], dtype=torch.int32),
        kv_len=torch.tensor([8, 8], dtype=torch.int32),
        block_table=torch.tensor([[b[0]] for b in cached.blocks], dtype=torch.int32),
        slots=torch.tensor([b[0] * BLOCK_SIZE + 7 for b in cached.blocks], dtype=torch.int32),
    )
    for generated, forms in (
        ((False, False), {"_expanded"}), ((True, True), {"_absorbed"}),
        ((False, True), {"_expanded", "_absorbed"}), (None, {"_absorbed"}),
    ):  # fmt: skip
        used.clear()
        model(replace(batch, generated=generated), cached.cache)
        assert set(used) == forms


@torch.inference_mode()
def test_packed_documents_do_not_see_each_other() -> None:
    model = build("yarn")
    tokens = sequences(5, 1, 60, 33)
    batch = RaggedBatch.packed(torch.cat(tokens), [len(one) for one in tokens])
    together, _ = model(batch)
    for one, logits in zip(tokens, together.split([5, 1, 60, 33]), strict=True):
        torch.testing.assert_close(logits, alone(model, one), atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_only_the_rows_that_are_wanted_have_logits() -> None:
    model = build("lite")
    batch = RaggedBatch.packed(torch.cat(sequences(9, 4)), [9, 4])
    full, stats = model(batch)
    some, _ = model(replace(batch, logit_rows=torch.tensor([8, 12], dtype=torch.int32)))
    # torch may multiply 2 rows and 13 in different orders on some processors.
    torch.testing.assert_close(some, full[[8, 12]], atol=1e-5, rtol=1e-5)
    assert stats.expert_counts.sum(1).tolist() == [13 * 3] * 2


def test_a_cache_of_another_depth_is_an_error() -> None:
    model = build("lite")
    with pytest.raises(ValueError, match="cache has 2 layers, the model has 3"):
        model(RaggedBatch.packed(torch.tensor([1]), [1]), [torch.zeros(1, 64, 24)] * 2)
    with pytest.raises(ValueError, match="form 'sideways' is unknown"):
        Cached(model, sequences(4)).step({0: 4}, "sideways")
    with pytest.raises(ValueError, match="needs a latent cache"):
        model(RaggedBatch.packed(torch.tensor([1]), [1]), form="absorbed")


@pytest.mark.parametrize("name", VARIANTS)
def test_counts_equal_the_models_own_parameters(name: str) -> None:
    config = tiny_config(**VARIANTS[name])
    with torch.device("meta"):
        model = Transformer(config)
    counted = count(config)
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    idle = config.n_routed_experts - config.num_experts_per_tok  # type: ignore[operator]
    expert = 3 * config.hidden_size * config.moe_intermediate_size  # type: ignore[operator]
    assert counted.total - counted.active == 2 * idle * expert


def test_yarn_frequencies_equal_transformers() -> None:
    for changes in ({}, {"factor": 40.0}, {"beta_fast": 8, "beta_slow": 2}, {"mscale": 1.0}):
        config: ModelConfig = tiny_config(
            rope_scaling=YARN | changes, max_position_embeddings=4096, qk_rope_head_dim=64
        )
        theirs, _ = ROPE_INIT_FUNCTIONS["yarn"](stock_config(config), torch.device("cpu"))
        torch.testing.assert_close(inverse_frequencies(config), theirs, rtol=1e-6, atol=0)
