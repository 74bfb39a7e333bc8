"""The architecture's hyper-parameters, under the names of the published ``config.json``.

Everything about a model follows from its :class:`ModelConfig`; nothing is keyed to a model's name.
A file with an unknown key is refused, because a key that is ignored is a model that is wrong.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    StrictBool,
    ValidationError,
    model_validator,
)

QUANT_METHOD = "dsv2"
"""The ``quant_method`` of checkpoints in our own 4- and 8-bit formats."""
FP8_METHOD = "fp8"
"""That of checkpoints in fp8 with scales of blocks, as they are published."""
MAX_CONFIG_BYTES = 1 << 20
"""A published config.json has 2 KB; a megabyte is already hostile."""

ARCHITECTURE = "DeepseekV2ForCausalLM"
MODEL_TYPE = "deepseek_v2"

# Keys of published files that do not change what the model computes. `auto_map` names code to
# import: it is dropped here and never followed.
IGNORED_KEYS = frozenset(
    {
        "_attn_implementation", "_name_or_path", "architectures", "attn_implementation",
        "auto_map", "dtype", "ep_size", "id2label", "label2id", "model_type",
        "output_attentions", "output_hidden_states", "pad_token_id", "pretraining_tp",
        "problem_type", "return_dict", "torch_dtype", "transformers_version", "use_cache",
        "chunk_size_feed_forward", "is_encoder_decoder", "output_router_logits",
        # derived from other fields by the writer
        "head_dim", "qk_head_dim",
    }
)  # fmt: skip

# Keys that we compute with one value only: any other is refused rather than ignored.
FIXED_KEYS: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "attention_dropout": (0, 0.0),
    "mlp_bias": (False,),
    "hidden_act": ("silu",),
    "num_nextn_predict_layers": (0, None),
}


class ConfigError(ValueError):
    """A model configuration is malformed, out of range or asks for what this model is not."""


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not a boolean")
    return value


Number = Annotated[FiniteFloat, BeforeValidator(_not_bool)]


_Strict = BeforeValidator(_not_bool)
Width = Annotated[int, _Strict, Field(strict=True, ge=1, le=1 << 20)]
WidthOrZero = Annotated[int, _Strict, Field(strict=True, ge=0, le=1 << 20)]
Few = Annotated[int, _Strict, Field(strict=True, ge=1, le=4096)]
FewOrZero = Annotated[int, _Strict, Field(strict=True, ge=0, le=4096)]
Experts = Annotated[int, _Strict, Field(strict=True, ge=1, le=1 << 16)]
Vocabulary = Annotated[int, _Strict, Field(strict=True, ge=2, le=1 << 24)]
TokenId = Annotated[int, _Strict, Field(strict=True, ge=0, le=1 << 24)]
Context = Annotated[int, _Strict, Field(strict=True, ge=1, le=1 << 26)]


class RopeScaling(BaseModel):
    """YaRN context extension (report, section 3.1.4)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["yarn"] = "yarn"
    factor: Annotated[Number, Field(ge=1.0, le=1e6)]
    original_max_position_embeddings: Width
    beta_fast: Annotated[Number, Field(gt=0, le=1e6)] = 32.0
    beta_slow: Annotated[Number, Field(gt=0, le=1e6)] = 1.0
    mscale: Annotated[Number, Field(ge=0, le=100)] = 1.0
    mscale_all_dim: Annotated[Number, Field(ge=0, le=100)] = 0.0


