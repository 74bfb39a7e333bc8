"""Bytes that weights take in memory, by who is to compute with them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

from dsv2.checkpoint.fp8 import FP8, is_fp8
from dsv2.checkpoint.quantised import is_quantised
from dsv2.checkpoint.weights import parameter_shapes
from dsv2.kernels.formats import FP8_BLOCK, SCHEMES
from dsv2.kernels.interleaved import LANES
from dsv2.model.config import ModelConfig


@lru_cache(maxsize=64)
def plain_bytes(config: ModelConfig, weights: str) -> int:
    """Of a ``Transformer``: every parameter in one dtype."""
    width = {"float32": 4, "bfloat16": 2}[weights]
    return sum(torch.Size(shape).numel() for shape in parameter_shapes(config).values()) * width


@lru_cache(maxsize=64)
def packed_bytes(config: ModelConfig, weights: str) -> int:
    """Bytes that the weights take once they are packed for backend ``cpu``.

    That is more than they take on disk: W^UK lies there twice, once for each form of attention,
    rows are padded, and routers and norms are fp32.
    """
    total = 0.0
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 1:
            total += 4 * shape[0]
            continue
        *stack, rows, columns = shape
        kind = _kind(config, name, shape, weights)
        if name.endswith("wkv_b"):
            heads = config.num_attention_heads
            nope, value = config.qk_nope_head_dim, config.v_head_dim
            total += heads * (
                _matrix_bytes(nope, columns, kind)
                + _matrix_bytes(columns, nope, kind)
                + _matrix_bytes(value, columns, kind)
            )
            if kind in SCHEMES:  # the scales of the transpose
                total += 4 * heads * nope * columns / SCHEMES[kind].group
        else:
            total += torch.Size(stack).numel() * _matrix_bytes(rows, columns, kind)
    return int(total)


def _kind(config: ModelConfig, name: str, shape: tuple[int, ...], weights: str) -> str:
    """The format in which a parameter is packed."""
    if name.endswith("router"):
        return "float32"
    if weights == FP8:
        return FP8 if is_fp8(name, shape) else "bfloat16"
    if weights not in SCHEMES:
        return weights
    if not is_quantised(name, shape, SCHEMES[weights]):
        return "bfloat16"
    # The transpose of W^UK could not carry such groups.
    odd = name.endswith("wkv_b") and config.qk_nope_head_dim % SCHEMES[weights].group
    return "float32" if odd else weights


def _matrix_bytes(rows: int, columns: int, kind: str) -> float:
    padded = -(-rows // LANES) * LANES
    if kind in SCHEMES:
        return padded * columns * SCHEMES[kind].bits_per_weight(columns) / 8
    return padded * columns * {"float32": 4, "bfloat16": 2}[kind]


@lru_cache(maxsize=64)
def gpu_bytes(config: ModelConfig, weights: str) -> tuple[int, int]:
    """Bytes packed for backend ``triton``: all but routed experts, and one layer's routed experts.

    W^UK and W^UV lie there twice, once for each form of attention, and never as codes; routers and
    norms are fp32.
    """
    rest, experts, layers = 0.0, 0.0, 0
    for name, shape in parameter_shapes(config).items():
        size = torch.Size(shape).numel() * _gpu_bits(name, shape, weights) / 8
        if ".experts." in name:
            experts += size
            layers += name.endswith("w_gate")
        else:
            rest += size
    return int(rest), int(experts / max(1, layers))


def moe_layers(config: ModelConfig) -> int:
    """How many layers have routed experts."""
    return sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))


def _gpu_bits(name: str, shape: tuple[int, ...], weights: str) -> float:
    if len(shape) < 2 or name.endswith("router"):
        return 32
    plain = 32 if weights == "float32" else 16
    if name.endswith("wkv_b"):
        return 2 * plain
    if weights == FP8 and is_fp8(name, shape):
        return 8 + 32 / FP8_BLOCK**2
    if weights in SCHEMES and is_quantised(name, shape, SCHEMES[weights]):
        return SCHEMES[weights].bits_per_weight(shape[-1])
    return plain


def _whole_gpu_bytes(config: ModelConfig, weights: str) -> int:
    rest, each = gpu_bytes(config, weights)
    return rest + moe_layers(config) * each


LAYOUTS: dict[str, Callable[[ModelConfig, str], int]] = {
    "plain": plain_bytes, "cpu": packed_bytes, "gpu": _whole_gpu_bytes,
}  # fmt: skip
"""Bytes of the weights of a configuration in a format: of a ``Transformer``, packed for backend
``cpu``, packed for backend ``triton``."""


@lru_cache(maxsize=64)
def loading_bytes(config: ModelConfig, weights: str, convert: bool) -> int:
    """The largest part that exists both packed and not while weights are read.

    Attention, the feed-forward part, the embedding and the head are packed one after the other;
    a matrix that changes its format exists in both. What is read from fp8 comes in bf16, one expert
    after the other; what the one at hand takes beside that is left to the plan's margin.
    """
    parts: dict[str, float] = {}
    largest = 0
    for name, shape in parameter_shapes(config).items():
        count = torch.Size(shape).numel()
        kind = _kind(config, name, shape, weights)
        bits = SCHEMES[kind].bits_per_weight(shape[-1]) if kind in SCHEMES else 0
        width = bits / 8 or {"float32": 4, "bfloat16": 2, FP8: 1}[kind]
        part = ".".join(name.split(".")[:3])
        parts[part] = parts.get(part, 0.0) + count * width
        largest = max(largest, count)
    changed = weights == "float32" or (weights in SCHEMES and convert)
    return int(max(parts.values())) + (2 * largest if changed else 0)
