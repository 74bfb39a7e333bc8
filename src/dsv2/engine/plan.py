"""What fits into the memory at hand: the format of the weights, the cache, the longest context.

A plan is arithmetic on a configuration and a number of free bytes; nothing is loaded. With ``auto``
it is monotone: more memory never gives a narrower format or a shorter context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsv2.checkpoint.packed import WEIGHTS, cache_format_for
from dsv2.engine.cache import token_bytes
from dsv2.engine.scheduler import MAX_ANSWERS_AHEAD
from dsv2.engine.weight_sizes import LAYOUTS, loading_bytes
from dsv2.model.config import ModelConfig
from dsv2.shapes import BLOCK_SIZE

MARGIN = 0.05
"""Share of the free memory that no plan touches."""

CACHE_SHARE = 0.25
"""Share of what the weights leave that the cache may take beyond :data:`GOOD_CACHE`."""

SMALL_SHARE = 0.125
"""Weights that take at most so much of the free memory in fp32 stay in fp32."""

LEAST_CACHE = 8192
"""Tokens of cache, or the model's context, below which ``auto`` calls a format one that does not
fit."""

GOOD_CACHE = 32768
"""Tokens of cache, or the model's context, with which ``auto`` prefers a wider format to more
cache. Narrower formats stop there, so that more memory never means a shorter context."""

_STRETCH = 1024
"""Keys that attention expands at once; kernels/cpu/csrc/attention.h has the same number."""

_PART_ROWS = 1024 * 16
"""Rows of sums that attention on latents keeps at once, as the same file has it."""


class DoesNotFitError(ValueError):
    """The memory does not hold what was asked for."""


@dataclass(frozen=True)
class MemoryPlan:
    """How a model is to lie in memory.

    Attributes:
        weights: format of the weights: ``float32``, ``bfloat16``, ``int8``, ``int4`` or ``fp8``.
        weight_bytes: that they take, packed.
        scratch_bytes: beside them, for loading a layer or computing a step, whichever is more.
        cache: format of the latent cache.
        token_bytes: of cache per token.
        cache_tokens: tokens that the cache holds for all sequences together.
        context: longest sequence.
        model_context: longest sequence that the model was made for.
        free_bytes: that the plan was made for.
        advice: for what does not fit, an option to change, its value, and what that gives.
        host_layers: layers beside a GPU whose routed experts are in the host's memory and computed
            there; ``weight_bytes`` are those of all layers.
    """

    weights: str
    weight_bytes: int
    scratch_bytes: int
    cache: str
    token_bytes: int
    cache_tokens: int
    context: int
    model_context: int
    free_bytes: int
    advice: tuple[str, ...] = ()
    host_layers: int = 0

    @property
    def cache_bytes(self) -> int:
        """Of the whole cache."""
        return self.cache_tokens * self.token_bytes

    @property
    def total_bytes(self) -> int:
        """Weights, scratch and cache."""
        return self.weight_bytes + self.scratch_bytes + self.cache_bytes


@dataclass(frozen=True)
class _Fit:
    """A format of the weights and the tokens of cache that fit beside them, in whole blocks."""

    weights: str
    weight_bytes: int
    scratch_bytes: int
    cache: str
    token_bytes: int
    room: int
    share: int


def plan_memory(
    config: ModelConfig,
    free_bytes: int,
    *,
    dtype: str = "auto",
    cache: str = "auto",
    formats: Sequence[str] = WEIGHTS,
    layout: str = "cpu",
    convert: bool = True,
    cache_tokens: int | None = None,
    sequences: int = 16,
    step_tokens: int = 2048,
) -> MemoryPlan:
    """Choose the format of the weights and the size of the cache.

    ``auto`` keeps weights in fp32 that are small there, cache of all sequences included. Else it
    takes the widest other format that leaves room for :data:`GOOD_CACHE` tokens, else the narrowest
    if that leaves room for :data:`LEAST_CACHE`.

    Args:
        config: the model's.
        free_bytes: memory that may be taken.
        dtype: ``auto`` or one of ``formats``.
        cache: format of the latent cache; ``auto`` follows the weights.
        formats: that the weights may have, the widest first; one alone is taken as it is.
        layout: of the weights, a name of :data:`dsv2.engine.weight_sizes.LAYOUTS`.
        convert: weights of ``int8`` and ``int4`` are made while they are read.
        cache_tokens: that the cache must hold; None for what ``sequences`` of full length need, or
            what fits.
        sequences: most sequences computed at once.
        step_tokens: most tokens computed at once.

    Raises:
        DoesNotFitError: the weights, or the cache asked for, do not fit; with what would.
        ValueError: an argument is out of bounds.
    """
    if cache_tokens is not None and cache_tokens < BLOCK_SIZE:
        raise ValueError(f"cache_tokens is {cache_tokens}, allowed is at least {BLOCK_SIZE}")
    if sequences < 1:
        raise ValueError(f"max_sequences is {sequences}, allowed is at least 1")
    if dtype != "auto" and dtype not in formats:
        raise ValueError(f"dtype is {dtype!r}, allowed are auto, {', '.join(formats)}")

    kinds = {name: cache_format_for(name, cache) for name in formats}
    if layout == "plain" and any(name != kind for name, kind in kinds.items()):
        raise ValueError(f"cache_dtype is {cache!r}, which needs backend 'cpu'; allowed is auto")
    fits = [
        _fit(config, free_bytes, name, kind, layout, convert, sequences, step_tokens)
        for name, kind in kinds.items()
    ]
    whole = _blocks(config.max_position_embeddings)
    wanted = sequences * whole if cache_tokens is None else _blocks(cache_tokens)
    good = wanted if cache_tokens is not None else min(wanted, whole, _blocks(GOOD_CACHE))
    limit = wanted
    if dtype != "auto" or len(fits) == 1:
        chosen = next(fit for fit in fits if dtype in ("auto", fit.weights))
        least = wanted if cache_tokens is not None else BLOCK_SIZE
    else:
        least = good if cache_tokens is not None else min(good, _blocks(LEAST_CACHE))
        chosen = _widest(fits, free_bytes, wanted, good, cache_tokens is not None)
        other = [fit for fit in fits if fit.weights != "float32"]
        if good < whole and other and chosen.weights not in ("float32", other[0].weights):
            limit = good
    if chosen.room < least:
        raise DoesNotFitError(_refusal(chosen, fits, free_bytes, least))
    tokens = min(limit, max(chosen.share, min(chosen.room, good)))
    context = min(config.max_position_embeddings, tokens)
    return MemoryPlan(
        weights=chosen.weights,
        weight_bytes=chosen.weight_bytes,
        scratch_bytes=chosen.scratch_bytes,
        cache=chosen.cache,
        token_bytes=chosen.token_bytes,
        cache_tokens=tokens,
        context=context,
        model_context=config.max_position_embeddings,
        free_bytes=free_bytes,
        advice=tuple(_advice(config, chosen, fits, tokens, sequences)),
    )


def _widest(fits: Sequence[_Fit], free_bytes: int, wanted: int, good: int, exact: bool) -> _Fit:
    """The widest format with room for ``good`` tokens; where there is none, the narrowest."""
    for fit in fits:
        if fit.weights == "float32":
            small = fit.weight_bytes <= free_bytes * SMALL_SHARE
            if small and (fit.room if exact else fit.share) >= wanted:
                return fit
        elif fit.room >= good:
            return fit
    return fits[-1]


def _fit(
    config: ModelConfig, free_bytes: int, weights: str, cache: str, layout: str, convert: bool,
    sequences: int, step_tokens: int,
) -> _Fit:  # fmt: skip
    size = LAYOUTS[layout](config, weights)
    loading = 0 if layout == "plain" else loading_bytes(config, weights, convert)
    scratch = max(loading, step_bytes(config, sequences, step_tokens))
    each = token_bytes(config, cache)
    left = max(int(free_bytes * (1 - MARGIN)) - size - scratch, 0)
    room, share = (
        int(part) // (each * BLOCK_SIZE) * BLOCK_SIZE for part in (left, CACHE_SHARE * left)
    )
    return _Fit(weights, size, scratch, cache, each, room, share)


def step_bytes(config: ModelConfig, sequences: int, step_tokens: int) -> int:
    """Bytes for the activations of a step: at most attention's or the experts', and the logits.

    Tokens of answers take more of attention, and are fewer: one of each sequence and
    :data:`~dsv2.engine.scheduler.MAX_ANSWERS_AHEAD`.
    """
    hidden, heads, chosen = (
        config.hidden_size, config.num_attention_heads, config.num_experts_per_tok or 0,
    )  # fmt: skip
    queries, values = heads * config.qk_head_dim, heads * config.v_head_dim
    attention = 3 * hidden + 2 * queries + 2 * values + config.cache_width
    width = config.moe_intermediate_size or 0
    experts = (chosen + config.num_shared_experts) * (hidden + width)
    feed = 2 * hidden + max(experts, hidden + config.intermediate_size)
    expanded = _STRETCH * (queries + values)
    answers = min(step_tokens, sequences + MAX_ANSWERS_AHEAD)
    absorbed = (
        answers * heads * (2 * config.kv_lora_rank + config.cache_width + config.qk_nope_head_dim)
    )
    absorbed += _PART_ROWS * config.kv_lora_rank
    # Raw ones of every guess; of those that are chosen from also in fp64, sorted, and the noise.
    logits = (answers + 12 * sequences) * config.vocab_size
    return 4 * (step_tokens * max(attention, feed) + expanded + absorbed + logits)


def _blocks(tokens: int) -> int:
    """Tokens rounded up to whole blocks."""
    return -(-tokens // BLOCK_SIZE) * BLOCK_SIZE


def _advice(
    config: ModelConfig, chosen: _Fit, fits: Sequence[_Fit], tokens: int, sequences: int
) -> list[str]:
    """What would give more, one line per option."""
    whole, lines = config.max_position_embeddings, []
    if tokens < whole:
        most = min(chosen.room, _blocks(whole))
        if most > tokens:
            lines.append(f"--cache-tokens {most}: a context of {min(most, whole):,} tokens")
        for fit in fits[fits.index(chosen) + 1 :] if most < whole else []:
            held = min(whole, max(fit.share, min(fit.room, _blocks(GOOD_CACHE))))
            if held > most:
                lines.append(f"--dtype {fit.weights}: a context of {held:,} tokens")
                break
    at_once = tokens // _blocks(whole)
    if 1 <= at_once < sequences:
        lines.append(f"--max-sequences {at_once}: all of full length fit at once")
    return lines


def _refusal(chosen: _Fit, fits: Sequence[_Fit], free_bytes: int, least: int) -> str:
    cache = least * chosen.token_bytes
    text = (
        f"the weights take {size_text(chosen.weight_bytes)} as {chosen.weights}, computing "
        f"{size_text(chosen.scratch_bytes)} and {least:,} tokens of cache {size_text(cache)}: "
        f"{size_text(chosen.weight_bytes + chosen.scratch_bytes + cache)} in all; "
        f"{size_text(free_bytes)} are free, of which {MARGIN:.0%} stay so"
    )
    others = [fit.weights for fit in fits if fit.room >= least]
    if others:
        return f"{text}; --dtype {others[0]} fits"
    best = max(fits, key=lambda fit: fit.room)
    if best.room:
        other = "" if best is chosen else f" with --dtype {best.weights}"
        return f"{text}; --cache-tokens {best.room} fits{other}"
    return text


def size_text(size: float) -> str:
    """Bytes for people: ``8.30 GB``, ``12.5 MB``."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