class RouterConfig(BaseModel):
    """The orthogonal choices of a router; see :func:`dsv2.model.router.route`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_experts: int
    num_experts_per_tok: int
    num_groups: int
    topk_group: int
    score: Literal["softmax", "sigmoid"]
    group_score: Literal["none", "max", "top2_sum"]
    selection_bias: bool
    normalise: bool
    scale: float


_EXPERT_FIELDS = (
    "n_routed_experts", "n_shared_experts", "num_experts_per_tok", "moe_intermediate_size",
    "n_group", "topk_group",
)  # fmt: skip


class ModelConfig(BaseModel):
    """A model of the DeepSeek-V2 architecture (report, sections 2 and 3.1.2)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: Vocabulary
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Few
    num_attention_heads: Few
    num_key_value_heads: Few | None = None
    # Multi-head latent attention
    q_lora_rank: Width | None = None
    kv_lora_rank: Width
    qk_nope_head_dim: WidthOrZero
    qk_rope_head_dim: Width
    v_head_dim: Width
    # DeepSeekMoE
    n_routed_experts: Experts | None = None
    n_shared_experts: FewOrZero | None = None
    num_experts_per_tok: Few | None = None
    moe_intermediate_size: Width | None = None
    first_k_dense_replace: FewOrZero = 0
    moe_layer_freq: Few = 1
    topk_method: Literal["greedy", "group_limited_greedy", "noaux_tc"] = "greedy"
    n_group: Few | None = None
    topk_group: Few | None = None
    scoring_func: Literal["softmax", "sigmoid"] = "softmax"
    norm_topk_prob: StrictBool = False
    routed_scaling_factor: Annotated[Number, Field(gt=0, le=1e6)] = 1.0
    aux_loss_alpha: Annotated[Number, Field(ge=0, le=1e3)] = 0.001
    seq_aux: StrictBool = True
    # The rest
    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: Annotated[Number, Field(gt=0, le=1)] = 1e-6
    rope_theta: Annotated[Number, Field(gt=1, le=1e12)] = 10000.0
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: Context = 2048
    tie_word_embeddings: StrictBool = False
    initializer_range: Annotated[Number, Field(ge=0, le=10)] = 0.02
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | None = None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, fields: Any) -> Any:
        """Spell out what other readers need as numbers, as the published files have it: the one
        group of greedy routing (vLLM), and the dense layers of a model without experts."""
        if not isinstance(fields, dict):
            return fields
        fields = dict(fields)
        if fields.get("n_routed_experts") is None:
            fields["first_k_dense_replace"] = fields.get("num_hidden_layers", 0)
        elif fields.get("topk_method", "greedy") == "greedy":
            for name in ("n_group", "topk_group"):
                if fields.get(name) is None:
                    fields[name] = 1
        return fields

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        """Relations between fields; pydantic reports a ValueError with the model's name."""
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim {self.qk_rope_head_dim} must be even")
        if self.num_key_value_heads not in (None, self.num_attention_heads):
            raise ValueError(
                f"num_key_value_heads {self.num_key_value_heads} must equal num_attention_heads "
                f"{self.num_attention_heads}: latent attention shares one latent among all heads"
            )
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(self, name)
            if token is not None and token >= self.vocab_size:
                raise ValueError(f"{name} {token} must be below vocab_size {self.vocab_size}")
        if self.n_routed_experts is not None:
            self._check_experts(self.n_routed_experts)
        return self

    def _check_experts(self, experts: int) -> None:
        for name in ("num_experts_per_tok", "moe_intermediate_size"):
            if getattr(self, name) is None:
                raise ValueError(f"{name} is missing: n_routed_experts is {experts}")
        per_token = self.num_experts_per_tok or 0
        if per_token > experts:
            raise ValueError(
                f"num_experts_per_tok {per_token} must be at most n_routed_experts {experts}"
            )
        if self.topk_method == "greedy":
            return
        if self.n_group is None or self.topk_group is None:
            raise ValueError(f"topk_method {self.topk_method} needs n_group and topk_group")
        if experts % self.n_group or self.topk_group > self.n_group:
            raise ValueError(
                f"n_group {self.n_group} must divide n_routed_experts {experts} "
                f"and be at least topk_group {self.topk_group}"
            )
        group_size = experts // self.n_group
        if per_token > self.topk_group * group_size:
            raise ValueError(
                f"num_experts_per_tok {per_token} must be at most the {self.topk_group} x "
                f"{group_size} experts of topk_group groups"
            )
        if self.topk_method == "noaux_tc" and group_size < 2:
            raise ValueError(
                f"topk_method noaux_tc sums two scores a group, groups have {group_size}"
            )

    @property
    def qk_head_dim(self) -> int:
        """Width of a head's query and key: N + R."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cache_width(self) -> int:
        """Elements cached per token and layer: C + R (report, table 1)."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def num_shared_experts(self) -> int:
        """Shared experts of a MoE layer, stored as one MLP of their joint width."""
        return self.n_shared_experts or 0

    @property
    def softmax_scale(self) -> float:
        """1/sqrt(N+R) (equation 18), times mscale squared once YaRN is in use."""
        scale = self.qk_head_dim**-0.5
        if self.rope_scaling is not None and self.rope_scaling.mscale_all_dim:
            scale *= yarn_mscale(self.rope_scaling.factor, self.rope_scaling.mscale_all_dim) ** 2
        return scale

    @property
    def router(self) -> RouterConfig:
        """The router of the MoE layers, as orthogonal fields."""
        if self.n_routed_experts is None or self.num_experts_per_tok is None:
            raise ConfigError("n_routed_experts is absent: a dense model has no router")
        group_score: dict[str, Literal["none", "max", "top2_sum"]] = {
            "greedy": "none",
            "group_limited_greedy": "max",
            "noaux_tc": "top2_sum",
        }
        return RouterConfig(
            num_experts=self.n_routed_experts,
            num_experts_per_tok=self.num_experts_per_tok,
            num_groups=self.n_group or 1,
            topk_group=self.topk_group or 1,
            score=self.scoring_func,
            group_score=group_score[self.topk_method],
            selection_bias=self.topk_method == "noaux_tc",
            normalise=self.norm_topk_prob,
            scale=self.routed_scaling_factor,
        )

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer ``layer`` (from 0) has routed experts."""
        return (
            self.n_routed_experts is not None
            and layer >= self.first_k_dense_replace
            and layer % self.moe_layer_freq == 0
        )

    @classmethod
    def from_published(cls, published: Any) -> ModelConfig:
        """Read the content of a published ``config.json``.

        Raises:
            ConfigError: naming each field that is unknown, missing or out of range, its value and
                what is allowed.
        """
        if not isinstance(published, dict):
            raise ConfigError(f"config must be a JSON object, got {type(published).__name__}")
        kind = published.get("model_type", MODEL_TYPE)
        if kind != MODEL_TYPE:
            raise ConfigError(f"model_type is {kind!r}, allowed is {MODEL_TYPE!r}")
        for name, allowed in FIXED_KEYS.items():
            if name in published and published[name] not in allowed:
                raise ConfigError(f"{name} is {published[name]!r}, allowed is {allowed[0]!r}")
        known = {
            name: value
            for name, value in published.items()
            if name not in IGNORED_KEYS and (name not in FIXED_KEYS or name in cls.model_fields)
        }
        quantisation = known.pop("quantization_config", None)
        if quantisation is not None:
            # How weights are stored is the checkpoint reader's matter, but only if it can read it.
            method = quantisation.get("quant_method") if isinstance(quantisation, dict) else None
            if method not in (QUANT_METHOD, FP8_METHOD):
                raise ConfigError(
                    f"quant_method is {method!r}, allowed are {QUANT_METHOD!r} and {FP8_METHOD!r}"
                )
        known = _read_rope(known)
        if known.get("num_key_value_heads") is None and "num_attention_heads" in known:
            known["num_key_value_heads"] = known["num_attention_heads"]
        try:
            return cls.model_validate(known)
        except ValidationError as error:
            raise ConfigError(_describe(error)) from error

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """Read ``config.json`` at ``path`` under a limit of one megabyte.

        Raises:
            ConfigError: as :meth:`from_published`, or the file is too large or not JSON.
        """
        size = path.stat().st_size
        if size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: {size} bytes, allowed are {MAX_CONFIG_BYTES}")
        try:
            published = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not valid JSON: {error}") from error
        try:
            return cls.from_published(published)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def to_published(self, dtype: str = "bfloat16") -> dict[str, Any]:
        """The content of a ``config.json`` that stock transformers and vLLM read."""
        fields = self.model_dump(mode="json")
        fields["num_key_value_heads"] = self.num_attention_heads
        if self.n_routed_experts is None:
            # transformers knows no model of this type without experts: their sizes are left out,
            # and every layer comes before the first that would have some.
            for name in _EXPERT_FIELDS:
                fields.pop(name)
        return {
            "architectures": [ARCHITECTURE],
            "model_type": MODEL_TYPE,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "pretraining_tp": 1,
            "torch_dtype": dtype,
            "use_cache": True,
            **fields,
        }


def _read_rope(known: dict[str, Any]) -> dict[str, Any]:
    """Fold transformers 5's ``rope_parameters`` into ``rope_theta`` and ``rope_scaling``."""
    known = dict(known)
    parameters = known.pop("rope_parameters", None)
    if isinstance(parameters, dict):
        parameters = dict(parameters)
        known["rope_theta"] = parameters.pop("rope_theta", known.get("rope_theta", 10000.0))
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        known["rope_scaling"] = None if kind == "default" else parameters
    elif parameters is not None:
        raise ConfigError(f"rope_parameters is {parameters!r}, allowed is an object")
    scaling = known.get("rope_scaling")
    if isinstance(scaling, dict):
        scaling = dict(scaling)
        kind = scaling.pop("rope_type", None)
        if kind is not None:
            scaling["type"] = kind
        known["rope_scaling"] = scaling
    return known


def _describe(error: ValidationError) -> str:
    lines = []
    for problem in error.errors()[:8]:
        where = ".".join(str(part) for part in problem["loc"]) or "config"
        value = repr(problem["input"])
        shown = "" if where == "config" else f" is {value[:80]}:"
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where} is not a known key (value {value[:80]})")
        elif problem["type"] == "missing":
            lines.append(f"{where} is missing")
        else:
            lines.append(f"{where}{shown} {problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature, sqrt(t) = 0.1 * mscale * ln(factor) + 1 (section 3.1.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
