"""Parity at a length where the whole YaRN range is in use; too slow for the default suite."""

from __future__ import annotations

import pytest
import torch

from dsv2.model.init import init_weights
from dsv2.model.transformer import Transformer
from dsv2.ragged import RaggedBatch
from tests.oracle import stock_model
from tests.tiny import YARN, tiny_config


@pytest.mark.slow
def test_long_logits_equal_transformers() -> None:
    yarn = YARN | {"factor": 40.0, "original_max_position_embeddings": 64}
    config = tiny_config(rope_scaling=yarn, max_position_embeddings=2560, q_lora_rank=16)
    model = init_weights(Transformer(config), torch.Generator().manual_seed(3), std=0.15)
    tokens = torch.randint(0, 160, (1, 2048), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = stock_model(model)(input_ids=tokens).logits[0]
        ours, _ = model(RaggedBatch.packed(tokens[0], (2048,)))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
