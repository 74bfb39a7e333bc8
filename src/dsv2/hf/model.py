"""Our model in transformers' form."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import DeepseekV2Config as NativeConfig
from transformers import GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from dsv2.checkpoint import load_model, save_model
from dsv2.checkpoint.hub import PATTERNS
from dsv2.engine.blocks import BlockPool
from dsv2.engine.engine import Engine
from dsv2.engine.request import MAX_SEED, Limits, Request, SamplingParams
from dsv2.engine.runner import Runner
from dsv2.engine.scheduler import Scheduler
from dsv2.model.config import ModelConfig
from dsv2.model.transformer import Transformer
from dsv2.ragged import RaggedBatch
from dsv2.shapes import BLOCK_SIZE

_IGNORED = {
    "trust_remote_code", "attn_implementation", "low_cpu_mem_usage", "use_safetensors",
    "_from_auto", "adapter_kwargs", "_commit_hash", "code_revision", "_adapter_model_path",
    "offload_folder", "allow_file_pattern", "ignore_file_pattern",
}  # fmt: skip
"""Options of ``from_pretrained`` that change nothing here: there is one implementation of attention
and of loading, and no remote code."""

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

_SUPPORTED = {
    "max_length", "max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p",
    "min_p", "repetition_penalty", "eos_token_id", "pad_token_id", "bos_token_id",
    "num_return_sequences", "stop_strings", "use_cache",
}  # fmt: skip
"""Fields of a GenerationConfig that :meth:`DeepseekV2ForCausalLM.generate` follows."""


class DeepseekV2Config(NativeConfig):
    """The published ``config.json``; the class is ours so that the Auto classes find our model."""


class DeepseekV2ForCausalLM(PreTrainedModel):
    """Our model behind transformers' interface: ``from_pretrained``, ``generate``, ``forward``.

    ``generate`` runs in the engine, with its latent cache; all rows are computed together.
    """

    config_class = DeepseekV2Config
    base_model_prefix = "transformer"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: DeepseekV2Config, transformer: Transformer | None = None) -> None:
        super().__init__(config)
        if transformer is None:
            transformer = Transformer(ModelConfig.from_published(config.to_dict()))
        self.transformer = transformer
        self.generation_config = GenerationConfig.from_model_config(config)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *args: Any,
        config: Any = None,
        device_map: Any = None,
        max_memory: Mapping[Any, Any] | None = None,
        torch_dtype: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> DeepseekV2ForCausalLM:
        """Load a checkpoint in the published layout onto one device.

        Args:
            name: a folder or a repository of the hub.
            config: its configuration, where it is loaded already.
            device_map: ``auto`` and ``sequential`` take the GPU if there is one; or a device.
            max_memory: devices that this machine does not have are named in a warning.
            torch_dtype: dtype of the weights; also ``dtype``.

        Raises:
            TypeError: an option that is not followed.
            ValueError: a device map over several devices.
        """
        hub = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        unknown = sorted(key for key in kwargs if key not in _IGNORED)
        if args or unknown:
            raise TypeError(f"from_pretrained does not follow {', '.join(unknown) or args}")
        _warn_of_missing_devices(max_memory)
        kind = torch_dtype if dtype is None else dtype
        folder = _folder(name, hub)
        config = config or DeepseekV2Config.from_pretrained(folder)
        loaded = load_model(
            folder, dtype="auto" if kind is None else kind, device=_one_device(device_map)
        )
        model = cls(config, loaded)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        model.name_or_path = str(name)
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the published layout, in the dtype of the weights."""
        if kwargs:
            raise TypeError(f"save_pretrained does not follow {', '.join(sorted(kwargs))}")
        save_model(
            self.transformer,
            Path(save_directory),
            dtype=self.transformer.embed.dtype,
            generation_config=self.generation_config.to_dict(),
            overwrite=True,
        )

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Logits ``[B, T, vocabulary]`` fp32 of ``input_ids`` ``[B, T]``, and the loss of labels.

        Args:
            attention_mask: ``[B, T]``, 0 on padding at either end; the logits there are 0.
            labels: ``[B, T]``, -100 where no loss counts; shifted here, as usual.
        """
        unknown = {name for name, value in kwargs.items() if value not in (None, False)}
        unknown -= {"return_dict", "use_cache"}
        if unknown:
            raise TypeError(f"forward does not follow {', '.join(sorted(unknown))}")
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        kept = mask.bool()
        batch = RaggedBatch.packed(input_ids[kept], kept.sum(1).tolist())
        flat, _ = self.transformer(batch)
        logits = flat.new_zeros(*input_ids.shape, flat.shape[-1])
        logits[kept] = flat
        loss = None
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            )
        return CausalLMOutput(loss=loss, logits=logits)

    @torch.inference_mode()
    def generate(
        self,
        inputs: Tensor | Mapping[str, Any] | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        attention_mask: Tensor | None = None,
        streamer: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """Continue ``inputs`` ``[B, T]``: ``[B', T + new]`` int64, ends filled with the pad token.

        Args:
            inputs: token ids, or what the tokenizer returned.
            generation_config: replaces the model's own; further arguments override its fields.
            attention_mask: ``[B, T]``, 0 on padding to the left.
            streamer: gets the prompt and each token, for one row.

        Raises:
            TypeError: an argument or a field of the configuration that is not followed.
            RequestError: a value is out of bounds, or the context is too short.
        """
        if inputs is None:
            inputs = kwargs.pop("input_ids", None)
        if isinstance(inputs, Mapping):
            attention_mask = inputs.get("attention_mask", attention_mask)
            inputs = inputs["input_ids"]
        if not isinstance(inputs, Tensor) or inputs.ndim != 2:
            raise TypeError("generate needs input_ids [B, T] as a tensor")
        config = self._generation(generation_config, kwargs)
        mask = torch.ones_like(inputs) if attention_mask is None else attention_mask
        prompts = [
            row[kept.bool()].tolist()
            for row, kept in zip(inputs, mask, strict=True)
            for _ in range(config.num_return_sequences or 1)
        ]
        if streamer is not None:
            if len(prompts) > 1:
                raise TypeError("a streamer takes one row")
            streamer.put(inputs.cpu())
        answers = self._run(prompts, _params(config, inputs.shape[1]), _ends(config), streamer)
        if streamer is not None:
            streamer.end()
        ends = _ends(config)
        pad = config.pad_token_id if config.pad_token_id is not None else ends[0] if ends else 0
        width = max(map(len, answers))
        filled = torch.tensor([answer + [pad] * (width - len(answer)) for answer in answers])
        repeated = inputs.repeat_interleave(config.num_return_sequences or 1, 0)
        return torch.cat((repeated, filled.to(inputs.device, inputs.dtype)), 1)

    def _generation(
        self, given: GenerationConfig | None, overrides: dict[str, Any]
    ) -> GenerationConfig:
        """The configuration in force; anything set in it that we would not follow is an error."""
        config = GenerationConfig(**(given or self.generation_config).to_dict())
        unknown = [name for name in overrides if name not in _SUPPORTED]
        changed = config.to_diff_dict()
        unknown += [
            name
            for name, value in changed.items()
            if name not in _SUPPORTED | {"transformers_version", "_from_model_config"}
            and value not in (None, False)
        ]
        if unknown:
            raise TypeError(f"generate does not follow {', '.join(sorted(set(unknown)))}")
        for name, value in overrides.items():
            setattr(config, name, value)
        if config.max_new_tokens is None and config.max_length is None:
            config.max_new_tokens = 256
        return config

    def _run(
        self, prompts: list[list[int]], params: SamplingParams, ends: list[int], streamer: Any
    ) -> list[list[int]]:
        context = self.transformer.config.max_position_embeddings
        longest = max(map(len, prompts)) + params.max_tokens
        per_row = -(-longest // BLOCK_SIZE)
        engine = Engine(
            Runner(self.transformer, per_row * len(prompts)),
            Scheduler(
                BlockPool(per_row * len(prompts)),
                max_step_tokens=max(2048, len(prompts)),
                max_sequences=len(prompts),
            ),
            Limits(vocab_size=self.transformer.config.vocab_size, max_context=context),
            ends,
        )
        answers: list[list[int]] = [[] for _ in prompts]
        for place, prompt in enumerate(prompts):
            # transformers' users make sampling repeatable with torch.manual_seed.
            seed = int(torch.randint(MAX_SEED, ()))
            own = SamplingParams(**(vars(params) | {"seed": seed}))
            engine.add(Request(str(place), tuple(prompt), own))
        while engine.has_work:
            for output in engine.step():
                if output.token is None:
                    raise ValueError("the model's logits are not finite")
                answers[int(output.request_id)].append(output.token)
                if streamer is not None:
                    streamer.put(torch.tensor([output.token]))
        return answers


def _params(config: GenerationConfig, prompt_width: int) -> SamplingParams:
    if config.stop_strings:
        raise TypeError("generate does not follow stop_strings; dsv2.LLM does")
    new = config.max_new_tokens
    if new is None:
        new = config.max_length - prompt_width
    sampling = bool(config.do_sample)
    return SamplingParams(
        max_tokens=new,
        min_tokens=config.min_new_tokens or 0,
        temperature=_or(config.temperature, 1.0) if sampling else 0.0,
        top_p=_or(config.top_p, 1.0) if sampling else 1.0,
        top_k=_or(config.top_k, 0) if sampling else 0,
        min_p=_or(config.min_p, 0.0) if sampling else 0.0,
        repetition_penalty=_or(config.repetition_penalty, 1.0),
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _ends(config: GenerationConfig) -> list[int]:
    ends = config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _one_device(device_map: Any) -> torch.device:
    if isinstance(device_map, Mapping):
        places = {str(place) for place in device_map.values()}
        if len(places) != 1:
            raise ValueError(
                f"device_map names {len(places)} devices ({', '.join(sorted(places))}), allowed is "
                "one: this model is computed on a single device"
            )
        device_map = next(iter(device_map.values()))
    if device_map in ("auto", "sequential", "balanced", "balanced_low_0"):
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(device_map, int):
        device_map = f"cuda:{device_map}"
    return torch.device("cpu" if device_map is None else device_map)


def _warn_of_missing_devices(max_memory: Mapping[Any, Any] | None) -> None:
    here = torch.cuda.device_count()
    missing = [str(name) for name in max_memory or {} if isinstance(name, int) and name >= here]
    if missing:
        warnings.warn(
            f"max_memory names GPUs that this machine does not have: {', '.join(missing)}",
            UserWarning,
            stacklevel=4,
        )


def _folder(name: str | Path, hub: dict[str, Any]) -> Path:
    if Path(name).is_dir():
        return Path(name)
    hub.pop("subfolder", None)
    return Path(snapshot_download(str(name), allow_patterns=PATTERNS, **hub))
